from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from tests.unit.data.support import ListedSamples
from zhongjing.data.batches import BatchLayout, collate, deal, fetch_step, filler, plan_step
from zhongjing.data.samples import MicroBatch, Sample, Segment

PAD = 0


def segment(length: int, first: int = 1) -> Segment:
    ids = np.arange(first, first + length, dtype=np.int32)
    target = np.arange(length) >= max(1, length // 2)
    return Segment(ids, target)


def sample(index: int, *lengths: int) -> Sample:
    ranks = tuple(range(len(lengths))) if len(lengths) > 1 else None
    return Sample(index, tuple(segment(length, 1 + index) for length in lengths), ranks)


def cost(batch: list[int], sizes: list[int], layout: BatchLayout) -> int:
    chosen = [sizes[position] for position in batch]
    return max(chosen, default=0) * len(chosen) if layout == "padded" else sum(chosen)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_deals_lose_nothing_and_are_even(layout: BatchLayout) -> None:
    rng = random.Random(0)
    for _ in range(300):
        sizes = [rng.randint(1, 500) for _ in range(rng.randint(0, 80))]
        world, most = rng.randint(1, 8), rng.randint(1, 8)
        budget = rng.choice([None, 300, 1000])
        ranks = deal(sizes, world, most, budget, layout)
        assert len(ranks) == world
        assert len({len(batches) for batches in ranks}) == 1
        dealt = [position for batches in ranks for batch in batches for position in batch]
        assert sorted(dealt) == list(range(len(sizes)))
        for batches in ranks:
            for batch in batches:
                assert len(batch) <= most
                if budget is not None and len(batch) > 1:
                    assert cost(batch, sizes, layout) <= budget
        assert deal(list(sizes), world, most, budget, layout) == ranks
        for batches in ranks:
            if any(not batch for batch in batches):
                assert all(len(batch) <= 1 for batch in batches), "halving comes before fillers"


def test_ranks_carry_about_the_same_tokens() -> None:
    rng = random.Random(1)
    sizes = [int(rng.lognormvariate(5, 0.8)) + 1 for _ in range(256)]
    loads = [
        sum(sizes[p] for batch in batches for p in batch) for batches in deal(sizes, 4, 8, None, "packed")
    ]
    assert max(loads) < 1.02 * min(loads)
    for batches in zip(*deal(sizes, 4, 8, None, "packed"), strict=True):
        together = [sum(sizes[p] for p in batch) for batch in batches]
        assert max(together) < 1.25 * min(together)


def test_rows_of_similar_length_lie_together() -> None:
    rng = random.Random(2)
    sizes = [rng.randint(10, 1000) for _ in range(128)]
    padded = sum(cost(batch, sizes, "padded") for rank in deal(sizes, 2, 8) for batch in rank)
    assert padded < 1.15 * sum(sizes)
    in_order = [list(range(i, i + 8)) for i in range(0, 128, 8)]
    assert sum(cost(batch, sizes, "padded") for batch in in_order) > 1.5 * sum(sizes)


def test_batches_that_run_at_the_same_time_are_of_similar_cost() -> None:
    rng = random.Random(3)
    sizes = [rng.randint(10, 1000) for _ in range(128)]
    ranks = deal(sizes, 4, 4)
    for batches in zip(*ranks, strict=True):
        together = [sum(sizes[p] for p in batch) for batch in batches]
        assert max(together) - min(together) < 0.2 * max(
            map(sum, [[sizes[p] for p in b] for r in ranks for b in r])
        )


def test_padded_layout() -> None:
    batch = collate([sample(7, 3), sample(9, 5)], PAD, "padded")
    assert batch.input_ids.tolist() == [[8, 9, 10, 0, 0], [10, 11, 12, 13, 14]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 0], [0, 1, 2, 3, 4]]
    assert batch.attention_mask is not None
    assert batch.attention_mask.tolist() == [[1, 1, 1, 0, 0], [1] * 5]
    assert batch.targets.tolist() == [[False, True, True, False, False], [False, False, True, True, True]]
    assert batch.segment_rows.tolist() == [0, 1]
    assert batch.segment_ends.tolist() == [2, 4]
    assert batch.segment_samples.tolist() == [0, 1]
    assert batch.segment_ranks.tolist() == [0, 0]
    assert (batch.sample_indices, batch.tokens, batch.target_tokens) == ([7, 9], 8, 5)
    assert not batch.is_filler


