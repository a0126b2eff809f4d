from __future__ import annotations

import itertools
import re

import pytest

from benchmarks.contradictions import score
from tests.unit.construct.graphs import example_graph, graph
from zhongjing.construct.kg import speech
from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.kg.rules import Finding, Rules
from zhongjing.data.example import contradiction_phrases as phrases
from zhongjing.data.example.contradictions import planted
from zhongjing.data.records import Turn

DRUGS = (
    ("布洛芬", "适应症", "头痛症"),
    ("布洛芬", "禁忌", "胃溃疡"),
    ("布洛芬", "禁忌", "孕妇"),
    ("布洛芬", "用法用量", "口服，一次0.2～0.4g，一日3次"),
    ("布洛芬", "规格", "0.2g*20片"),
    ("头孢克肟", "适应症", "肺炎"),
    ("头孢克肟", "药物相互作用", "白酒"),
    ("头孢克肟", "别名", "世福素"),
    ("对乙酰氨基酚", "适应症", "头痛症"),
    ("十二指肠溃疡", "is_a", "胃溃疡"),
)


@pytest.fixture(scope="module")
def rules() -> Rules:
    return Rules(graph(*DRUGS))


def check(rules: Rules, *turns: str) -> list[Finding]:
    roles = itertools.cycle(("user", "assistant"))
    return rules.check(tuple(Turn(role, turn) for role, turn in zip(roles, turns, strict=False)))  # type: ignore[arg-type]


def found(rules: Rules, *turns: str) -> list[tuple[str, str, str | None]]:
    return [(each.rule, each.name, each.against) for each in check(rules, *turns)]


CONTRAINDICATED: list[tuple[str, str, str | None]] = [("contraindication", "布洛芬", "胃溃疡")]


def test_a_finding_has_its_triple_its_turn_and_its_place(rules: Rules) -> None:
    answer = "您好，头痛症可以吃布洛芬。"
    (one,) = check(rules, "我有胃溃疡，头痛症犯了。", answer)
    assert str(one.triple) == "(布洛芬, 禁忌, 胃溃疡)"
    assert one.triple.place == "line 2"
    assert (one.turn, answer[one.start : one.end]) == (1, "布洛芬")


WRONG: dict[str, tuple[tuple[str, ...], list[tuple[str, str, str | None]]]] = {
    "a kind of it": (("我有十二指肠溃疡。", "头痛症吃布洛芬。"), CONTRAINDICATED),
    "named by the doctor": (("头痛症。", "胃溃疡病人也吃布洛芬。"), CONTRAINDICATED),
    "supposed by the doctor": (("头痛症。", "即使有胃溃疡，布洛芬也照吃。"), CONTRAINDICATED),
    "a yes to the question": (("有胃溃疡能吃布洛芬吗？", "可以的。"), CONTRAINDICATED),
    "confirmed": (("头痛症。", "有没有胃溃疡？", "有，五年。", "吃布洛芬。"), CONTRAINDICATED),
    "an earlier turn": (("我胃溃疡。", "多久了？", "两年，今天头痛症。", "开布洛芬。"), CONTRAINDICATED),
    "taken together": (("肺炎，晚上要喝白酒。", "吃世福素。"), [("interaction", "头孢克肟", "白酒")]),
    "a cause before it": (("我有胃溃疡。", "原因是头痛症，注意休息，吃布洛芬。"), CONTRAINDICATED),
    "too much at a time": (("头痛症。", "布洛芬一次1g。"), [("overdose", "布洛芬", None)]),
    "too often": (("头痛症。", "布洛芬每次0.4g，每4小时一次。"), [("overdose", "布洛芬", None)]),
    "too many tablets": (("头痛症。", "布洛芬一次五片，tid。"), [("overdose", "布洛芬", None)]),
    "too high a ceiling": (("头痛症。", "布洛芬每天不超过5g。"), [("overdose", "布洛芬", None)]),
    "less than half": (("头痛症。", "布洛芬一次50mg。"), [("underdose", "布洛芬", None)]),
    "another condition's": (("肺炎怎么办？", "吃布洛芬。"), [("pair", "布洛芬", "肺炎")]),
}
RIGHT: dict[str, tuple[str, ...]] = {
    "forbidden": ("我有胃溃疡，头痛症。", "您不能吃布洛芬。"),
    "forbidden by a later clause": ("我有胃溃疡，头痛症。", "布洛芬，您禁用。"),
    "replaced": ("我有胃溃疡，头痛症。", "不要吃布洛芬，改用对乙酰氨基酚。"),
    "refused": ("有胃溃疡能吃布洛芬吗？", "不可以。"),
    "asked by the doctor": ("我有胃溃疡。", "您吃布洛芬吗？"),
    "only asked by the patient": ("有胃溃疡能吃布洛芬吗？", "请问您多大年纪？"),
    "told": ("我有胃溃疡。", "您之前吃过的布洛芬可能是病因。"),
    "a cause": ("我有胃溃疡。", "常见诱因包括吸烟、布洛芬、饮酒等。"),
    "said to do harm": ("我有胃溃疡。", "布洛芬、激素等可能引起出血。"),
    "a point in the wrong script": ("头痛症。", "布洛芬0。4g一天3次。"),
    "denied": ("没有胃溃疡，头痛症。", "吃布洛芬。"),
    "denied later": ("是不是胃溃疡？", "做个胃镜。", "查了，不是胃溃疡，头痛症。", "那吃布洛芬。"),
    "a relative's": ("我爸胃溃疡，我自己头痛症。", "您吃布洛芬。"),
    "only if": ("头痛症。", "布洛芬可以吃，如果有胃溃疡就别吃。"),
    "diet behind it": ("头痛症。", "吃布洛芬，平时不要吃辛辣，少熬夜。"),
    "drink forbidden": ("肺炎，想喝白酒。", "吃头孢克肟，白酒不能喝。"),
    "within the range": ("头痛症。", "布洛芬一次两片，一天三次。"),
    "a dose that is warned of": ("头痛症。", "布洛芬不能一次吃2g，每次0.4g。"),
    "the patient's own dose": ("头痛症，吃了2g布洛芬。", "请去急诊。"),
    "a condition that the graph has nothing for": ("最近脱发。", "吃布洛芬。"),
}


