"""The step judge: what the model is shown, what it may answer, and what is left out."""

from __future__ import annotations

import json
import pickle
from typing import Any

import pytest

from tests.unit.construct.graphs import example_graph, graph
from tests.unit.construct.llm_support import desk_at, dialogue, set_key
from tests.unit.construct.scripted_server import Body, ScriptedServer
from zhongjing.codes import knowledge as codes
from zhongjing.codes import language_model as model_codes
from zhongjing.config.sources import Storage
from zhongjing.construct.kg.facts import facts
from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.kg.linker import Linker
from zhongjing.construct.kg.rules import Rules
from zhongjing.construct.llm.batch import Desk
from zhongjing.construct.llm.judge import JudgeStep
from zhongjing.construct.llm.server import Server
from zhongjing.construct.step import Outcome
from zhongjing.data.example.contradictions import planted
from zhongjing.data.records import Dialogue, Position, TextRecord, Turn

GRAPH = (("布洛芬", "禁忌", "胃溃疡"), ("布洛芬", "适应症", "头痛症"), ("头孢克肟", "禁忌", "肾病"))
BAD = dialogue(1, "我有胃溃疡，头痛症，怎么办？", "吃布洛芬。")
GOOD = dialogue(2, "头痛症怎么办？", "可以吃布洛芬。")
NONE = dialogue(3, "你好", "多喝热水。")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    set_key(monkeypatch)


@pytest.fixture(scope="module")
def statements() -> Graph:
    return graph(*GRAPH)


def answer(*problems: dict[str, Any]) -> str:
    return json.dumps({"problems": [{"why": "理由", "fact": 0, **each} for each in problems]})


def judge(body: Body) -> str:
    """Reads the facts that it is given, as a model would."""
    text = body["messages"][1]["content"]
    if "我有胃溃疡" in text:
        (number,) = [line.partition(".")[0] for line in text.splitlines() if "布洛芬｜禁忌｜胃溃疡" in line]
        return answer({"turn": 2, "kind": "contradiction", "fact": int(number)})
    return answer({"turn": 2, "kind": "empty"}) if "没有与这段对话有关" in text else answer()


def judged(server: ScriptedServer, storage: Storage, statements: Graph, *records: Dialogue) -> list[Outcome]:
    step = JudgeStep(
        desk_at(server, storage), graph=statements, unwanted=frozenset({"contradiction", "unsafe"})
    )
    try:
        return list(step.apply_all(records))
    finally:
        step.close()


def test_the_facts_stand_in_the_instruction_and_decide(storage: Storage, statements: Graph) -> None:
    with ScriptedServer(judge) as server:
        bad, good, none = judged(server, storage, statements, BAD, GOOD, NONE)
        asked = {body["messages"][1]["content"] for body in server.bodies}
        assert len(asked) == 3
        assert not any("头孢克肟" in text for text in asked)
    assert bad.records == ()
    assert bad.quarantined is not None
    assert bad.quarantined.code is codes.JUDGED_UNFIT
    assert bad.quarantined.reason == "the model finds: contradiction"
    assert bad.counts["against (布洛芬, 禁忌, 胃溃疡)"] == bad.counts["problem: contradiction"] == 1
    assert (good.records, good.counts["with facts"], good.counts["judged"]) == ((GOOD,), 1, 1)
    # What is not unwanted is counted only.
    assert (none.records, none.counts["without facts"], none.counts["problem: empty"]) == ((NONE,), 1, 1)


@pytest.mark.parametrize(
    ("first", "fault"),
    [
        (answer({"turn": 1, "kind": "wrong"}), "no such turn"),
        (answer({"turn": 2, "kind": "contradiction"}), "no such fact"),
        (answer({"turn": 2, "kind": "unsafe", "fact": 9}), "no such fact"),
        (answer({"turn": 2, "kind": "boring"}), "wrong schema"),
        ("这段对话很好", "no json"),
    ],
)
def test_an_answer_that_points_at_nothing_is_asked_for_again(
    storage: Storage, statements: Graph, first: str, fault: str
) -> None:
    def once(body: Body) -> str:
        return judge(body) if len(body["messages"]) > 2 else first

    with ScriptedServer(once) as server:
        (outcome,) = judged(server, storage, statements, GOOD)
    assert outcome.records == (GOOD,)
    assert outcome.counts[f"fault: {fault}"] == 1


def test_no_judgement_is_no_verdict(storage: Storage, statements: Graph) -> None:
    with ScriptedServer(lambda _: "好") as server:
        (outcome,) = judged(server, storage, statements, GOOD)
    assert outcome.quarantined is not None
    assert outcome.quarantined.code is model_codes.UNUSABLE_ANSWER
    assert outcome.counts["unusable"] == 1


def test_it_is_keyed_by_the_graph_and_travels(statements: Graph) -> None:
    desk = Desk(Server("http://h/v1", "m"), Storage(uri="s3://bucket"), "s3://bucket/ledger", "work")
    step = JudgeStep(desk, graph=statements)
    assert step.opening(TextRecord("课本", Position("b", "u", 0))) is None
    parameters = step.parameters()
    assert json.loads(json.dumps(parameters)) == parameters
    other = JudgeStep(desk, graph=graph(*GRAPH[:2]))
    assert other.parameters()["graph"] != parameters["graph"]
    assert step.opening(GOOD) == pickle.loads(pickle.dumps(step)).opening(GOOD)


def test_what_a_dialogue_contradicts_is_among_the_facts_that_are_shown() -> None:
    """Of the example's planted contradictions that the rules find, each with its statement."""
    made = example_graph()
    rules, linker, found = Rules(made), Linker(made), 0
    for row in planted(0, 2):
        turns = tuple(Turn(turn["role"], turn["content"]) for turn in row["messages"])
        shown = {str(triple) for triple in facts(made, linker, turns)}
        for finding in rules.check(turns):
            found += 1
            assert str(finding.triple) in shown
    assert found > 50
