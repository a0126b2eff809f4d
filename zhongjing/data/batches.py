"""Micro-batches of one optimizer step.

A step is a fixed set of samples. How it is dealt to ranks and cut into micro-batches follows from the
samples' sizes alone, so every rank works out the same plan and reads only its own samples. Every rank gets
the same number of micro-batches: ZeRO-2 communicates in every backward, and unequal counts hang or abort.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch

from zhongjing.data.samples import MicroBatch, Sample, SampleSet, Segment

BatchLayout = Literal["padded", "packed"]


def deal(
    sizes: Sequence[int],
    world_size: int,
    micro_batch_size: int,
    micro_batch_tokens: int | None = None,
    layout: BatchLayout = "padded",
) -> list[list[list[int]]]:
    """Deals the samples of one step to ranks and micro-batches.

    The longest come first, so what does not fit into memory shows in the first forward pass; and what runs
    at the same time on different ranks is of similar size, because every backward waits for the slowest.
    Padded rows of one micro-batch are neighbours in length, so that little is padding. Packed rows need no
    such neighbours: there the samples themselves are dealt out, which evens the ranks out to a few percent.

    Args:
        sizes: tokens of each sample of the step.
        world_size: number of ranks.
        micro_batch_size: most samples of a micro-batch.
        micro_batch_tokens: most tokens of a micro-batch, padding counted in the padded layout; None: no
            bound. A sample above it gets a micro-batch of its own.
        layout: whether rows are padded to the longest.

    Returns:
        For each rank its micro-batches, each a list of positions in ``sizes``; an empty list is a filler.
        All ranks have the same number; each position occurs exactly once.
    """
    if world_size < 1 or micro_batch_size < 1:
        raise ValueError(f"world_size {world_size} and micro_batch_size {micro_batch_size} must be positive")
    order = sorted(range(len(sizes)), key=lambda position: (-sizes[position], position))
    if layout == "packed":
        shares = _to_the_lightest([[position] for position in order], world_size, sizes)
        ranks = [
            _cut(
                [position for part in share for position in part], sizes, micro_batch_size, micro_batch_tokens
            )
            for share in shares
        ]
    else:
        batches = _cut(order, sizes, micro_batch_size, micro_batch_tokens, padded=True)
        wanted = -(-len(batches) // world_size) * world_size
        ranks = _to_the_lightest(_halved(batches, wanted, sizes), world_size, sizes)
    most = max(map(len, ranks))
    return [[*found, *[[]] * (most - len(found))] for found in (_halved(rank, most, sizes) for rank in ranks)]


def _cut(
    order: Sequence[int],
    sizes: Sequence[int],
    micro_batch_size: int,
    micro_batch_tokens: int | None,
    *,
    padded: bool = False,
) -> list[list[int]]:
    """Cuts samples, the longest first, into micro-batches within both bounds."""
    batches: list[list[int]] = []
    cost = 0
    for position in order:
        # The first sample of a padded micro-batch is its longest: it sets the width of all rows.
        width = sizes[batches[-1][0]] if batches and padded else sizes[position]
        full = not batches or len(batches[-1]) >= micro_batch_size
        if full or (micro_batch_tokens is not None and cost + width > micro_batch_tokens):
            batches.append([])
            cost, width = 0, sizes[position]
        batches[-1].append(position)
        cost += width
    return batches


def _to_the_lightest(
    parts: Sequence[list[int]], world_size: int, sizes: Sequence[int]
) -> list[list[list[int]]]:
    """Deals in rounds, one part a rank: the heaviest part of a round to the rank that has least so far."""
    ranks: list[list[list[int]]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for first in range(0, len(parts), world_size):
        together = sorted(parts[first : first + world_size], key=lambda part: -_total(part, sizes))
        lightest_first = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, part in zip(lightest_first, together, strict=False):
            ranks[rank].append(part)
            loads[rank] += _total(part, sizes)
    return ranks


def _halved(batches: Sequence[list[int]], wanted: int, sizes: Sequence[int]) -> list[list[int]]:
    """Halves the largest micro-batches until there are ``wanted``, as far as they can be halved."""
    found = list(batches)
    while len(found) < wanted:
        candidates = [index for index, batch in enumerate(found) if len(batch) > 1]
        if not candidates:
            break
        index = max(candidates, key=lambda i: (_total(found[i], sizes), -i))
        half = (len(found[index]) + 1) // 2
        found[index : index + 1] = [found[index][:half], found[index][half:]]
    return found


def _total(part: Sequence[int], sizes: Sequence[int]) -> int:
    return sum(sizes[position] for position in part)


def plan_step(  # noqa: PLR0917
    samples: Sequence[Sample],
    rank: int,
    world_size: int,
    micro_batch_size: int,
    micro_batch_tokens: int | None,
    pad_id: int,
    layout: BatchLayout = "padded",
) -> list[MicroBatch]:
    """The micro-batches of ``rank``, given all samples of the step (see :func:`deal`, :func:`fetch_step`).

    Args:
        samples: the step's samples, the same on every rank and in the same order.
        rank: whose micro-batches.
        world_size: number of ranks.
        micro_batch_size: most samples of a micro-batch.
        micro_batch_tokens: most tokens of a micro-batch, or None.
        pad_id: token id that fills rows up.
        layout: padded rows, or one packed row.

    Returns:
        As many micro-batches as every other rank gets; fillers have no targets and no samples.
    """
    sizes = [sample.tokens for sample in samples]
    mine = deal(sizes, world_size, micro_batch_size, micro_batch_tokens, layout)[rank]
    return [collate([samples[position] for position in batch], pad_id, layout) for batch in mine]


def fetch_step(  # noqa: PLR0917
    sample_set: SampleSet,
    indices: Sequence[int],
    rank: int,
    world_size: int,
    micro_batch_size: int,
    micro_batch_tokens: int | None,
    pad_id: int,
    layout: BatchLayout = "padded",
) -> list[MicroBatch]:
    """As :func:`plan_step`, from a sample set: sizes come from its index, and only own samples are read.

    Args:
        sample_set: where the samples are.
        indices: the step's samples, the same on every rank and in the same order.
        rank: whose micro-batches.
        world_size: number of ranks.
        micro_batch_size: most samples of a micro-batch.
        micro_batch_tokens: most tokens of a micro-batch, or None.
        pad_id: token id that fills rows up.
        layout: padded rows, or one packed row.

    Returns:
        As many micro-batches as every other rank gets.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    sizes: list[int] = sample_set.tokens[chosen].tolist()
    mine = deal(sizes, world_size, micro_batch_size, micro_batch_tokens, layout)[rank]
    wanted = [position for batch in mine for position in batch]
    fetched = iter(sample_set.fetch([int(chosen[position]) for position in wanted]))
    return [collate([next(fetched) for _ in batch], pad_id, layout) for batch in mine]


