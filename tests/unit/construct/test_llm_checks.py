"""What answers may not do: each fault by an answer that has only that one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from tests.unit.construct.llm_support import dialogue
from zhongjing.config.sources import Storage
from zhongjing.construct.llm.answers import read_answer
from zhongjing.construct.llm.batch import Desk
from zhongjing.construct.llm.checks import Fault
from zhongjing.construct.llm.drugs import DrugNames
from zhongjing.construct.llm.expand import ExpandStep
from zhongjing.construct.llm.ledger import StoredAnswer
from zhongjing.construct.llm.normalize import NormalizeStep, Replies
from zhongjing.construct.llm.server import Server
from zhongjing.data.records import Dialogue, Position, Turn

DESK = Desk(Server("http://h/v1", "m"), Storage(uri="s3://bucket"), "s3://bucket/ledger", "work")
DRUGS = DrugNames.of(["布洛芬", "阿莫西林", "对乙酰氨基酚", "连花清瘟胶囊"])
NORMALIZE = NormalizeStep(DESK, DRUGS)
EXPAND = ExpandStep(DESK, DRUGS)
CASE = dialogue(
    0,
    "头疼三天了，吃了布洛芬",
    "布洛芬0.3g，一天2次。阿莫西林500mg，一天3次，连服7天",
    "会不会伤胃？",
    "饭后吃就行",
)
GOOD = [
    "您好，头疼可以先用布洛芬，每次0.3克，每日两次；阿莫西林每次0.5g，每日三次，连服一周。",
    "您不用太担心，饭后服用就可以，这样对胃的刺激比较小。",
]


def stored(value: Any, finish_reason: str = "stop") -> StoredAnswer:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return StoredAnswer(
        key="k",
        prompt="p-1",
        prompt_digest="d",
        text=text,
        finish_reason=finish_reason,
        model="m",
        date="2026-01-01",
        form="schema",
        sha256="",
        prompt_tokens=1,
        completion_tokens=1,
        counted=True,
    )


def replies(*texts: str, turns: Sequence[int] = (2, 4)) -> StoredAnswer:
    return stored(
        {"replies": [{"turn": turn, "text": text} for turn, text in zip(turns, texts, strict=True)]}
    )


def test_a_good_answer_changes_the_doctors_words_alone() -> None:
    turns = NORMALIZE.read(CASE, replies(*GOOD))
    assert isinstance(turns, tuple)
    assert [turn.content for turn in turns] == [
        CASE.turns[0].content,
        GOOD[0],
        CASE.turns[2].content,
        GOOD[1],
    ]
    assert [turn.role for turn in turns] == ["user", "assistant"] * 2


def test_a_system_turn_stays_and_is_not_counted() -> None:
    system = Dialogue((Turn("system", "你是医生"), *CASE.turns), Position("s", "u", 0))
    turns = NORMALIZE.read(system, replies(*GOOD))
    assert isinstance(turns, tuple)
    assert [turn.content for turn in turns][:3] == ["你是医生", CASE.turns[0].content, GOOD[0]]


FAULTS = {
    "dose added": GOOD[0] + "布洛芬也可以加到0.6g。",
    "drug added": GOOD[0] + "还可以配合连花清瘟胶囊。",
    "dose lost": "您好，可以用布洛芬每次0.3克，每日两次；阿莫西林每次0.5g，每日三次。",
    "drug lost": "您好，头疼可以用药，每次0.3克，每日两次；另一种每次0.5g，每日三次，连服一周。",
    "dose swapped": "您好，可以用阿莫西林，每次0.3克，每日两次；布洛芬每次0.5g，每日三次，连服一周。",
    "ai talk": "作为一个人工智能，" + GOOD[0],
    "meta talk": "以下是改写后的回答：" + GOOD[0],
    "empty": "  ",
    "short": "好的",
    "long": GOOD[0] * 40,
}


@pytest.mark.parametrize(("name", "text"), FAULTS.items())
def test_a_fault_of_an_answer(name: str, text: str) -> None:
    fault = NORMALIZE.read(CASE, replies(text, GOOD[1]))
    assert isinstance(fault, Fault)
    assert fault.name == name
    # What people see has no word of the record.
    assert fault.reason.isascii()


def test_what_doctors_say_is_no_fault() -> None:
    for said in ("以下是几点建议，请您参考。", "其他定期复查就行。", "这不能替代医生当面检查。"):
        assert isinstance(NORMALIZE.read(CASE, replies(GOOD[0] + said, GOOD[1])), tuple)


def test_a_substance_that_no_list_has() -> None:
    fault = NORMALIZE.read(CASE, replies(GOOD[0] + "必要时换用左氧氟沙星。", GOOD[1]))
    assert isinstance(fault, Fault)
    assert (fault.name, "氟沙星" in fault.told, "氟沙星" in fault.reason) == ("drug added", True, False)


@pytest.mark.parametrize(
    ("turns", "name"), [((1, 2), "patient changed"), ((4, 2), "turns missing"), ((2, 2), "turns missing")]
)
def test_turns_that_are_not_the_doctors(turns: tuple[int, int], name: str) -> None:
    fault = NORMALIZE.read(CASE, replies(*GOOD, turns=turns))
    assert isinstance(fault, Fault)
    assert fault.name == name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"replies": [{"turn": 2, "text": "您好', "no json"),
        ('{"replies": [{"turn": 2, "text": "您好"}', "no json"),
        ("对不起，我做不到", "no json"),
        ("", "empty"),
        ('{"answers": []}', "wrong schema"),
        ('{"replies": [{"turn": "2", "text": "您好"}]}', "wrong schema"),
        ('{"replies": [{"turn": 2, "text": "您好", "patient": "我不疼了"}]}', "wrong schema"),
        ("[1, 2]", "no json"),
    ],
)
def test_text_that_is_not_what_was_asked_for(text: str, name: str) -> None:
    fault = read_answer(text, "stop", Replies)
    assert isinstance(fault, Fault)
    assert fault.name == name


def test_json_that_is_nearly_right_is_mended_and_a_cut_answer_never() -> None:
    for text in (
        '```json\n{"replies": [{"turn": 2, "text": "您好"}]}\n```',
        '好的，结果如下：{"replies": [{"turn": 2, "text": "您好",}]}',
        "{'replies': [{'turn': 2, 'text': '您好'}]}",
        '<think>要写{"replies": 两条？</think>\n{"replies": [{"turn": 2, "text": "您好"}]}',
    ):
        value = read_answer(text, "stop", Replies)
        assert isinstance(value, Replies)
        assert value.replies[0].text == "您好"
    cut = read_answer('{"replies": []}', "length", Replies)
    assert isinstance(cut, Fault)
    assert cut.name == "cut"


TERSE = dialogue(0, "头疼怎么办", "布洛芬0.3g，一天2次")
SPOKEN = [
    ("doctor", "您好，请问头疼多久了？有没有发热？"),
    ("patient", "两天了，没有发热。"),
    ("doctor", "可以先服用布洛芬，每次0.3g，一天2次，注意休息。"),
]


def spoken(*turns: tuple[str, str]) -> StoredAnswer:
    return stored({"turns": [{"role": role, "text": text} for role, text in turns]})


def test_a_terse_dialogue_becomes_one_of_several_turns() -> None:
    for said in (SPOKEN, [("patient", "头疼怎么办"), *SPOKEN]):
        turns = EXPAND.read(TERSE, spoken(*said))
        assert isinstance(turns, tuple)
        assert [(turn.role, turn.content) for turn in turns] == [
            ("user", "头疼怎么办"),
            *(("assistant" if role == "doctor" else "user", text) for role, text in SPOKEN),
        ]


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ([("patient", "头很疼，怎么办"), *SPOKEN], "patient changed"),
        (SPOKEN[:2], "roles"),
        ([SPOKEN[0], SPOKEN[0], SPOKEN[2]], "roles"),
        (SPOKEN[2:], "turns"),
        ([("doctor", "您好，请放心。"), *SPOKEN[1:]], "no inquiry"),
        ([SPOKEN[0], ("patient", "吃过阿莫西林。"), SPOKEN[2]], "drug added"),
        ([SPOKEN[0], ("patient", "吃过两片药。"), SPOKEN[2]], "dose added"),
        ([*SPOKEN[:2], ("doctor", "可以先服用布洛芬，每次0.3g，注意休息。")], "dose lost"),
        ([SPOKEN[0], ("patient", ""), SPOKEN[2]], "empty"),
    ],
)
def test_a_fault_of_an_expansion(said: list[tuple[str, str]], name: str) -> None:
    fault = EXPAND.read(TERSE, spoken(*said))
    assert isinstance(fault, Fault)
    assert fault.name == name


def test_what_is_not_terse_is_left_alone() -> None:
    assert EXPAND.is_terse(TERSE)
    assert not EXPAND.is_terse(CASE)
    assert not EXPAND.is_terse(dialogue(0, "头疼怎么办", "请注意休息。" * 20))
    assert EXPAND.opening(CASE) is None


def test_parameters_cover_what_decides_and_nothing_else() -> None:
    parameters = NORMALIZE.parameters()
    assert json.loads(json.dumps(parameters)) == parameters
    assert set(parameters) == {"prompt", "model", "sampling", "tries", "drugs", "shortest", "longest"}
    assert "http" not in json.dumps(parameters)
