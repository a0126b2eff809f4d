"""Tokenised samples and the micro-batches made of them: what passes from data to training.

A *segment* is one causal sequence that sees nothing but itself. A *sample* is what the batch size counts:
one dialogue (1 segment), one pretraining window (one or several spans of documents), one ranked prompt
(K segments, one an answer), one PPO prompt (1 segment without targets).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
import torch


@dataclass(frozen=True, slots=True)
class Segment:
    """One isolated sequence. ``ids`` int32 [length]; ``target`` bool [length]: token is to be predicted.

    ``target[0]`` is always False: nothing stands before the first token.
    """

    ids: npt.NDArray[np.int32]
    target: npt.NDArray[np.bool_]

    @classmethod
    def of_document(cls, ids: npt.NDArray[np.int32]) -> Segment:
        """A text of pretraining: every token but the first is a target."""
        target = np.ones(len(ids), dtype=np.bool_)
        target[:1] = False
        return cls(ids, target)


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample; ``ranks`` (0 the best, equal values are ties) only for rankings, one a segment."""

    index: int
    segments: tuple[Segment, ...]
    ranks: tuple[int, ...] | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens over all segments."""
        return sum(len(segment.ids) for segment in self.segments)

    @property
    def targets(self) -> int:
        """Number of tokens to be predicted, over all segments."""
        return int(sum(segment.target.sum() for segment in self.segments))


class SampleSet(Protocol):
    """One split of a token cache. Sizes are known without reading tokens."""

    def __len__(self) -> int:
        """Number of samples."""
        ...

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each sample, int64 [samples]."""
        ...

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        """Targets of each sample, int64 [samples]."""
        ...

    @property
    def groups(self) -> npt.NDArray[np.int32]:
        """Mixture group of each sample, int32 [samples]; indexes ``group_names``."""
        ...

    @property
    def group_names(self) -> Sequence[str]:
        """Names of the mixture groups (sources or categories)."""
        ...

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        """Samples by index, in the order asked for."""
        ...


class _Tensors:
    """Tensors that go to a device together."""

    __slots__ = ()

    def to(self, device: torch.device) -> Self:
        """The same on ``device``."""
        return self._changed(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Self:
        """The same in page-locked memory, from where a GPU copies while it computes."""
        return self._changed(torch.Tensor.pin_memory)

    def _changed(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Self:
        this: Any = self  # a dataclass
        changes: dict[str, Any] = {}
        for field in fields(this):
            held = getattr(self, field.name)
            if isinstance(held, torch.Tensor):
                changes[field.name] = change(held)
            elif isinstance(held, _Tensors):
                changes[field.name] = held._changed(change)
        same: Self = replace(this, **changes)
        return same


@dataclass(frozen=True, slots=True)
class PackedRow(_Tensors):
    """S segments one after the other in a single row of T tokens: what a model is called with.

    Attention must be isolated by segment (:mod:`zhongjing.model.attention`). Where segments begin is known on
    the device, for kernels, and on the host, so that nothing has to wait for the device.
    """

    input_ids: torch.Tensor  # int64 [1, T]
    position_ids: torch.Tensor  # int64 [1, T], from 0 in every segment
    edges: torch.Tensor  # int32 [S + 1]: where each segment begins, then T
    lengths: tuple[int, ...]  # of the segments; at least 1 each

    @classmethod
    def of(cls, segments: Sequence[npt.NDArray[np.integer]]) -> PackedRow:
        """A row of the token ids of segments; at least one, none of them empty."""
        lengths = tuple(len(ids) for ids in segments)
        if not lengths or min(lengths) < 1:
            raise ValueError(f"segments of {lengths} tokens make no row")
        ids = np.concatenate(segments).astype(np.int64)
        positions = np.concatenate([np.arange(length, dtype=np.int64) for length in lengths])
        edges = np.cumsum([0, *lengths], dtype=np.int32)
        return cls(
            torch.from_numpy(ids)[None], torch.from_numpy(positions)[None], torch.from_numpy(edges), lengths
        )

    @property
    def tokens(self) -> int:
        """T."""
        return self.input_ids.shape[1]

    @property
    def ends(self) -> torch.Tensor:
        """Place of the last token of each segment, int64 [S]."""
        return self.edges[1:].long() - 1

    def twice(self) -> PackedRow:
        """The row followed by itself: [1, 2 T]."""
        return PackedRow(
            self.input_ids.repeat(1, 2),
            self.position_ids.repeat(1, 2),
            torch.cat([self.edges, self.edges[1:] + self.tokens]),
            self.lengths * 2,
        )


@dataclass(frozen=True, slots=True)
class MicroBatch(_Tensors):
    """What one forward pass takes: segments of whole samples in a packed row, and what is asked of them."""

    row: PackedRow
    targets: torch.Tensor  # bool [1, T]
    segment_samples: torch.Tensor  # int64 [S]: position of the segment's sample within the micro-batch
    segment_ranks: torch.Tensor  # int64 [S]: rank within its sample, 0 the best; 0 where there are none
    sample_indices: tuple[int, ...]  # index in the SampleSet; empty in a dummy
    tokens: int  # T; 0 in a dummy
    target_tokens: int

    @property
    def is_dummy(self) -> bool:
        """A micro-batch of no weight that keeps the ranks in step (ZeRO-2 communicates in every backward)."""
        return not self.sample_indices
