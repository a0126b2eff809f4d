"""Micro-batches of one optimizer step.

A step is a fixed set of samples. How it is divided among ranks and cut into micro-batches follows from the
samples' sizes alone, so every rank works out the same plan and reads only its own samples. Every rank gets
the same number of micro-batches: ZeRO-2 communicates in every backward, and unequal counts hang or abort.

A micro-batch is one packed row (:class:`zhongjing.data.samples.PackedRow`): no token of it is padding, and
what it costs is the tokens in it. So its size is bounded in tokens, whatever the samples are like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from zhongjing.data.samples import MicroBatch, PackedRow, Sample, SampleSet


def partition(sizes: Sequence[int], world_size: int, budget: int) -> list[list[list[int]]]:
    """Divides the samples of one step among ranks and micro-batches.

    Ranks are evened out to a few percent. On each, micro-batches are filled by first fit, the longest samples
    first, and the fullest micro-batch comes first: what does not fit into memory shows in the first forward
    pass, and what runs at the same time on different ranks is of similar size.

    Args:
        sizes: tokens of each sample of the step.
        world_size: ranks.
        budget: most tokens of a micro-batch. A sample above it gets a micro-batch of its own.

    Returns:
        For each rank its micro-batches, each a list of positions in ``sizes``; an empty one is a dummy batch.
        All ranks have the same number; each position occurs exactly once.
    """
    if world_size < 1 or budget < 1:
        raise ValueError(f"world_size {world_size} and budget {budget} must be positive")
    order = sorted(range(len(sizes)), key=lambda position: (-sizes[position], position))
    ranks = [_first_fit(share, sizes, budget) for share in _to_the_lightest(order, world_size, sizes)]
    most = max(map(len, ranks))
    partitioned = []
    for batches in ranks:
        halved = _halved(batches, most, sizes)
        halved.sort(key=lambda batch: (-_total(batch, sizes), batch))
        partitioned.append([*halved, *[[]] * (most - len(halved))])
    return partitioned


def _to_the_lightest(order: Sequence[int], world_size: int, sizes: Sequence[int]) -> list[list[int]]:
    """In rounds, one sample a rank: the longest of a round to the rank that has least so far."""
    ranks: list[list[int]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    for first in range(0, len(order), world_size):
        lightest_first = sorted(range(world_size), key=lambda rank: (loads[rank], rank))
        for rank, position in zip(lightest_first, order[first : first + world_size], strict=False):
            ranks[rank].append(position)
            loads[rank] += sizes[position]
    return ranks


def _first_fit(order: Sequence[int], sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Puts each sample into the first micro-batch that has room for it."""
    batches: list[list[int]] = []
    rooms: list[int] = []
    for position in order:
        for at, room in enumerate(rooms):
            if sizes[position] <= room:
                batches[at].append(position)
                rooms[at] -= sizes[position]
                break
        else:
            batches.append([position])
            rooms.append(budget - sizes[position])
    return batches


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


def fetch_step(
    sample_set: SampleSet, indices: Sequence[int], rank: int, world_size: int, budget: int
) -> list[MicroBatch]:
    """The micro-batches of ``rank``, by :func:`partition`: only own samples are read, sizes are in the index.

    ``indices`` are the step's samples, the same on every rank and in the same order. Every rank gets as many
    micro-batches; dummies have no targets and no samples.
    """
    chosen = np.asarray(indices, dtype=np.int64)
    sizes: list[int] = sample_set.tokens[chosen].tolist()
    mine = partition(sizes, world_size, budget)[rank]
    wanted = [position for batch in mine for position in batch]
    fetched = iter(sample_set.fetch([int(chosen[position]) for position in wanted]))
    return [collate([next(fetched) for _ in batch]) for batch in mine]


def collate(samples: Sequence[Sample]) -> MicroBatch:
    """Lays whole samples out as tensors on the CPU; see :class:`zhongjing.data.samples.MicroBatch`.

    None gives a dummy: a row of one segment of two tokens (so that a loss shifted by one is not over an empty
    tensor), no targets, no samples.
    """
    if not samples:
        blank = np.zeros(2, dtype=np.int64)
        nothing = torch.zeros(1, dtype=torch.int64)
        return MicroBatch(
            PackedRow.of([blank]), torch.zeros(1, 2, dtype=torch.bool), nothing, nothing, (), 0, 0
        )
    segments = [segment for sample in samples for segment in sample.segments]
    owners = [position for position, sample in enumerate(samples) for _ in sample.segments]
    ranks = [rank for sample in samples for rank in (sample.ranks or (0,) * len(sample.segments))]
    row = PackedRow.of([segment.ids for segment in segments])
    targets = np.concatenate([segment.target for segment in segments])
    return MicroBatch(
        row=row,
        targets=torch.from_numpy(targets)[None],
        segment_samples=torch.tensor(owners, dtype=torch.int64),
        segment_ranks=torch.tensor(ranks, dtype=torch.int64),
        sample_indices=tuple(sample.index for sample in samples),
        tokens=row.tokens,
        target_tokens=int(targets.sum()),
    )
