"""Tokenised samples and the micro-batches made of them: what passes from data to training.

A *segment* is one causal sequence that sees nothing but itself. A *sample* is what the batch size counts:
one dialogue (1 segment), one pretraining window (one or several section pieces), one ranked prompt
(K segments, one an answer), one PPO prompt (1 segment without targets).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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


@dataclass(slots=True)
class MicroBatch:
    """Rows of one forward pass; R rows, L columns.

    Two layouts give the same loss to rounding: *padded* (a segment a row, right padding) and *packed*
    (R = 1, segments one after the other, ``position_ids`` restarting at 0, attention isolated by them).
    """

    input_ids: torch.Tensor  # int64 [R, L]
    position_ids: torch.Tensor  # int64 [R, L], restarts at 0 at every segment; 0 on padding
    attention_mask: torch.Tensor | None  # int64 [R, L], 1 on tokens; None in the packed layout
    targets: torch.Tensor  # bool [R, L]
    segment_rows: torch.Tensor  # int64 [S]: row of each segment
    segment_ends: torch.Tensor  # int64 [S]: column of the last token of each segment
    segment_samples: torch.Tensor  # int64 [S]: position of the segment's sample within the micro-batch
    segment_ranks: torch.Tensor  # int64 [S]: rank within its sample, 0 the best; 0 where there are none
    sample_indices: list[int]  # index in the SampleSet; empty in a filler
    tokens: int
    target_tokens: int

    @property
    def is_filler(self) -> bool:
        """A micro-batch of no weight that keeps the ranks in step (ZeRO-2 communicates in every backward)."""
        return not self.sample_indices

    def to(self, device: torch.device) -> MicroBatch:
        """The same micro-batch on ``device``."""

        def move(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.to(device, non_blocking=True)

        return MicroBatch(
            move(self.input_ids),
            move(self.position_ids),
            None if self.attention_mask is None else move(self.attention_mask),
            move(self.targets),
            move(self.segment_rows),
            move(self.segment_ends),
            move(self.segment_samples),
            move(self.segment_ranks),
            self.sample_indices,
            self.tokens,
            self.target_tokens,
        )
