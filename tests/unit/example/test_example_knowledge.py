from __future__ import annotations

import re
from pathlib import Path

from zhongjing.cli.example import write_examples, write_graph_files
from zhongjing.construct.kg.readers import read_graph
from zhongjing.data.example.facts import FACTS
from zhongjing.data.example.generate import generate


def test_graph_textbook_and_answers_state_the_same_facts(tmp_path: Path) -> None:
    write_examples(tmp_path, seed=1, scale=1.0)
    graph = read_graph(write_graph_files(tmp_path, seed=1)["kg"])
    known = {(triple.head, triple.tail) for triple in graph.triples if triple.relation == "药物治疗"}
    assert known == {(fact.disease, fact.medicine) for fact in FACTS}
    textbook = (tmp_path / "textbook.txt").read_text(encoding="utf-8")
    stated = set(re.findall(r"治疗([^。，]+?)首选([^。，]+?)。", textbook))
    assert stated
    assert stated <= known
    records = generate(1).records
    for name in ("dialogues", "rankings", "prompts", "rankings-heldout"):
        assert {(each["disease"], each["medicine"]) for each in records[name]} <= known
