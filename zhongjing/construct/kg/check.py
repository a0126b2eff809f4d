"""The step that checks dialogues against a knowledge graph without a model."""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Collection, Mapping

from zhongjing.codes import knowledge as codes
from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.rules import RULES, Finding, Rules
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Record

# An amount below the least is counted only: half a dose for a child or an old patient is no mistake.
QUARANTINED = frozenset({"contraindication", "interaction", "overdose", "pair"})


class KnowledgeCheck:
    """Quarantines dialogues that contradict a graph, and counts what it finds by rule.

    Records other than dialogues pass unchanged.

    Args:
        graph: what to check against.
        quarantine: the rules for which a dialogue is left out; others only count.
    """

    name = "check"
    version = 1

    def __init__(self, graph: Graph, quarantine: Collection[str] = QUARANTINED) -> None:
        unknown = set(quarantine) - set(RULES)
        assert not unknown, f"no such rules: {sorted(unknown)}"
        self._graph = graph
        self._quarantine = frozenset(quarantine)

    @functools.cached_property
    def _rules(self) -> Rules:
        return Rules(self._graph)

    @functools.cached_property
    def _digest(self) -> str:
        return digest(self._graph)

    def __getstate__(self) -> dict[str, object]:
        # The automaton is made again in each process: sooner than it is sent.
        return {key: value for key, value in self.__dict__.items() if key != "_rules"}

    def parameters(self) -> dict[str, object]:
        """The graph's digest and the rules that quarantine."""
        return {"graph": self._digest, "quarantine": sorted(self._quarantine)}

    def finish(self, counts: Mapping[str, int], quarantined: Mapping[str, int]) -> dict[str, object]:
        """What is odd in the graph: its problems by kind, with some of each."""
        return {"graph": problem_notes(self._graph)}

    def findings(self, record: Record) -> list[Finding]:
        """What a record says against the graph."""
        return self._rules.check(record.turns) if isinstance(record, Dialogue) else []

    def apply(self, record: Record) -> Outcome:
        """The record, unless it contradicts the graph.

        Counts are findings by rule, and by the triple for those that a record is left out for: what is wrong
        in a graph shows as a triple that leaves out many.
        """
        found = self.findings(record)
        counts = Counter(finding.rule for finding in found)
        counts.update(f"against {finding.triple}" for finding in found if finding.rule in self._quarantine)
        grave = sorted({finding.rule for finding in found} & self._quarantine)
        if not grave:
            return Outcome((record,), counts)
        reason = "contradicts the knowledge graph: " + ", ".join(grave)
        return Outcome((), counts, rejected(record, reason, codes.CONTRADICTS_GRAPH))


def problem_notes(graph: Graph, most: int = 5) -> dict[str, object]:
    """What is odd in a graph: problems by kind, and the first of each with triples and places."""
    found = graph.problems()
    shown: dict[str, list[str]] = {}
    for problem in found:
        told = shown.setdefault(problem.kind, [])
        if len(told) < most:
            told.append(f"{problem.message} ({', '.join(problem.places)})")
    return {"problems": dict(Counter(problem.kind for problem in found)), "examples": shown}


def digest(graph: Graph) -> str:
    """SHA-256 of all that a graph holds, whatever files and order it came in."""
    entities = sorted(f"{each.name}\t{each.types}\t{sorted(each.aliases)}" for each in graph.entities())
    statements = sorted(map(_line, graph.triples))
    return hashlib.sha256("\n".join([*entities, *statements]).encode()).hexdigest()


def _line(triple: Triple) -> str:
    return f"{triple.head}\t{triple.relation}\t{triple.tail}\t{sorted(triple.attributes.items())}"
