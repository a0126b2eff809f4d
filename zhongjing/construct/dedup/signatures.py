"""The first pass: a signature of each record, part by part, by any process.

A part's signatures are one object of the store, so an interrupted run goes on with the next part. A record
that cannot be read has none. Of a record: 512 bytes of signature, 16 of content, 8 of place, 5 of what it
leaks.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

from zhongjing.construct.dedup.settings import LENGTH, PERMUTATIONS, SEED
from zhongjing.construct.parts import Entry
from zhongjing.data.grams import content, grams, words_of
from zhongjing.data.leaks import LeakIndex
from zhongjing.data.records import Record, Rejected
from zhongjing.storage.heartbeat import beat

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

ALGORITHM = int(RMinHash.ALGORITHM_VERSION)
"""Release of rensa's signatures: those of another one cannot be compared."""
_LISTEN_EVERY = 64  # records


@dataclass(frozen=True, slots=True)
class Signatures:
    """Of the records of a part, a row each.

    Attributes:
        digests: (records, permutations).
        contents: (records, 2): hash of all that the record says.
        objects: (records,): place of the object among the source's.
        indexes: (records,): of the record in its object.
        leaks: (records,): the test set that it leaks, -1: none.
        shared: (records,): whether by runs of characters, and not as a whole.
    """

    digests: NDArray[np.uint32]
    contents: NDArray[np.uint64]
    objects: NDArray[np.int32]
    indexes: NDArray[np.int32]
    leaks: NDArray[np.int32]
    shared: NDArray[np.bool_]

    def as_bytes(self) -> bytes:
        """For the store."""
        held = io.BytesIO()
        np.savez(
            held,
            digests=self.digests,
            contents=self.contents,
            objects=self.objects,
            indexes=self.indexes,
            leaks=self.leaks,
            shared=self.shared,
        )
        return held.getvalue()

    @classmethod
    def of_bytes(cls, data: bytes) -> Signatures:
        """As :meth:`as_bytes` wrote it."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return cls(*(held[name] for name in cls.__slots__))


def digests_of(texts: Sequence[str]) -> NDArray[np.uint32]:
    """Signatures of folded texts, a row each."""
    if not texts:
        return np.zeros((0, PERMUTATIONS), np.uint32)
    runs = [grams(text, LENGTH) for text in texts]
    ends = np.cumsum([0, *map(len, runs)]).astype(np.uint64)
    flat = np.concatenate(runs)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(flat, ends, PERMUTATIONS, SEED)
    return np.asarray(matrix.to_rows(), dtype=np.uint32)


def sign(records: Sequence[Record], places: dict[str, int], tests: LeakIndex | None) -> Iterator[Signatures]:
    """Signatures of records, some at a time.

    Args:
        records: in their order.
        places: of their objects among the source's.
        tests: what they are not to have anything of.
    """
    for begin in range(0, len(records), _LISTEN_EVERY):
        some = records[begin : begin + _LISTEN_EVERY]
        words = [words_of(record) for record in some]
        found = [None if tests is None else tests.find(*each) for each in zip(some, words, strict=True)]
        yield Signatures(
            digests_of(words),
            np.frombuffer(b"".join(map(content, words)), np.uint64).reshape(-1, 2),
            np.array([places[record.position.uri] for record in some], np.int32),
            np.array([record.position.index for record in some], np.int32),
            np.array([-1 if leak is None else leak[0] for leak in found], np.int32),
            np.array([leak is not None and leak[1] == 1 for leak in found], np.bool_),
        )


@dataclass(frozen=True)
class SignatureMaker:
    """Makes signatures of the parts of a source. It may be pickled into any process.

    Attributes:
        store: where they go.
        uri: folder for them.
        inputs: URIs of the source's objects, in their order.
        tests: object with the index of test sets; None: there are none.
    """

    store: ObjectStore
    uri: str
    inputs: tuple[str, ...]
    tests: str | None = None
    _index: list[LeakIndex] = field(default_factory=list, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        # Each process loads the index itself: it is large.
        return {**self.__dict__, "_index": []}

    def made(self) -> set[str]:
        """Names of the parts that are there."""
        begin = f"{self.uri}/"
        return {info.uri.removeprefix(begin).removesuffix(".npz") for info in self.store.list(self.uri)}

    def make(
        self, name: str, records: Sequence[Entry], listen: Callable[[float], None] = lambda _: None
    ) -> None:
        """Stores the signatures of a part's records."""
        if self.tests is not None and not self._index:
            self._index.append(LeakIndex.of_bytes(bytes(self.store.get(self.tests))))
        readable = [entry for entry in records if not isinstance(entry, Rejected)]
        places = {uri: place for place, uri in enumerate(self.inputs)}
        blocks: list[Signatures] = [_NOTHING]
        for number, block in enumerate(sign(readable, places, self._index[0] if self._index else None)):
            blocks.append(block)
            beat()
            listen(min(1.0, (number + 1) * _LISTEN_EVERY / len(readable)))
        joined = (np.concatenate([getattr(one, field) for one in blocks]) for field in Signatures.__slots__)
        self.store.put(f"{self.uri}/{name}.npz", Signatures(*joined).as_bytes())

    def read(self) -> Iterator[Signatures]:
        """Signatures of all parts, in their order."""
        for name in sorted(self.made()):
            yield Signatures.of_bytes(bytes(self.store.get(f"{self.uri}/{name}.npz")))


_NOTHING = Signatures(
    np.zeros((0, PERMUTATIONS), np.uint32),
    np.zeros((0, 2), np.uint64),
    np.zeros(0, np.int32),
    np.zeros(0, np.int32),
    np.zeros(0, np.int32),
    np.zeros(0, np.bool_),
)
