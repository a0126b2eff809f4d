"""De-identification measured: recall and precision by class, false hits on medical words, speed.

::

    ZHONGJING_DATA=<folder of the samples> python -m benchmarks.deidentification [dialogues] [openmed-python]

``openmed-python`` is the interpreter of an environment in which OpenMed is installed (``pip install
openmed==3.1.0``); its rules without a model are then measured on the same planted dialogues.

Planted are identifiers in published dialogues (:mod:`benchmarks.planted_identifiers`). The measured
recognisers are not given the surnames that are planted; ``all surnames`` is what is shipped. An identifier is
found if every character of it was replaced. Precision of names: of all names that were found, those that
overlap a planted name or surname; a true name in a carrier counts against it.
"""

from __future__ import annotations

import json
import logging
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.planted_identifiers import EXPECTED, NAMES, STRUCTURED, Planted, Planter, for_measurement
from zhongjing.config.sources import Source
from zhongjing.construct.deidentify.deidentifier import Deidentifier
from zhongjing.construct.deidentify.lexicon import Lexicon, load_lexicon
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, Position, Turn

FILES = ("toyhom_internal_medicine_gb18030.csv", "huatuo26M_sample.json", "CMtMedQA_sample.json")
WORDS = ("drug", "disease", "symptom", "food")
SEED = 13
OPENMED = """
import json, sys
from openmed.core.safety_sweep import safety_sweep
for line in sys.stdin:
    found = [safety_sweep(text, [], lang="zh") for text in json.loads(line)]
    print(json.dumps([[[each.start, each.end] for each in spans] for spans in found]))
"""


def carriers() -> list[Dialogue]:
    """Published dialogues, all of them."""
    folder = Path(os.environ["ZHONGJING_DATA"])
    found = []
    for name in FILES:
        source = Source.model_validate({"name": "file", "uri": str(folder / name), "kind": "dialogue"})
        found += [each for each in read_object(str(folder / name), source) if isinstance(each, Dialogue)]
    return found


def measured_surnames(lexicon: Lexicon) -> list[str]:
    """Those that are planted and that the measured recognisers do not know."""
    return sorted(each for each in lexicon.surnames | lexicon.compound if for_measurement(each))


