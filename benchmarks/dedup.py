"""How many planted near duplicates are found and how fast, beside exact comparison of all pairs.

::

    ZHONGJING_DATA=<folder with the published samples> python -m benchmarks.dedup [--records 1500] [--seed 1]
    ZHONGJING_DATA=... python -m benchmarks.dedup --corpora
    ZHONGJING_DATA=... python -m benchmarks.dedup --leaks

The first: published dialogues of 100 characters or more, and copies of a fifth of them, each with a share of
its characters replaced, removed or doubled in runs, at a share that is drawn for each copy. The exact way
compares the sets of runs of all pairs in the same process; what it finds from the threshold on is the truth.
Recall and precision are of pairs (later record, some earlier record that it is alike to).

The second: what is left out within and across all published samples, with the test file of the paper's
CMtMedQA kept out of the others.

The third: records of that test file planted in text of a textbook and in other dialogues, and how many
published records have anything of it, by the rule and by the stricter one of a single run of 13 characters.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from zhongjing.config.sources import Kind, Source
from zhongjing.construct.dedup.decision import ALIKE, KEPT, Decision
from zhongjing.construct.dedup.settings import LENGTH, DedupSettings
from zhongjing.construct.dedup.signatures import Signatures, sign
from zhongjing.data.grams import Hashes, folded, grams, words_of
from zhongjing.data.leaks import LEAST, RUN, index_of
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, Position, Record, Rejected, TextRecord, Turn

CORPORA = {
    "huatuo-llama": ("huatuo_llama_data.json", Kind.DIALOGUE),
    "huatuo26m": ("huatuo26M_sample.json", Kind.DIALOGUE),
    "medical-sft": ("medical_sft_1K.jsonl", Kind.DIALOGUE),
    "sharegpt": ("sharegpt_zh_1K.jsonl", Kind.DIALOGUE),
    "qa-corpus": ("medical_qa_corpus.jsonl", Kind.DIALOGUE),
    "toyhom": ("toyhom_internal_medicine_gb18030.csv", Kind.DIALOGUE),
    "textbook": ("fever_textbook.txt", Kind.TEXT),
    "dpo": ("dpo_zh_500.jsonl", Kind.RANKING),
}
TESTS = {"cmtmedqa": ("CMtMedQA_sample.json", Kind.DIALOGUE)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--corpora", action="store_true")
    parser.add_argument("--leaks", action="store_true")
    parser.add_argument("--records", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threshold", type=float, default=0.8)
    asked = parser.parse_args()
    data = Path(os.environ["ZHONGJING_DATA"])
    settings = DedupSettings(asked.threshold)
    if asked.corpora:
        corpora(data, settings)
    elif asked.leaks:
        leaks(data, settings, asked.seed)
    else:
        planted(data, settings, asked.records, asked.seed)


def planted(data: Path, settings: DedupSettings, count: int, seed: int) -> None:
    """Recall, precision and speed on planted near duplicates."""
    draw = random.Random(seed)
    texts = [words for record in read(data, *CORPORA["toyhom"]) if len(words := words_of(record)) >= 100]
    bases = draw.sample(texts, count)
    copies = [edited(base, draw) for base in bases[: count // 5]]
    records: list[Record] = [
        TextRecord(text, Position("s", "u", number)) for number, text in enumerate([*bases, *copies])
    ]
    begun = time.process_time()
    decision = decide(settings, [list(sign(records, {"u": 0}, None))])
    ours = time.process_time() - begun
    begun = time.process_time()
    truth = exact([*bases, *copies], settings.threshold)
    theirs = time.process_time() - begun
    found = {
        (later, int(decision.because[later])) for later in np.flatnonzero(decision.verdicts != KEPT).tolist()
    }
    later_true = {later for later, _ in truth}
    later_found = {later for later, _ in found}
    alike = f"{len(later_true)} alike to an earlier one at {settings.threshold}"
    print(f"{len(records)} records, {len(copies)} planted, {alike}")
    print(f"bands {settings.bands} of {settings.rows}")
    print(f"recall     {len(later_true & later_found) / len(later_true):.4f}")
    clear = {later for (later, _), similarity in truth.items() if similarity >= settings.threshold + 0.05}
    print(f"recall     {len(clear & later_found) / len(clear):.4f} of those 0.05 above the threshold")
    print(f"precision  {len(found & truth.keys()) / len(found):.4f}")
    print(f"MinHash    {len(records) / ours:9.0f} records/s  ({ours:.2f} s)")
    print(f"all pairs  {len(records) / theirs:9.0f} records/s  ({theirs:.2f} s)  ratio {theirs / ours:.0f}")


def edited(text: str, draw: random.Random) -> str:
    """A copy with up to 12 % of its characters changed, in places of one to six."""
    letters = list(text)
    left = round(len(letters) * draw.uniform(0.0, 0.12))
    while left > 0:
        size = min(left, draw.randint(1, 6))
        place = draw.randrange(len(letters) - size)
        way = draw.choice(("replace", "remove", "double"))
        if way == "replace":
            letters[place : place + size] = draw.choices(text, k=size)
        elif way == "remove":
            del letters[place : place + size]
        else:
            letters[place:place] = letters[place : place + size]
        left -= size
    return "".join(letters)


def exact(texts: Sequence[str], threshold: float) -> dict[tuple[int, int], float]:
    """Similarities of all pairs (later, earlier) whose sets of runs are as alike as the threshold or more."""
    sets = [frozenset(grams(text, LENGTH).tolist()) for text in texts]
    found: dict[tuple[int, int], float] = {}
    for later, one in enumerate(sets):
        for earlier in range(later):
            other = sets[earlier]
            shared = len(one & other)
            if shared >= threshold * (len(one) + len(other) - shared):
                found[later, earlier] = shared / (len(one) + len(other) - shared)
    return found


def corpora(data: Path, settings: DedupSettings) -> None:
    """What is left out within and across the published samples."""
    begun = time.perf_counter()
    tests = index_of([(name, read(data, *place)) for name, place in TESTS.items()], settings.overlap)
    held: list[list[Signatures]] = []
    for place in CORPORA.values():
        held.append(list(sign(list(read(data, *place)), {"u": 0}, tests)))
    decision = decide(settings, held)
    spent = time.perf_counter() - begun
    names = list(CORPORA)
    counts: Counter[tuple[str, str, str]] = Counter()
    for number in np.flatnonzero(decision.verdicts != KEPT).tolist():
        verdict, because = int(decision.verdicts[number]), int(decision.because[number])
        why = ("", "equal", "alike", "leak, equal or opens alike", "leak, shared runs")[verdict]
        other = names[decision.sources[because]] if verdict <= ALIKE else tests.names[because]
        counts[names[decision.sources[number]], why, other] += 1
    total = Counter(names[number] for number in decision.sources.tolist())
    sizes = dict(zip(tests.names, tests.records, strict=True))
    print(f"{len(decision.verdicts)} records in {spent:.1f} s; test sets: {sizes}")
    for (name, why, other), number in sorted(counts.items()):
        print(f"{name:<14}{why:<28}{other:<14}{number:>6}  of {total[name]}")


def leaks(data: Path, settings: DedupSettings, seed: int) -> None:
    """How much of planted test data is found, and how much is found where none was planted."""
    draw = random.Random(seed)
    tests = [each for each in read(data, *TESTS["cmtmedqa"]) if isinstance(each, Dialogue)]
    index = index_of([("cmtmedqa", tests)], settings.overlap)
    book = words_of(next(itertools.islice(read(data, *CORPORA["textbook"]), 5, None)))[:400]
    position = Position("s", "u", 0)

    def share(planted: Sequence[Record]) -> str:
        found = sum(index.find(record, words_of(record)) is not None for record in planted)
        return f"{found / len(planted):.4f}  of {len(planted)}"

    def text(content: str) -> Record:
        return TextRecord(book + content + book, position)

    def talk(question: str) -> Record:
        turns = (Turn("user", f"您好，{question}谢谢医生"), Turn("assistant", "请到医院就诊。"))
        return Dialogue(turns, position)

    answers = ["".join(turn.content for turn in each.turns if turn.role == "assistant") for each in tests]
    answers = [each for each in answers if len(each) >= 60]
    asked = [next(turn.content for turn in each.turns if turn.role == "user") for each in tests]
    asked = [each for each in asked if len(folded(each)) >= LEAST]
    print("answers in a text           ", share([text(each) for each in answers]))
    print("answers, up to 12 % changed ", share([text(edited(each, draw)) for each in answers]))
    print("question, other words around", share([talk(each) for each in asked]))
    print("two fifths of a question    ", share([text(each[: len(each) * 2 // 5]) for each in asked]))
    others = [record for place in CORPORA.values() for record in read(data, *place)]
    print("published records           ", share(others))
    one = sum(_meets(grams(words_of(record), RUN), index.runs) for record in others)
    print(f"with one run in common       {one / len(others):.4f}  of {len(others)}")


def _meets(own: Hashes, runs: Hashes) -> bool:
    places = np.minimum(np.searchsorted(runs, own), len(runs) - 1)
    return bool((runs[places] == own).any())


def decide(settings: DedupSettings, sources: Sequence[Sequence[Signatures]]) -> Decision:
    with TemporaryDirectory() as scratch:
        decision = Decision(settings, Path(scratch))
        decision.decide(sources)
    return decision


def read(data: Path, name: str, kind: Kind) -> Iterator[Record]:
    """Records of a published sample."""
    source = Source(name="s", uri=str(data / name), kind=kind)
    for record in read_object(str(data / name), source, None):
        if not isinstance(record, Rejected):
            yield _moved(record)


def _moved(record: Record) -> Record:
    return replace(record, position=replace(record.position, uri="u"))


if __name__ == "__main__":
    main()
