"""What the relations of published graphs mean to the rules.

Names are those of CMeKG_tools (``predicate.json`` of king-yyf/CMeKG_tools), CMeIE's 53 schemas
(CBLUEbenchmark/CBLUE), QASystemOnMedicalKG (``build_medicalgraph.py`` of liuhuanyong/QASystemOnMedicalKG) and
of RDF Schema and SKOS. A relation that stands nowhere here is kept in the graph and means nothing to a rule.
"""

from __future__ import annotations

from enum import StrEnum


class Meaning(StrEnum):
    """What a relation says of its head, in the direction that the rules read."""

    TREATS = "treats"  # a medicine, a condition
    CONTRAINDICATED = "contraindicated"  # a medicine or food, a condition or a group of people
    INTERACTS = "interacts"  # two things that are not taken together, in either direction
    SUITS = "suits"  # a food, a condition
    USAGE = "usage"  # a medicine, how it is taken, as text
    STRENGTH = "strength"  # a medicine, what one piece holds, as text
    SYMPTOM = "symptom"  # a condition, a symptom
    IS_A = "is-a"  # the narrower, the wider
    ALIAS = "alias"  # the name, another name


FORWARD: dict[str, Meaning] = {
    **dict.fromkeys(("适应症", "适应证", "主治", "功能主治", "治疗", "indication", "treats"), Meaning.TREATS),
    **dict.fromkeys(
        ("禁忌", "禁忌症", "禁忌证", "禁用", "禁用人群", "contraindication", "contraindicated_for"),
        Meaning.CONTRAINDICATED,
    ),
    **dict.fromkeys(
        ("药物相互作用", "相互作用", "配伍禁忌", "interaction", "interacts_with"), Meaning.INTERACTS
    ),
    **dict.fromkeys(("用法用量", "用法", "用量", "剂量", "usage", "dosage"), Meaning.USAGE),
    **dict.fromkeys(("规格", "specification", "strength"), Meaning.STRENGTH),
    **dict.fromkeys(
        ("临床表现", "相关症状", "症状", "has_symptom", "symptom", "临床症状及体征"), Meaning.SYMPTOM
    ),
    **dict.fromkeys(("is_a", "isa", "上位词", "subClassOf", "broader", "属于类别"), Meaning.IS_A),
    **dict.fromkeys(
        ("同义词", "别名", "别称", "又称", "英文名", "商品名", "alias", "altLabel", "sameAs", "synonym"),
        Meaning.ALIAS,
    ),
}
# Published the other way round: the condition comes first.
BACKWARD: dict[str, Meaning] = {
    **dict.fromkeys(
        ("药物治疗", "推荐用药", "常用药品", "好评药品", "common_drug", "recommand_drug", "recommend_drug"),
        Meaning.TREATS,
    ),
    **dict.fromkeys(("not_eat", "no_eat", "忌吃", "忌用药物", "禁用药物"), Meaning.CONTRAINDICATED),
    **dict.fromkeys(("do_eat", "recommand_eat", "宜吃", "推荐食谱"), Meaning.SUITS),
    **dict.fromkeys(("narrower", "下位词"), Meaning.IS_A),
}


def meaning(relation: str) -> tuple[Meaning, bool] | None:
    """What a relation means, and whether its triples are to be read from tail to head."""
    if relation in FORWARD:
        return FORWARD[relation], False
    return (BACKWARD[relation], True) if relation in BACKWARD else None
