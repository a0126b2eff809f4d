"""The last pass: the records that the decision keeps, as a step of a construction."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from zhongjing.config.sources import Storage
from zhongjing.construct.access import opened
from zhongjing.construct.dedup.signatures import digests_of
from zhongjing.construct.step import Outcome
from zhongjing.data.grams import words_of
from zhongjing.data.records import Record

NAME = "dedup"
VERSION = 1


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Records of a source that are left out: about 100 bytes each in memory.

    Attributes:
        objects, indexes: where each stands.
        labels: number of its reason in ``reasons``.
        reasons: in words.
    """

    objects: NDArray[np.int32]
    indexes: NDArray[np.int32]
    labels: NDArray[np.int32]
    reasons: tuple[str, ...]

    def as_bytes(self) -> bytes:
        """For the store."""
        held = io.BytesIO()
        np.savez(
            held,
            objects=self.objects,
            indexes=self.indexes,
            labels=self.labels,
            reasons=np.array(self.reasons, dtype=str),
        )
        return held.getvalue()

    @classmethod
    def of_bytes(cls, data: bytes) -> LeftOut:
        """As :meth:`as_bytes` wrote it."""
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return cls(held["objects"], held["indexes"], held["labels"], tuple(map(str, held["reasons"])))

    def by_place(self) -> dict[tuple[int, int], str]:
        """Reasons by object and record."""
        rows = zip(self.objects.tolist(), self.indexes.tolist(), self.labels.tolist(), strict=True)
        return {(place, index): self.reasons[label] for place, index, label in rows}


@dataclass(frozen=True)
class DedupStep:
    """Leaves out what was decided.

    Attributes:
        decided: all that the decision follows from: settings, sources and test sets by their digests.
        storage: where the decision is.
        decision: object with :class:`LeftOut`.
        inputs: URIs of the source's objects, in their order.
    """

    decided: Mapping[str, object]
    storage: Storage
    decision: str
    inputs: Sequence[str]
    name: str = NAME
    version: int = VERSION
    _held: list[dict[tuple[int, int], str]] = field(default_factory=list, repr=False, compare=False)
    _places: dict[str, int] = field(default_factory=dict, repr=False, compare=False)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_held": [], "_places": {}}

    def parameters(self) -> dict[str, object]:
        """All that the decision follows from."""
        return dict(self.decided)

    def apply(self, record: Record) -> Outcome:
        """Keeps a record, or counts why it is left out."""
        if not self._held:
            self._places.update({uri: place for place, uri in enumerate(self.inputs)})
            data = bytes(opened(self.storage).get(self.decision))
            self._held.append(LeftOut.of_bytes(data).by_place())
        reason = self._held[0].get((self._places[record.position.uri], record.position.index))
        return Outcome((record,)) if reason is None else Outcome(counts={reason: 1})


@dataclass(frozen=True)
class SigningStep:
    """Signs records and keeps them as they are: what a plan measures the speed of."""

    name: str = "sign"
    version: int = VERSION

    def parameters(self) -> dict[str, object]:
        """None."""
        return {}

    def apply(self, record: Record) -> Outcome:
        """Keeps the record."""
        digests_of([words_of(record)])
        return Outcome((record,))
