"""What the graph knows of a dialogue, for the instruction that asks a language model to judge it.

The paper's collaborative filtering (section 3): entities of the dialogue are looked up in CMeKG, and what is
found goes into the instruction. A common name has hundreds of triples, and an instruction has room for a few:
first what relates two names of the dialogue, then what can do harm (contraindications, interactions, doses),
then the rest; within each the names take turns, in the order in which the dialogue has them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.linker import Linker
from zhongjing.construct.kg.relations import Meaning, meaning
from zhongjing.data.records import Turns

_HARM = frozenset({Meaning.CONTRAINDICATED, Meaning.INTERACTS, Meaning.USAGE})


def facts(graph: Graph, linker: Linker, turns: Turns, most: int = 20) -> tuple[Triple, ...]:
    """At most ``most`` statements about the names of a dialogue, the weightiest first.

    The same dialogue gives the same facts in the same order.
    """
    names: dict[str, None] = {}
    for turn in turns:
        if turn.role != "system":
            for mention in linker.find(turn.content):
                names.update(dict.fromkeys(mention.names))
    ranked: tuple[list[list[Triple]], ...] = ([], [], [])
    for name in names:
        by_weight: tuple[list[Triple], ...] = ([], [], [])
        for triple in graph.of(name):
            by_weight[_weight(triple, names)].append(triple)
        for level, found in zip(ranked, by_weight, strict=True):
            level.append(found)
    chosen: dict[tuple[str, str, str], Triple] = {}
    for level in ranked:
        for triple in _in_turn(level):
            if len(chosen) == most:
                return tuple(chosen.values())
            chosen.setdefault((triple.head, triple.relation, triple.tail), triple)
    return tuple(chosen.values())


def as_lines(found: Iterable[Triple]) -> str:
    """Facts as they stand in an instruction: a statement a line, its attributes behind it."""
    lines = []
    for triple in found:
        more = "，".join(f"{key}={value}" for key, value in sorted(triple.attributes.items()))
        lines.append(
            f"{triple.head}｜{triple.relation}｜{triple.tail}" + (f"（{more}）" if more else "") + "\n"
        )
    return "".join(lines)


def _weight(triple: Triple, names: dict[str, None]) -> int:
    if triple.head in names and triple.tail in names:
        return 0
    meant = meaning(triple.relation)
    # A harm that lies in something else than this dialogue speaks of is none of its facts' business.
    return 1 if meant is not None and meant[0] in _HARM and triple.head in names else 2


def _in_turn(lists: Iterable[list[Triple]]) -> Iterable[Triple]:
    """One of each list, then the next of each."""
    for each in itertools.zip_longest(*lists):
        yield from (triple for triple in each if triple is not None)
