"""Test sets as an index, and which records have something of them.

A record leaks a test record if it is equal to it, opens with the same question, or has half (``overlap``) of
the runs of 13 characters of one of its passages: its opening question, all that the user says, all answers,
or a text. Rules in print: GPT-3 removes what shares a run of 13 words (Brown et al. 2020, appendix C; so do
The Pile's tools); Llama 2 asks for a share of the test item's tokens (Touvron et al. 2023, appendix A.6);
GPT-4 looks for 50 characters, of letters and digits alone (OpenAI 2023, appendix C). One run of 13 characters
is no leak in medical Chinese: stock phrases are longer.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zhongjing.data.grams import Hashes, content, folded, grams, words_of
from zhongjing.data.records import Ranking, Record, TextRecord
from zhongjing.data.split import unit_of

RUN = 13
"""Characters of a run. 13 is GPT-3's number, of words; of characters it is stricter."""
LEAST = 20
"""Characters of a passage below which only equal ones count."""
EQUAL, SHARED = 0, 1
"""How a record leaks: it is equal or opens alike; or it shares runs of characters."""


@dataclass(frozen=True)
class LeakIndex:
    """Passages of test sets by their runs; about 16 bytes a character of them.

    Attributes:
        names: of the test sets.
        records: of each.
        hashes: sorted hashes (16 bytes) of records and openings, by test set: ``hash -> test set``.
        runs: sorted.
        begins: where the passages of a run begin in ``passages``; one more than runs.
        passages: numbers of passages.
        needed: runs of a passage that are too many.
        owner: test set of a passage.
    """

    names: tuple[str, ...]
    records: tuple[int, ...]
    hashes: dict[bytes, int]
    runs: Hashes
    begins: NDArray[np.int64]
    passages: NDArray[np.int32]
    needed: NDArray[np.int32]
    owner: NDArray[np.int32]
    length: int

    def find(self, record: Record, words: str) -> tuple[int, int] | None:
        """The first test set that a record leaks, and how; None: none.

        Args:
            record: as it is.
            words: of :func:`~zhongjing.data.grams.words_of`.
        """
        for digest in (content(words), unit_of(record)):
            if digest in self.hashes:
                return self.hashes[digest], EQUAL
        if not len(self.runs) or len(words) < self.length:
            return None
        own = np.unique(grams(words, self.length))
        places = np.searchsorted(self.runs, own)
        places[places == len(self.runs)] = 0
        places = places[self.runs[places] == own]
        if not len(places):
            return None
        begins, ends = self.begins[places], self.begins[places + 1]
        hit = np.concatenate([self.passages[begin:end] for begin, end in zip(begins, ends, strict=True)])
        numbers, counts = np.unique(hit, return_counts=True)
        leaked = numbers[counts >= self.needed[numbers]]
        return (int(self.owner[leaked].min()), SHARED) if len(leaked) else None

    def as_bytes(self) -> bytes:
        """For the store."""
        held = io.BytesIO()
        np.savez(
            held,
            names=np.array(self.names, dtype=str),
            records=np.array(self.records, np.int64),
            keys=np.frombuffer(b"".join(self.hashes), np.uint8),
            sets=np.fromiter(self.hashes.values(), np.int32, len(self.hashes)),
            runs=self.runs,
            begins=self.begins,
            passages=self.passages,
            needed=self.needed,
            owner=self.owner,
            length=np.array(self.length),
        )
        return held.getvalue()

    @classmethod
    def of_bytes(cls, data: bytes) -> LeakIndex:
        """As :meth:`as_bytes` wrote it."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            keys = held["keys"].tobytes()
            digests = [keys[begin : begin + 16] for begin in range(0, len(keys), 16)]
            return cls(
                tuple(map(str, held["names"])),
                tuple(map(int, held["records"])),
                dict(zip(digests, map(int, held["sets"]), strict=True)),
                held["runs"],
                held["begins"],
                held["passages"],
                held["needed"],
                held["owner"],
                int(held["length"]),
            )


@dataclass(frozen=True)
class HeldOut:
    """Test data of a pipeline, as its stages keep it out.

    Attributes:
        units: what no record may open with (:func:`~zhongjing.data.split.unit_of`).
        indexes: passages that no record may share.
    """

    units: frozenset[bytes] | set[bytes] = frozenset()
    indexes: tuple[LeakIndex, ...] = ()

    def __or__(self, other: HeldOut) -> HeldOut:
        return HeldOut(self.units | other.units, self.indexes + other.indexes)

    def has(self, record: Record) -> bool:
        """Whether a record has something of them."""
        if unit_of(record) in self.units:
            return True
        if not self.indexes:
            return False
        words = words_of(record)
        return any(index.find(record, words) is not None for index in self.indexes)


def index_of(sets: Sequence[tuple[str, Iterable[Record]]], overlap: float) -> LeakIndex:
    """Makes the index of test sets.

    Args:
        sets: their records by name; a record of two sets counts for the first.
        overlap: fraction of a passage's runs that a record may not have.
    """
    hashes: dict[bytes, int] = {}
    runs: list[Hashes] = []
    needed: list[int] = []
    owner: list[int] = []
    counts = []
    seen: set[bytes] = set()
    for number, (_, records) in enumerate(sets):
        count = 0
        for record in records:
            count += 1
            for digest in (content(words_of(record)), unit_of(record)):
                hashes.setdefault(digest, number)
            for passage in passages_of(record):
                digest = content(passage)
                if len(passage) < LEAST or digest in seen:
                    continue
                seen.add(digest)
                own = np.unique(grams(passage, RUN))
                runs.append(own)
                needed.append(max(1, math.ceil(overlap * len(own))))
                owner.append(number)
        counts.append(count)
    every = np.concatenate(runs) if runs else np.zeros(0, np.uint64)
    lengths = [len(own) for own in runs]
    numbers = np.repeat(np.arange(len(runs), dtype=np.int32), lengths)
    order = np.argsort(every, kind="stable")
    unique, first = np.unique(every[order], return_index=True)
    return LeakIndex(
        tuple(name for name, _ in sets),
        tuple(counts),
        hashes,
        unique,
        np.append(first, len(every)).astype(np.int64),
        numbers[order],
        np.array(needed, np.int32),
        np.array(owner, np.int32),
        RUN,
    )


def passages_of(record: Record) -> list[str]:
    """What of a test record is looked for in others, folded."""
    if isinstance(record, TextRecord):
        return [folded(record.text)]
    turns = record.prompt if isinstance(record, Ranking) else record.turns
    asked = [turn.content for turn in turns if turn.role == "user"]
    answered = [turn.content for turn in turns if turn.role == "assistant"]
    answers = [folded(each) for each in record.answers] if isinstance(record, Ranking) else []
    whole = [folded("".join(each)) for each in (asked[:1], asked, answered)]
    return list(dict.fromkeys([*whole, *answers]))
