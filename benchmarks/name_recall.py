"""Recall of names in phrases on which the recognisers were not made, with Wilson's interval.

::

    ZHONGJING_DATA=<samples> python -m benchmarks.name_recall [ChineseNames' data-csv] [openmed-python]

Without the folder, faker's names are planted. ``surnames not known``: half of the surnames, by SHA-256, are
taken from the recognisers, and only those are planted. A name is found if each of its characters is replaced.
Precision: of all names found in the same texts, those that overlap a planted one. ``LOOK=1`` measures the
part that may be looked at, and prints misses and false hits; the held-out part is never printed.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.deidentification import OPENMED, carriers, measured_surnames
from benchmarks.name_carriers import (
    Named,
    Part,
    fakers,
    from_dialogues,
    from_phrases,
    part_of,
    phrases,
    population,
)
from zhongjing.construct.deidentify.engine import Finder
from zhongjing.construct.deidentify.lexicon import load_lexicon
from zhongjing.construct.deidentify.policy import Identifier

SEED = 13
Find = Callable[[str], list[tuple[int, int]]]


def wilson(found: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if not count:
        return 0.0, 1.0
    z = 1.959964
    share = found / count
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * (share * (1 - share) / count + z * z / (4 * count * count)) ** 0.5 / (1 + z * z / count)
    return middle - half, middle + half


class Tally:
    """Found and missed by way of writing."""

    def __init__(self) -> None:
        self.planted: Counter[str] = Counter()
        self.covered: Counter[str] = Counter()
        self.true = self.said = 0
        self.missed: list[str] = []
        self.false: list[str] = []

    def add(self, named: Named, spans: Sequence[tuple[int, int]]) -> None:
        """One text and what was found in it."""
        hidden = {at for start, end in spans for at in range(start, end)}
        for start, end in named.names:
            self.planted[named.way] += 1
            if hidden.issuperset(range(start, end)):
                self.covered[named.way] += 1
            else:
                self.missed.append(f"{named.way}: {_around(named.text, start, end)}")
        texts = {named.text[start:end] for start, end in named.names}
        for start, end in spans:
            self.said += 1
            if any(start < e and end > s for s, e in named.names) or named.text[start:end] in texts:
                self.true += 1
            else:
                self.false.append(_around(named.text, start, end))

    def show(self, title: str, *, text: bool) -> None:
        """A line for each way, and the whole."""
        found, count = sum(self.covered.values()), sum(self.planted.values())
        low, high = wilson(found, count)
        print(
            f"\n{title}: recall {found / count:.4f} [{low:.3f}, {high:.3f}] ({found} of {count}), "
            f"precision {self.true / max(1, self.said):.4f} ({self.true} of {self.said})"
        )
        for way, planted in self.planted.items():
            low, high = wilson(self.covered[way], planted)
            share = self.covered[way] / planted
            print(f"  {way:24} {self.covered[way]:5} of {planted:5}  {share:.3f} [{low:.3f}, {high:.3f}]")
        if text:
            for each in self.missed[:: max(1, len(self.missed) // 60)]:
                print("   missed", each)
            for each in self.false[:: max(1, len(self.false) // 60)]:
                print("   false ", each)


def _around(text: str, start: int, end: int) -> str:
    return f"{text[max(0, start - 10) : start]}<{text[start:end]}>{text[end : end + 8]}".replace("\n", "/")


def sets(
    part: Part, folder: Path | None, surnames: frozenset[str], *, unknown: bool, count: int
) -> list[tuple[str, list[Named]]]:
    """The two sets; ``surnames`` are those that only the set ``unknown`` has."""
    random_state = random.Random(SEED)
    texts = [turn.content for each in carriers() for turn in each.turns if len(turn.content) > 30]
    texts = [each for each in texts if part_of(each) == part]
    people = population(folder, random_state) if folder else fakers(random_state)
    if unknown:
        people = people.only(surnames)
    chosen = phrases(part)
    return [
        ("sentences of published dialogues", from_dialogues(texts, people, count)),
        ("phrases", from_phrases(texts, people, chosen, max(1, count // len(chosen)))),
    ]


def openmed(python: str, named: Sequence[Named]) -> list[list[tuple[int, int]]]:
    """What OpenMed's rules find, of any class."""
    lines = "\n".join(json.dumps([each.text]) for each in named)
    ran = subprocess.run(
        [python, "-c", OPENMED],
        input=lines,
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1"},
    )
    return [[(start, end) for start, end in json.loads(line)[0]] for line in ran.stdout.splitlines()]


def main() -> None:
    """Prints all tables."""
    look = bool(os.environ.get("LOOK"))
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 and sys.argv[1] != "-" else None
    count = int(os.environ.get("COUNT", "1100"))
    lexicon = load_lexicon()
    surnames = frozenset(measured_surnames(lexicon))
    names = [each for each in Identifier if each.endswith("_NAME")]
    part: Part = "looked" if look else "held"
    for unknown in (False, True):
        finder = Finder(lexicon.without(surnames) if unknown else lexicon, names)
        title = "surnames not known" if unknown else "as shipped"
        for what, named in sets(part, folder, surnames, unknown=unknown, count=count):
            tally = Tally()
            began = time.monotonic()
            for each in named:
                tally.add(each, [(span.start, span.end) for span in finder.find(each.text)])
            seconds = time.monotonic() - began
            size = sum(len(each.text.encode()) for each in named)
            tally.show(f"{what}, {title}", text=look)
            print(f"  {size / seconds / 1e6:.2f} MB a second")
            if len(sys.argv) > 2 and not unknown:
                tally = Tally()
                for each, spans in zip(named, openmed(sys.argv[2], named), strict=True):
                    tally.add(each, spans)
                tally.show(f"{what}, OpenMed's rules", text=False)


if __name__ == "__main__":
    main()
