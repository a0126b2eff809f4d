"""How fast the linker finds the published names in published text, beside a plain automaton and a search.

::

    ZHONGJING_DATA=<folder with the published samples> python -m benchmarks.entity_linking

One thread, all names of medical_kg, record by record, in MB of UTF-8 a second of process time; the best of
the repeats, in turn. Three ways:

- ``linker``: what the package does, folding and the choice of the longest names among it.
- ``plain``: pyahocorasick over the characters as they are, every match, nothing folded or chosen.
- ``naive``: ``name in text`` for every name, on a part of the text and of the names; reckoned up.

Prints MB/s of each, and the linker's ratio to the others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import ahocorasick

from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.kg.linker import Linker
from zhongjing.construct.kg.readers import read_graph

_REPEATS = 3
_NAIVE_TEXT = 20_000  # characters
_NAIVE_NAMES = 2_000


def main() -> None:
    data = Path(os.environ["ZHONGJING_DATA"])
    graph = read_graph(data / "medical_kg")
    text = (data / "huatuo_llama_data.json").read_text(encoding="utf-8")
    records = text.splitlines()
    linker = Linker(graph)
    plain = _plain(graph)
    names = [entity.name for entity in graph.entities() if len(entity.name) > 1]
    few, part = names[:_NAIVE_NAMES], text[:_NAIVE_TEXT]
    ways: dict[str, tuple[Callable[[], int], float]] = {
        "linker": (lambda: sum(len(linker.find(record)) for record in records), _megabytes(text)),
        "plain": (lambda: sum(1 for each in records for _ in plain.iter(each)), _megabytes(text)),
        "naive": (lambda: sum(name in part for name in few), _megabytes(part) * len(few) / len(names)),
    }
    speeds = dict.fromkeys(ways, 0.0)
    counts = {}
    for _ in range(_REPEATS):
        for name, (run, size) in ways.items():
            begun = time.process_time()
            counts[name] = run()
            speeds[name] = max(speeds[name], size / (time.process_time() - begun))
    print(f"{len(names)} names, {_megabytes(text):.1f} MB of text")
    for name, speed in speeds.items():
        ratio = speeds["linker"] / speed
        print(f"{name:<7} {speed:8.3f} MB/s  {counts[name]:>6} found  linker/{name}: {ratio:.1f}")


def _plain(graph: Graph) -> ahocorasick.Automaton:
    automaton = ahocorasick.Automaton()
    for entity in graph.entities():
        if len(entity.name) > 1:
            automaton.add_word(entity.name, entity.name)
    automaton.make_automaton()
    return automaton


def _megabytes(text: str) -> float:
    return len(text.encode("utf-8")) / 1e6


if __name__ == "__main__":
    main()