@pytest.mark.parametrize("case", WRONG)
def test_contradictions(rules: Rules, case: str) -> None:
    turns, expected = WRONG[case]
    assert found(rules, *turns) == expected


@pytest.mark.parametrize("case", RIGHT)
def test_no_contradictions(rules: Rules, case: str) -> None:
    assert found(rules, *RIGHT[case]) == []


def test_what_the_graph_contradicts_itself_in_is_not_judged_by() -> None:
    made = graph(*DRUGS, ("布洛芬", "适应症", "胃溃疡"))
    assert found(Rules(made), "我有胃溃疡，头痛症。", "吃布洛芬。") == []


def test_a_name_of_two_things_is_not_judged_by() -> None:
    made = graph(*DRUGS, ("布洛芬", "别名", "退热片"), ("对乙酰氨基酚", "别名", "退热片"))
    assert found(Rules(made), "我有胃溃疡，头痛症。", "吃退热片。") == []


def test_a_cycle_of_is_a_ends() -> None:
    made = graph(*DRUGS, ("胃溃疡", "is_a", "十二指肠溃疡"))
    assert found(Rules(made), "我有十二指肠溃疡。", "头痛症吃布洛芬。") != []


def test_an_empty_graph_finds_nothing() -> None:
    assert found(Rules(Graph()), "我有胃溃疡。", "吃布洛芬。") == []


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_planted_contradictions_are_found(seed: int, later: bool) -> None:
    counted = score(Rules(example_graph(seed)), planted(seed, 4, later=later))
    assert counted.planted.total() > 80
    assert counted.recall >= 0.95
    assert counted.precision >= 0.9
    for rule, number in counted.planted.items():
        assert counted.found[rule] / number >= 0.9, rule


def test_the_rules_hold_no_sentence_of_the_planted_set() -> None:
    """Their words are shared; no run of eight characters is, of what stands between two slots or signs."""
    known = "".join(value.pattern for value in vars(speech).values() if isinstance(value, re.Pattern))
    sets = [value for name, value in vars(phrases).items() if name.isupper()]
    pieces = {
        piece
        for patterns in sets
        for turns in patterns
        for turn in turns
        for piece in re.split(r"\{\w\}|[，。？：、；]", turn)
    }
    assert len(pieces) > 200
    for piece in pieces:
        assert not any(piece[i : i + 8] in known for i in range(len(piece) - 7)), piece
