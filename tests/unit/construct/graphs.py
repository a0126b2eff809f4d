"""Graphs for tests: the example's, and the published lists of names."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import pytest

from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.readers import graph_of
from zhongjing.data.example.knowledge import graph_rows, lines

MEDICAL_KG = Path(os.environ.get("ZHONGJING_DATA", "")) / "medical_kg"
needs_medical_kg = pytest.mark.skipif(
    not ("ZHONGJING_DATA" in os.environ and MEDICAL_KG.is_dir()), reason="ZHONGJING_DATA has no medical_kg"
)


@functools.cache
def example_graph(seed: int = 0) -> Graph:
    """The example's graph, read as its file is."""
    return graph_of([("kg.jsonl", lines(graph_rows(seed)).encode())])


def graph(*statements: tuple[str, str, str]) -> Graph:
    """A graph of statements; the place of each is its number from 1."""
    made = Graph()
    for number, (head, relation, tail) in enumerate(statements, 1):
        made.add(Triple(head, relation, tail, place=f"line {number}"))
    return made
