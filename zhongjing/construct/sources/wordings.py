"""How a graph's relations are told in Chinese: sentences and questions, several a group of relations.

A group holds the names that published graphs have for one thing (:mod:`zhongjing.construct.kg.relations`, and
the relations of CMeKG and of CMeIE's 53 schemas beside them). ``{h}`` is the entity that a text is about,
``{t}`` the other ends; a relation of no group is told by its own name.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Group:
    """Relations that are told alike.

    Attributes:
        name: stands in counts and keeps the groups in order.
        relations: names in published graphs.
        sentences: about the head; the tails stand in ``{t}``.
        questions: for the tails.
        inverse: sentences about a tail, with the heads in ``{t}``; none: a tail is not told of.
    """

    name: str
    relations: tuple[str, ...]
    sentences: tuple[str, ...]
    questions: tuple[str, ...]
    inverse: tuple[str, ...] = ()


GROUPS = (
    Group(
        "is-a",
        ("is_a", "isa", "上位词", "subClassOf", "broader", "属于类别", "疾病分类", "分类"),
        ("{h}属于{t}。", "{h}是{t}的一种。", "从分类上看，{h}归入{t}。"),
        ("{h}属于哪一类？", "{h}在分类上是什么？"),
    ),
    Group(
        "cause",
        (
            "病因",
            "cause",
            "发病机制",
            "高危因素",
            "风险评估因素",
            "病理分型",
            "遗传因素",
            "侵及周围组织转移的症状",
        ),
        ("{h}与以下因素有关：{t}。", "引起{h}的常见因素有{t}。", "{t}，都可能与{h}的发生有关。"),
        ("{h}是怎么引起的？", "哪些因素与{h}有关？"),
    ),
    Group(
        "symptom",
        ("临床表现", "相关症状", "症状", "has_symptom", "symptom", "临床症状及体征"),
        (
            "{h}的临床表现有{t}。",
            "患{h}时，常见{t}。",
            "{h}患者可出现{t}等症状。",
            "出现{t}时，应想到{h}的可能。",
        ),
        ("{h}有哪些临床表现？", "得了{h}会有什么症状？", "{h}的常见症状是什么？"),
        ("{h}可见于{t}。", "出现{h}时，需要考虑{t}等。", "{t}都可以有{h}。"),
    ),
    Group(
        "place",
        ("发病部位", "部位", "转移部位", "外侵部位", "阳性部位", "body_part"),
        ("{h}的发病部位是{t}。", "{h}多发生在{t}。", "{h}主要累及{t}。"),
        ("{h}发生在哪里？", "{h}累及什么部位？"),
    ),
    Group(
        "people",
        ("多发群体", "多发人群", "好发人群", "发病年龄", "发病性别倾向", "多发地区", "多发季节", "easy_get"),
        ("{h}多见于{t}。", "{h}的好发情况：{t}。", "从流行病学看，{h}常见于{t}。"),
        ("{h}多见于哪些人？", "什么人容易得{h}？"),
    ),
    Group(
        "check",
        (
            "检查",
            "need_check",
            "辅助检查",
            "影像学检查",
            "实验室检查",
            "内窥镜检查",
            "组织学检查",
            "筛查",
            "病理检查",
        ),
        ("诊断{h}需要做的检查有{t}。", "怀疑{h}时，可做{t}。", "{h}的检查包括{t}。", "{t}有助于诊断{h}。"),
        ("{h}要做哪些检查？", "怎样检查{h}？"),
        ("{h}可用于检查{t}。", "怀疑{t}时，可以做{h}。"),
    ),
    Group(
        "diagnosis",
        ("鉴别诊断", "诊断依据", "differential_diagnosis"),
        ("{h}需要与{t}相鉴别。", "诊断{h}时，要注意与{t}区分。", "{h}的鉴别诊断有{t}。"),
        ("{h}要和哪些病鉴别？",),
    ),
    Group(
        "complication",
        ("并发症", "acompany_with", "相关（导致）", "相关（转化）", "相关疾病"),
        ("{h}可并发{t}。", "{h}的并发症有{t}。", "{h}控制不好，可能出现{t}。"),
        ("{h}有哪些并发症？", "{h}会引起什么并发症？"),
    ),
    Group(
        "drug",
        ("药物治疗", "推荐用药", "常用药品", "好评药品", "common_drug", "recommand_drug", "recommend_drug"),
        ("{h}可用{t}治疗。", "治疗{h}的药物有{t}。", "{h}的常用药是{t}。", "{t}可用于{h}。"),
        ("{h}可以用什么药？", "治疗{h}有哪些药物？", "得了{h}吃什么药？"),
        ("{h}可用于治疗{t}。", "{h}是治疗{t}的药物。", "患{t}时，可用{h}。"),
    ),
    Group(
        "treatment",
        (
            "治疗方案",
            "手术治疗",
            "放射治疗",
            "化疗",
            "辅助治疗",
            "治疗方式",
            "cure_way",
            "treatment",
            "治疗后症状",
        ),
        ("{h}的治疗方法有{t}。", "治疗{h}可采用{t}。", "对{h}，可以进行{t}。"),
        ("{h}怎么治疗？", "{h}有哪些治疗方法？"),
    ),
    Group(
        "indication",
        ("适应症", "适应证", "主治", "功能主治", "治疗", "indication", "treats"),
        ("{h}用于{t}。", "{h}的适应证有{t}。", "{h}可治疗{t}。", "患{t}时，可以用{h}。"),
        ("{h}治什么病？", "{h}的适应证是什么？", "什么情况下用{h}？"),
        ("治疗{h}可用{t}。", "{h}的药物有{t}。"),
    ),
    Group(
        "contraindication",
        ("禁忌", "禁忌症", "禁忌证", "禁用", "禁用人群", "contraindication", "contraindicated_for"),
        ("{h}禁用于{t}。", "{h}的禁忌证有{t}。", "{t}者禁用{h}。"),
        ("{h}有什么禁忌？", "哪些人不能用{h}？"),
        ("{h}者不能用{t}。", "{h}者禁用{t}。"),
    ),
    Group(
        "interaction",
        ("药物相互作用", "相互作用", "配伍禁忌", "interaction", "interacts_with"),
        ("{h}不宜与{t}同用。", "{h}与{t}之间有相互作用，不要一起使用。", "用{h}期间，避免使用{t}。"),
        ("{h}不能和什么一起用？", "{h}与哪些药物有相互作用？"),
        ("{h}不宜与{t}同用。", "用{h}期间，避免使用{t}。"),
    ),
    Group(
        "usage",
        ("用法用量", "用法", "用量", "剂量", "usage", "dosage"),
        ("{h}的用法用量：{t}。", "{h}这样用：{t}。", "使用{h}时，{t}。"),
        ("{h}怎么用？", "{h}的用法用量是什么？"),
    ),
    Group(
        "strength",
        ("规格", "specification", "strength"),
        ("{h}的规格为{t}。", "{h}有以下规格：{t}。"),
        ("{h}有哪些规格？",),
    ),
    Group(
        "adverse",
        ("不良反应", "副作用", "adverse_reaction", "side_effect"),
        ("{h}的不良反应有{t}。", "用{h}后，可能出现{t}。", "使用{h}时要留意{t}。"),
        ("{h}有什么副作用？", "{h}的不良反应有哪些？"),
    ),
    Group(
        "diet",
        ("do_eat", "recommand_eat", "宜吃", "推荐食谱"),
        ("{h}患者宜吃{t}。", "患{h}期间，可以多吃{t}。", "{h}的饮食可选{t}。"),
        ("{h}患者吃什么好？", "得了{h}宜吃什么？"),
    ),
    Group(
        "avoid",
        ("not_eat", "no_eat", "忌吃", "忌用药物", "禁用药物"),
        ("{h}患者忌{t}。", "患{h}期间，不要用{t}。", "{h}应避免{t}。"),
        ("{h}患者要忌什么？", "得了{h}不能吃什么？"),
    ),
    Group(
        "department",
        ("就诊科室", "所属科室", "belongs_to", "cure_department", "科室", "department"),
        ("{h}应到{t}就诊。", "{h}的就诊科室是{t}。", "怀疑{h}时，可挂{t}。"),
        ("{h}挂什么科？", "{h}应该看哪个科室？"),
    ),
    Group(
        "prevention",
        ("预防", "prevent", "传播途径", "get_way"),
        ("关于{h}的预防与传播：{t}。", "{h}的预防要点：{t}。"),
        ("{h}怎么预防？",),
    ),
    Group(
        "prognosis",
        ("预后状况", "预后生存率", "预后", "死亡率", "发病率", "cured_prob", "治愈率"),
        ("{h}的预后：{t}。", "{h}的转归情况为{t}。"),
        ("{h}的预后怎么样？",),
    ),
)
GROUP_OF = {relation: group for group in GROUPS for relation in group.relations}

OTHER_SENTENCES = ("{h}的{r}：{t}。", "{h}的{r}包括{t}。", "关于{h}，{r}为{t}。")
OTHER_QUESTIONS = ("{h}的{r}是什么？", "{h}的{r}有哪些？")
ALIASES = ("{h}又称{t}。", "{h}也叫{t}。", "{h}的别名有{t}。", "{t}就是{h}。")