def filler(pad_id: int, layout: BatchLayout = "padded") -> MicroBatch:
    """A micro-batch of no weight: one row of two tokens, no targets, no samples.

    Its row counts as tokens to the attention mask, because a row that is all padding gives NaN in some
    attention kernels. Two tokens, so that a loss shifted by one is not over an empty tensor.
    """
    segment = Segment(np.full(2, pad_id, dtype=np.int32), np.zeros(2, dtype=np.bool_))
    batch = collate([Sample(-1, (segment,))], pad_id, layout)
    batch.sample_indices = []
    batch.tokens = 0
    return batch


def collate(samples: Sequence[Sample], pad_id: int, layout: BatchLayout = "padded") -> MicroBatch:
    """Lays samples out as tensors, as :class:`zhongjing.data.samples.MicroBatch` documents.

    Args:
        samples: whole samples, with all their segments; none gives a filler.
        pad_id: token id that fills rows up.
        layout: padded rows, or one packed row.

    Returns:
        The micro-batch, on the CPU.
    """
    if not samples:
        return filler(pad_id, layout)
    segments = [segment for sample in samples for segment in sample.segments]
    owners = [position for position, sample in enumerate(samples) for _ in sample.segments]
    ranks = [rank for sample in samples for rank in (sample.ranks or (0,) * len(sample.segments))]
    lengths = np.array([len(segment.ids) for segment in segments], dtype=np.int64)
    if layout == "packed":
        rows, width = 1, int(lengths.sum())
        starts = np.concatenate(([0], np.cumsum(lengths)[:-1]))
        row_of = np.zeros(len(segments), dtype=np.int64)
    else:
        rows, width = len(segments), int(lengths.max())
        starts = np.zeros(len(segments), dtype=np.int64)
        row_of = np.arange(len(segments), dtype=np.int64)
    input_ids = np.full((rows, width), pad_id, dtype=np.int64)
    position_ids = np.zeros((rows, width), dtype=np.int64)
    mask = np.zeros((rows, width), dtype=np.int64)
    targets = np.zeros((rows, width), dtype=np.bool_)
    for segment, row, start, length in zip(segments, row_of, starts, lengths, strict=True):
        span = slice(int(start), int(start + length))
        input_ids[row, span] = segment.ids
        position_ids[row, span] = np.arange(length)
        mask[row, span] = 1
        targets[row, span] = segment.target
    return MicroBatch(
        input_ids=torch.from_numpy(input_ids),
        position_ids=torch.from_numpy(position_ids),
        attention_mask=None if layout == "packed" else torch.from_numpy(mask),
        targets=torch.from_numpy(targets),
        segment_rows=torch.from_numpy(row_of),
        segment_ends=torch.from_numpy(starts + lengths - 1),
        segment_samples=torch.tensor(owners, dtype=torch.int64),
        segment_ranks=torch.tensor(ranks, dtype=torch.int64),
        sample_indices=[sample.index for sample in samples],
        tokens=int(lengths.sum()),
        target_tokens=int(targets.sum()),
    )