def test_packed_layout() -> None:
    batch = collate([sample(0, 2, 3), sample(5, 2)], PAD, "packed")
    assert batch.input_ids.tolist() == [[1, 2, 1, 2, 3, 6, 7]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1, 2, 0, 1]]
    assert batch.attention_mask is None
    assert batch.segment_rows.tolist() == [0, 0, 0]
    assert batch.segment_ends.tolist() == [1, 4, 6]
    assert batch.segment_samples.tolist() == [0, 0, 1]
    assert batch.segment_ranks.tolist() == [0, 1, 0]
    starts = batch.position_ids[0] == 0
    assert not batch.targets[0][starts].any()


def test_both_layouts_hold_the_same_tokens() -> None:
    samples = [sample(0, 4, 6, 2), sample(1, 9), sample(2, 1, 3)]
    padded, packed = collate(samples, PAD, "padded"), collate(samples, PAD, "packed")

    def pieces(batch: MicroBatch) -> list[tuple[list[int], list[bool]]]:
        found = []
        for row, end in zip(batch.segment_rows.tolist(), batch.segment_ends.tolist(), strict=True):
            start = end - int(batch.position_ids[row, end])
            found.append(
                (batch.input_ids[row, start : end + 1].tolist(), batch.targets[row, start : end + 1].tolist())
            )
        return found

    assert pieces(padded) == pieces(packed)
    assert (padded.tokens, padded.target_tokens) == (packed.tokens, packed.target_tokens)


@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_fillers_have_no_targets_and_no_samples(layout: BatchLayout) -> None:
    batch = filler(5, layout)
    assert batch.is_filler
    assert (batch.tokens, batch.target_tokens) == (0, 0)
    assert not batch.targets.any()
    assert batch.input_ids.shape == (1, 2)
    assert batch.attention_mask is None or bool(batch.attention_mask.all())
    assert batch.segment_ends.tolist() == [1]
    assert collate([], 5, layout).is_filler
    assert batch.to(torch.device("cpu")).is_filler


@pytest.mark.parametrize("world", range(1, 9))
@pytest.mark.parametrize("layout", ["padded", "packed"])
def test_a_step_is_the_same_samples_for_any_number_of_ranks(world: int, layout: BatchLayout) -> None:
    rng = random.Random(world)
    samples = [sample(i, *[rng.randint(2, 60) for _ in range(rng.choice([1, 1, 4]))]) for i in range(23)]
    order = [i % 23 for i in range(5, 36)]  # spans an epoch: some samples twice
    stored = ListedSamples(samples)
    seen: list[int] = []
    targets = 0
    counts = set()
    for rank in range(world):
        stored.fetched.clear()
        planned = plan_step([samples[i] for i in order], rank, world, 3, 120, PAD, layout)
        fetched = fetch_step(stored, order, rank, world, 3, 120, PAD, layout)
        assert [b.sample_indices for b in planned] == [b.sample_indices for b in fetched]
        assert all(torch.equal(a.input_ids, b.input_ids) for a, b in zip(planned, fetched, strict=True))
        assert sorted(stored.fetched) == sorted(i for b in fetched for i in b.sample_indices), (
            "own samples only"
        )
        counts.add(len(planned))
        seen += [i for b in planned for i in b.sample_indices]
        targets += sum(b.target_tokens for b in planned)
    assert len(counts) == 1
    assert sorted(seen) == sorted(order)
    assert targets == sum(samples[i].targets for i in order)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ValueError, match="must be positive"):
        deal([1], 0, 1)