def plant(
    planter: Planter, dialogues: Sequence[Dialogue], count: int
) -> Iterator[tuple[Dialogue, list[Planted]]]:
    """Dialogues with a name and two other identifiers each, every class equally often."""
    others = [each for each in EXPECTED if each not in NAMES]
    for number in range(count):
        kinds = [
            NAMES[number % len(NAMES)],
            others[2 * number % len(others)],
            others[(2 * number + 1 + number // len(others)) % len(others)],
        ]
        yield planter.plant(dialogues[number % len(dialogues)], list(dict.fromkeys(kinds)))


class Score:
    """Hits and misses by class, and of the names that were found."""

    def __init__(self) -> None:
        self.planted: Counter[str] = Counter()
        self.covered: Counter[str] = Counter()
        self.named_right: Counter[str] = Counter()
        self.names_found = self.names_true = 0
        self.missed: list[tuple[str, str]] = []
        self.false: list[str] = []

    def add(
        self, dialogue: Dialogue, planted: Sequence[Planted], found: Sequence[tuple[str, int, int, int]]
    ) -> None:
        """One dialogue; ``found`` as class, turn, start, end."""
        for each in planted:
            self.planted[each.kind] += 1
            covering = [
                (kind, s, e)
                for kind, turn, s, e in found
                if turn == each.turn and s < each.end and e > each.start
            ]
            gold = set(range(each.start, each.end)) - {at for _, s, e in covering for at in range(s, e)}
            if gold:
                text = dialogue.turns[each.turn].content
                self.missed.append((each.kind, text[max(0, each.start - 12) : each.end + 8]))
            else:
                self.covered[each.kind] += 1
                self.named_right[each.kind] += any(kind in EXPECTED[each.kind] for kind, _, _ in covering)
        true = [each for each in planted if each.kind in NAMES]
        texts = {dialogue.turns[each.turn].content[each.start : each.end] for each in true}
        for kind, turn, start, end in found:
            if not kind.endswith("_NAME"):
                continue
            self.names_found += 1
            content = dialogue.turns[turn].content
            overlaps = any(each.turn == turn and start < each.end and end > each.start for each in true)
            if overlaps or content[start:end] in texts:
                self.names_true += 1
            else:
                self.false.append(
                    content[max(0, start - 8) : start]
                    + "<"
                    + content[start:end]
                    + ">"
                    + content[end : end + 5]
                )

    def recall(self, kinds: Sequence[str]) -> float:
        """Over all identifiers of these classes."""
        return sum(self.covered[each] for each in kinds) / max(1, sum(self.planted[each] for each in kinds))

    @property
    def precision(self) -> float:
        """Of names."""
        return self.names_true / max(1, self.names_found)

    def show(self, title: str) -> None:
        """A line a class."""
        print(f"\n{title}")
        for kind, count in self.planted.items():
            covered, right = self.covered[kind], self.named_right[kind]
            print(
                f"  {kind:16} planted {count:5}  found {covered:5}  recall {covered / count:.4f}  "
                f"of its class {right:5}"
            )
        print(f"  structured       recall {self.recall(STRUCTURED):.4f}")
        print(
            f"  names            recall {self.recall(NAMES):.4f}  precision {self.precision:.4f} "
            f"({self.names_true} of {self.names_found})"
        )


def measure(deidentifier: Deidentifier, planted: Sequence[tuple[Dialogue, list[Planted]]]) -> Score:
    """Finds what is planted."""
    score = Score()
    for dialogue, identifiers in planted:
        found = [
            (each.entity.value, each.part, each.start, each.end) for each in deidentifier.review(dialogue)
        ]
        score.add(dialogue, identifiers, found)
    return score


def measure_openmed(python: str, planted: Sequence[tuple[Dialogue, list[Planted]]]) -> Score:
    """The same with OpenMed's rules."""
    lines = [json.dumps([turn.content for turn in dialogue.turns]) for dialogue, _ in planted]
    ran = subprocess.run(
        [python, "-c", OPENMED],
        input="\n".join(lines),
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HUB_OFFLINE": "1"},
    )
    score = Score()
    for (dialogue, identifiers), line in zip(planted, ran.stdout.splitlines(), strict=True):
        found = [
            ("", turn, start, end) for turn, spans in enumerate(json.loads(line)) for start, end in spans
        ]
        score.add(dialogue, identifiers, found)
    return score


def false_hits(deidentifier: Deidentifier) -> dict[str, tuple[int, int, list[str]]]:
    """Words of a medical knowledge graph in which something was found: hits, words, some of them."""
    folder = Path(os.environ["ZHONGJING_DATA"]) / "medical_kg"
    result = {}
    for name in WORDS:
        words = [
            line.strip()
            for line in (folder / f"{name}.txt").read_text(encoding="utf-8").splitlines()
            if line.strip()
        ]
        hits = [word for word in words if deidentifier.review(_single(word))]
        result[name] = (len(hits), len(words), hits)
    return result


def _single(text: str) -> Dialogue:
    return Dialogue((Turn("user", text),), Position("words", "-", 0))


def main() -> None:
    """Prints all tables."""
    logging.basicConfig(level=logging.WARNING)
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    verbose = bool(os.environ.get("VERBOSE"))
    lexicon = load_lexicon()
    surnames = measured_surnames(lexicon)
    dialogues = carriers()
    measured = [each for each in dialogues if for_measurement(each.turns[0].content)]
    random.Random(SEED).shuffle(measured)
    planted = list(plant(Planter(random.Random(SEED), surnames), measured, count))
    blind = Deidentifier(lexicon=lexicon.without(surnames))
    shipped = Deidentifier(lexicon=lexicon)
    scores = {"surnames not known": measure(blind, planted), "all surnames": measure(shipped, planted)}
    for title, score in scores.items():
        score.show(title)
        if verbose:
            for kind, text in score.missed:
                print("   missed", kind, repr(text))
            for text in score.false:
                print("   false", repr(text))
    if len(sys.argv) > 2:
        measure_openmed(sys.argv[2], planted).show("OpenMed 3.1.0, rules only")
    print("\nfalse hits on medical words")
    for name, (hits, total, words) in false_hits(shipped).items():
        print(f"  {name:8} {hits:4} of {total:5} ({hits / total:.4%})", words[:40] if verbose else "")
    sample = random.Random(SEED).sample(dialogues, min(2000, len(dialogues)))
    began = time.monotonic()
    outcomes = [shipped.apply(each) for each in sample]
    seconds = time.monotonic() - began
    touched = sum("touched" in each.counts for each in outcomes)
    replaced = Counter[str]()
    for outcome in outcomes:
        replaced.update(outcome.counts)
    print(
        f"\npublished dialogues: {touched} of {len(sample)} touched ({touched / len(sample):.2%}); "
        f"{dict(replaced)}"
    )
    length = sum(len(turn.content) for each in sample for turn in each.turns)
    print(
        f"speed: {len(sample) / seconds:.0f} records a second a core "
        f"({length / len(sample):.0f} characters each)"
    )


if __name__ == "__main__":
    main()
