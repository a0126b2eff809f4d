"""The decision: which records are left out, and because of which one. By one process, after all signatures.

Of records that are alike the earliest stays, in the order of the sources and within them. Leaks go first, and
no other record is left out because of them. Records are compared where a band of their signatures is equal
(locality-sensitive hashing), by the share of equal values, which estimates the Jaccard similarity. Of a chain
of records that are alike, each to the next, the first stays.

Signatures are in a file of this machine (512 bytes a record), in memory are up to 150 bytes a
record, while equal ones are looked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zhongjing.construct.dedup.settings import PERMUTATIONS, DedupSettings
from zhongjing.construct.dedup.signatures import Signatures
from zhongjing.storage.heartbeat import beat

KEPT: Final = 0
EQUAL: Final = 1
ALIKE: Final = 2
LEAKS: Final = 3
SHARES: Final = 4
MEMORY_BYTES: Final = 150
"""Of a record, in this process."""
DISK_BYTES: Final = 4 * PERMUTATIONS
_MIX = np.uint64(0x9E3779B97F4A7C15)
_COMPARED = 1 << 14  # rows at a time: 8 MiB


class Decision:
    """Verdicts on all records, in the order of the sources.

    Attributes:
        verdicts: :data:`KEPT`, :data:`EQUAL` or :data:`ALIKE` to an earlier one, :data:`LEAKS` or
            :data:`SHARES` of a test set.
        because: number of the earlier record, or of the test set.
        sources: number of the source of each record.
        objects, indexes: where each record stands.
    """

    def __init__(self, settings: DedupSettings, scratch: Path) -> None:
        self._settings = settings
        self._path = scratch / "signatures"
        self.verdicts: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self.because: NDArray[np.int64] = np.zeros(0, np.int64)
        self.sources: NDArray[np.int32] = np.zeros(0, np.int32)
        self.objects: NDArray[np.int32] = np.zeros(0, np.int32)
        self.indexes: NDArray[np.int32] = np.zeros(0, np.int32)

    def decide(self, sources: Sequence[Iterable[Signatures]]) -> None:
        """Decides on all records.

        Args:
            sources: the signatures of each source, by parts.
        """
        contents = self._gather(sources)
        self._equal(contents)
        del contents
        if len(self.verdicts):
            digests = np.memmap(self._path, np.uint32, "r", shape=(len(self.verdicts), PERMUTATIONS))
            for band in range(self._settings.bands):
                self._band(digests, band * self._settings.rows)
                beat()

    def _gather(self, sources: Sequence[Iterable[Signatures]]) -> NDArray[np.uint64]:
        held: list[list[NDArray[Any]]] = [[] for _ in range(6)]
        with self._path.open("wb") as file:
            for number, parts in enumerate(sources):
                for part in parts:
                    file.write(np.ascontiguousarray(part.digests).data)
                    own = np.full(len(part.indexes), number, np.int32)
                    fields: tuple[NDArray[Any], ...] = (
                        own,
                        part.objects,
                        part.indexes,
                        part.leaks,
                        part.shared,
                        part.contents,
                    )
                    for place, each in zip(held, fields, strict=True):
                        place.append(each)
                    beat()
        if not held[0]:
            return np.zeros((0, 2), np.uint64)
        joined: list[NDArray[Any]] = [np.concatenate(each) for each in held]
        self.sources, self.objects, self.indexes, leaks, shared, found = joined
        self.verdicts = np.where(leaks >= 0, np.where(shared, SHARES, LEAKS), KEPT).astype(np.uint8)
        self.because = leaks.astype(np.int64)
        return found

    def _equal(self, contents: NDArray[np.uint64]) -> None:
        """Leaves out what says the same as an earlier record."""
        left = np.flatnonzero(self.verdicts == KEPT)
        whole = np.ascontiguousarray(contents[left]).view("V16").ravel()
        _, first, group = np.unique(whole, return_index=True, return_inverse=True)  # first: the earliest
        earliest = left[first[group]]
        later = earliest != left
        self.verdicts[left[later]] = EQUAL
        self.because[left[later]] = earliest[later]

    def _band(self, digests: NDArray[np.uint32], begin: int) -> None:
        """Compares what is still there and has this band in common."""
        left = np.flatnonzero(self.verdicts == KEPT)
        keys = np.zeros(len(left), np.uint64)
        with np.errstate(over="ignore"):
            for row in range(begin, begin + self._settings.rows):
                for some in range(0, len(left), _COMPARED):
                    block = slice(some, some + _COMPARED)
                    keys[block] = (keys[block] ^ digests[left[block], row]) * _MIX
                    keys[block] ^= keys[block] >> np.uint64(29)
        order = np.argsort(keys, kind="stable")  # within a key in the order of the records
        ordered = keys[order]
        edges = np.flatnonzero(np.diff(ordered)) + 1
        begins, ends = np.append(0, edges), np.append(edges, len(ordered))
        for place in np.flatnonzero(ends - begins > 1):
            self._group(digests, left[order[begins[place] : ends[place]]])

    def _group(self, digests: NDArray[np.uint32], records: NDArray[np.int64]) -> None:
        """Compares the first of a group with the others, then the first that is left, and so on."""
        needed = self._settings.threshold * PERMUTATIONS
        while len(records) > 1:
            first, others = records[0], records[1:]
            alike = np.concatenate(
                [
                    (digests[others[begin : begin + _COMPARED]] == digests[first]).sum(axis=1) >= needed
                    for begin in range(0, len(others), _COMPARED)
                ]
            )
            self.verdicts[others[alike]] = ALIKE
            self.because[others[alike]] = first
            records = others[~alike]
