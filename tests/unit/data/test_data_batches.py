"""Micro-batches: what a step is dealt into, and packed rows."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch

from tests.unit.data.support import ListedSamples
from zhongjing.data.batches import collate, fetch_step, partition
from zhongjing.data.samples import PackedRow, Sample, Segment


def segment(length: int, first: int = 1) -> Segment:
    ids = np.arange(first, first + length, dtype=np.int32)
    target = np.arange(length) >= max(1, length // 2)
    return Segment(ids, target)


def sample(index: int, *lengths: int) -> Sample:
    ranks = tuple(range(len(lengths))) if len(lengths) > 1 else None
    return Sample(index, tuple(segment(length, 1 + index) for length in lengths), ranks)


def mixture(rng: random.Random) -> list[int]:
    """Sizes of the samples of one step: windows, dialogues of few or many turns, K ranked answers."""
    kinds: list[Callable[[], int]] = [
        lambda: 4096,
        lambda: rng.randint(1, 60),
        lambda: min(int(rng.lognormvariate(5.5, 1)) + 1, 4096),
        lambda: sum(rng.randint(20, 700) for _ in range(4)),
        lambda: rng.choice([5000, 20000]),
    ]
    shares = [rng.random() ** 2 for _ in kinds]
    return [rng.choices(kinds, shares)[0]() for _ in range(rng.randint(0, 96))]


def test_no_micro_batch_is_above_its_budget_whatever_the_mixture() -> None:
    rng = random.Random(0)
    for _ in range(400):
        sizes, world = mixture(rng), rng.randint(1, 8)
        budget = rng.choice([256, 4096, 16384])
        ranks = partition(sizes, world, budget)
        for batch in (batch for batches in ranks for batch in batches):
            assert len(batch) == 1 or sum(sizes[position] for position in batch) <= budget
        alone = sum(sum(sizes[p] for p in batch) > budget for batches in ranks for batch in batches)
        assert alone == sum(size > budget for size in sizes)


def test_deals_lose_nothing_and_are_even() -> None:
    rng = random.Random(1)
    for _ in range(300):
        sizes, world = mixture(rng), rng.randint(1, 8)
        ranks = partition(sizes, world, 4096)
        assert len(ranks) == world
        assert len({len(batches) for batches in ranks}) == 1
        dealt = [position for batches in ranks for batch in batches for position in batch]
        assert sorted(dealt) == list(range(len(sizes)))
        assert partition(list(sizes), world, 4096) == ranks
        for batches in ranks:
            assert sorted(batches, key=lambda batch: -sum(sizes[p] for p in batch)) == batches
            if any(not batch for batch in batches):
                assert all(len(batch) <= 1 for batch in batches), "halving comes before dummy batches"


def test_micro_batches_are_full() -> None:
    rng = random.Random(2)
    for _ in range(50):
        sizes = [rng.randint(20, 2000) for _ in range(64)]
        (batches,) = partition(sizes, 1, 8192)
        # First fit, the longest first, needs at most 11/9 of the fewest (Johnson et al. 1974).
        assert len(batches) <= -(-sum(sizes) // 8192) * 11 / 9 + 1


def test_ranks_carry_about_the_same_tokens() -> None:
    rng = random.Random(1)
    sizes = [int(rng.lognormvariate(5, 0.8)) + 1 for _ in range(256)]
    ranks = partition(sizes, 4, 2048)
    loads = [sum(sizes[p] for batch in batches for p in batch) for batches in ranks]
    assert max(loads) < 1.02 * min(loads)
    for batches in zip(*ranks, strict=True):
        together = [sum(sizes[p] for p in batch) for batch in batches]
        assert max(together) < 1.25 * min(together)


def test_packed_rows() -> None:
    batch = collate([sample(0, 2, 3), sample(5, 2)])
    assert batch.row.input_ids.tolist() == [[1, 2, 1, 2, 3, 6, 7]]
    assert batch.row.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    assert batch.row.lengths == (2, 3, 2)
    assert batch.row.edges.tolist() == [0, 2, 5, 7]
    assert batch.row.ends.tolist() == [1, 4, 6]
    assert batch.segment_samples.tolist() == [0, 0, 1]
    assert batch.segment_ranks.tolist() == [0, 1, 0]
    assert (batch.sample_indices, batch.tokens, batch.target_tokens) == ((0, 5), 7, 4)
    assert not batch.targets[batch.row.position_ids == 0].any()
    assert not batch.is_dummy


def test_a_row_twice_is_the_segments_twice() -> None:
    row = PackedRow.of([np.array([5, 6]), np.array([7])])
    again = PackedRow.of([np.array([5, 6]), np.array([7]), np.array([5, 6]), np.array([7])])
    twice = row.twice()
    assert twice.lengths == again.lengths
    for one, other in zip(
        (twice.input_ids, twice.position_ids, twice.edges),
        (again.input_ids, again.position_ids, again.edges),
        strict=True,
    ):
        assert torch.equal(one, other)
        assert one.dtype == other.dtype


@pytest.mark.parametrize("segments", [[], [np.array([1]), np.array([], dtype=np.int64)]])
def test_nothing_makes_no_row(segments: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="make no row"):
        PackedRow.of(segments)


def test_dummy_batches_have_no_targets_and_no_samples() -> None:
    batch = collate([])
    assert batch.is_dummy
    assert (batch.tokens, batch.target_tokens) == (0, 0)
    assert not batch.targets.any()
    assert batch.row.input_ids.shape == (1, 2)
    assert batch.row.ends.tolist() == [1]
    assert batch.to(torch.device("cpu")).is_dummy


@pytest.mark.parametrize("world", range(1, 9))
def test_a_step_is_the_same_samples_for_any_number_of_ranks(world: int) -> None:
    rng = random.Random(world)
    samples = [sample(i, *[rng.randint(2, 60) for _ in range(rng.choice([1, 1, 4]))]) for i in range(23)]
    order = [i % 23 for i in range(5, 36)]  # spans an epoch: some samples twice
    stored = ListedSamples(samples)
    seen: list[int] = []
    targets = 0
    counts = set()
    for rank in range(world):
        stored.fetched.clear()
        fetched = fetch_step(stored, order, rank, world, 120)
        read = [i for batch in fetched for i in batch.sample_indices]
        assert sorted(stored.fetched) == sorted(read), "own samples only"
        for batch in fetched:
            wanted = [ids for i in batch.sample_indices for s in samples[i].segments for ids in s.ids]
            assert batch.is_dummy or batch.row.input_ids[0].tolist() == wanted
        counts.add(len(fetched))
        seen += read
        targets += sum(batch.target_tokens for batch in fetched)
    assert len(counts) == 1
    assert sorted(seen) == sorted(order)
    assert targets == sum(samples[i].targets for i in order)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        partition([1], 0, 1)
    with pytest.raises(ValueError, match="must be positive"):
        partition([1], 1, 0)
