from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from tests.unit.construct.graphs import example_graph, graph
from zhongjing.codes import knowledge as codes
from zhongjing.construct.kg.check import KnowledgeCheck, digest
from zhongjing.construct.kg.facts import as_lines, facts
from zhongjing.construct.kg.linker import Linker
from zhongjing.construct.kg.readers import graph_of, read_graph
from zhongjing.construct.step import Step
from zhongjing.data.example.contradictions import planted, write_planted
from zhongjing.data.example.knowledge import write_graph
from zhongjing.data.records import Dialogue, Position, Record, TextRecord, Turn

WHERE = Position("s", "s3://raw/a.jsonl", 0)
GRAPH = (
    ("布洛芬", "适应症", "头痛症"),
    ("布洛芬", "禁忌", "胃溃疡"),
    ("布洛芬", "用法用量", "一次0.2~0.4g"),
)


def dialogue(*turns: str) -> Dialogue:
    roles = ("user", "assistant") * len(turns)
    return Dialogue(tuple(Turn(role, turn) for role, turn in zip(roles, turns, strict=False)), WHERE)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def step() -> KnowledgeCheck:
    return KnowledgeCheck(graph(*GRAPH))


def test_a_contradiction_is_quarantined_and_counted(step: KnowledgeCheck) -> None:
    outcome = step.apply(dialogue("我有胃溃疡，头痛症。", "吃布洛芬。"))
    assert outcome.records == ()
    assert dict(outcome.counts) == {"contraindication": 1, "against (布洛芬, 禁忌, 胃溃疡)": 1}
    assert outcome.quarantined is not None
    assert outcome.quarantined.code is codes.CONTRADICTS_GRAPH
    assert outcome.quarantined.position == WHERE
    assert "contraindication" in outcome.quarantined.reason
    assert "布洛芬" not in outcome.quarantined.reason


@pytest.mark.parametrize(
    ("record", "counts"),
    [
        (dialogue("头痛症。", "吃布洛芬。"), {}),
        (dialogue("头痛症。", "布洛芬一次50mg。"), {"underdose": 1}),
        (TextRecord("胃溃疡吃布洛芬。", WHERE), {}),
    ],
)
def test_what_is_right_passes_unchanged(step: KnowledgeCheck, record: Record, counts: dict[str, int]) -> None:
    outcome = step.apply(record)
    assert outcome.records == (record,)
    assert dict(outcome.counts) == counts
    assert outcome.quarantined is None


def test_what_is_odd_in_the_graph_stands_in_the_notes_with_its_triples() -> None:
    odd = graph(*GRAPH, ("布洛芬", "适应症", "胃溃疡"), ("甲", "is_a", "乙"), ("乙", "is_a", "甲"))
    notes = KnowledgeCheck(odd).finish({}, {})
    assert notes["graph"] == {
        "problems": {"conflict": 1, "is-a-cycle": 1},
        "examples": {
            "conflict": [
                "布洛芬 both treats 胃溃疡 and is contraindicated in it: (布洛芬, 适应症, 胃溃疡), "
                "(布洛芬, 禁忌, 胃溃疡) (line 4, line 2)"
            ],
            "is-a-cycle": ["甲 is a 乙 is a 甲 (line 5, line 6)"],
        },
    }
    record = dialogue("我有胃溃疡，头痛症。", "吃布洛芬。")
    assert KnowledgeCheck(odd).apply(record).records == (record,)  # nobody judges by a conflict


def test_it_is_a_step_that_other_processes_take(step: KnowledgeCheck) -> None:
    typed: Step = step
    record = dialogue("我有胃溃疡，头痛症。", "吃布洛芬。")
    assert typed.apply(record) == pickle.loads(pickle.dumps(step)).apply(record)  # after its first use
    assert json.loads(json.dumps(typed.parameters())) == typed.parameters()


def test_the_key_is_that_of_the_graphs_content() -> None:
    turned = graph(*reversed(GRAPH))
    assert digest(turned) == digest(graph(*GRAPH))
    assert digest(graph(*GRAPH[:2])) != digest(turned)
    rows = json.dumps([{"head": a, "relation": b, "tail": c} for a, b, c in GRAPH])
    assert digest(graph_of([("kg.json", rows.encode())])) == digest(turned)


def test_the_example_files_are_read_as_they_are_made(tmp_path: Path) -> None:
    read = read_graph(write_graph(tmp_path, seed=3))
    assert digest(read) == digest(example_graph(3))
    written = write_planted(tmp_path, seed=3, each=1).read_text(encoding="utf-8")
    assert [json.loads(line) for line in written.splitlines()] == planted(3, 1)


def test_facts_begin_with_what_relates_two_names_of_the_dialogue() -> None:
    made = graph(*GRAPH, ("胃溃疡", "相关症状", "反酸"), ("肺炎", "药物治疗", "头孢克肟"))
    record = dialogue("我有胃溃疡。", "吃布洛芬。")
    found = facts(made, Linker(made), record.turns)
    assert [str(each) for each in found] == [
        "(布洛芬, 禁忌, 胃溃疡)",
        "(布洛芬, 用法用量, 一次0.2~0.4g)",
        "(胃溃疡, 相关症状, 反酸)",
        "(布洛芬, 适应症, 头痛症)",
    ]
    assert facts(made, Linker(made), record.turns, most=2) == found[:2]
    assert as_lines(found[:1]) == "布洛芬｜禁忌｜胃溃疡\n"
