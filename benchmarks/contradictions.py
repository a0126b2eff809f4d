"""What the rules find of planted contradictions, and what else they find: recall and precision with counts.

::

    python -m benchmarks.contradictions [SEED ...]

Two sets for each seed: patterns written before the rules, and patterns written after them. All are by the
hand that wrote the rules; docs/data-construction.md says what that is worth. Prints a row for each set and
rule; a finding counts as right where rule, medicine and what it is wrong with are those that were planted.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

from zhongjing.construct.kg.readers import graph_of
from zhongjing.construct.kg.rules import RULES, Rules
from zhongjing.data.example.contradictions import JsonRecord, planted
from zhongjing.data.example.knowledge import graph_rows, lines
from zhongjing.data.records import Turn


class Score:
    """Counts by rule: planted, found of these, and found where nothing of the kind was planted."""

    def __init__(self) -> None:
        self.planted: Counter[str] = Counter()
        self.found: Counter[str] = Counter()
        self.false: Counter[str] = Counter()

    @property
    def recall(self) -> float:
        """The share of what was planted that is found."""
        return self.found.total() / self.planted.total()

    @property
    def precision(self) -> float:
        """The share of findings that were planted."""
        return self.found.total() / (self.found.total() + self.false.total())


def score(rules: Rules, records: Iterable[JsonRecord]) -> Score:
    """Checks all dialogues of a planted set."""
    counted = Score()
    for record in records:
        turns = tuple(Turn(message["role"], message["content"]) for message in record["messages"])
        wrong = record["planted"]
        wanted = (wrong["rule"], wrong["head"], wrong["tail"]) if wrong else None
        if wanted:
            counted.planted[wanted[0]] += 1
        findings = [_said(each.rule, each.name, each.against) for each in rules.check(turns)]
        expected = _said(*wanted) if wanted else None
        counted.found.update([expected[0]] if expected in findings and expected else [])
        counted.false.update(each[0] for each in findings if each != expected)
    return counted


def _said(rule: str, name: str, against: str | None) -> tuple[str, frozenset[str | None]]:
    """A finding without the order of its two names: an interaction has none."""
    return rule, frozenset((name, against))


def main() -> None:
    seeds = [int(each) for each in sys.argv[1:]] or [0, 1, 2]
    print(f"{'seed':>4} {'patterns':<8} {'rule':<16} {'planted':>7} {'found':>6} {'false':>6}")
    for seed in seeds:
        rules = Rules(graph_of([("kg.jsonl", lines(graph_rows(seed)).encode())]))
        for later in (False, True):
            counted = score(rules, planted(seed, later=later))
            label = "later" if later else "before"
            for rule in RULES:
                row = counted.planted[rule], counted.found[rule], counted.false[rule]
                if any(row):
                    print(f"{seed:>4} {label:<8} {rule:<16} {row[0]:>7} {row[1]:>6} {row[2]:>6}")
            print(
                f"{seed:>4} {label:<8} {'all':<16} {counted.planted.total():>7} {counted.found.total():>6} "
                f"{counted.false.total():>6}  recall {counted.recall:.3f}, precision {counted.precision:.3f}"
            )


if __name__ == "__main__":
    main()
