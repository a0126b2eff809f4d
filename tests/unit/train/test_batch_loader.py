"""Plans of optimizer steps: every sample once an epoch, whatever the number of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.training_support import ListSamples, dialogues, stage_inputs
from zhongjing.codes.data import DAMAGED_CACHE
from zhongjing.config.stages import SftSettings
from zhongjing.errors import DataError
from zhongjing.train.batch_loader import BatchLoader, held_out_batches
from zhongjing.train.distributed import seed_of


def settings(**changes: Any) -> SftSettings:
    return SftSettings(
        **{
            "data": [{"source": "any"}],
            "epochs": 2,
            "global_batch_size": 8,
            "max_length": 16,
            "micro_batch_size": 3,
            **changes,
        }
    )


def loader(rank: int = 0, world_size: int = 1, count: int = 21, **changes: Any) -> BatchLoader:
    samples = dialogues(count)
    inputs = stage_inputs(Path(), samples, ListSamples([]), seed=5, rank=rank, world_size=world_size)
    return BatchLoader(
        settings(**changes), inputs, lambda indices: float(samples.targets[list(indices)].sum())
    )


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_two_epochs_take_every_sample_twice(world_size: int) -> None:
    loaders = [loader(rank, world_size) for rank in range(world_size)]
    steps = loaders[0].total_steps
    assert steps == 6  # 42 samples in steps of 8: the last has two
    seen: Counter[int] = Counter()
    total = 0
    for step in range(steps):
        plans = [one.step_batches(step) for one in loaders]
        assert len({len(plan.micro_batches) for plan in plans}) == 1
        assert len({plan.denominator for plan in plans}) == 1
        batches = [batch for plan in plans for batch in plan.micro_batches]
        assert sum(batch.target_tokens for batch in batches) == plans[0].denominator
        assert sum(batch.tokens for batch in batches) == plans[0].tokens
        assert sum(len(batch.sample_indices) for batch in batches) == plans[0].samples
        seen.update(index for batch in batches for index in batch.sample_indices)
        total += plans[0].samples
    assert total == 42
    assert set(seen.values()) == {2}
    assert plans[0].epoch == 2.0


def test_a_step_can_be_planned_out_of_order() -> None:
    one, two = loader(), loader()
    ordered = [one.step_batches(step) for step in range(4)]
    again = two.step_batches(3)
    assert [b.sample_indices for b in again.micro_batches] == [
        b.sample_indices for b in ordered[3].micro_batches
    ]


def test_max_steps_ends_a_stage_early() -> None:
    assert loader(max_steps=4).total_steps == 4
    assert loader(max_steps=400).total_steps == 6


def test_an_error_of_the_reading_thread_is_raised() -> None:
    one = loader()
    one.step_batches(0)
    one.step_batches(1)

    def broken(indices: Any) -> Any:
        raise DataError("block 7 has a wrong checksum", code=DAMAGED_CACHE)

    one._train.fetch = broken  # type: ignore[method-assign]
    with pytest.raises(DataError, match="block 7"):
        one.step_batches(5)


def test_no_samples_is_an_error() -> None:
    with pytest.raises(DataError, match="no training samples"):
        loader(count=0)


@pytest.mark.parametrize("world_size", [1, 2, 5])
def test_held_out_samples_are_evaluated_once(world_size: int) -> None:
    seen: Counter[int] = Counter()
    for rank in range(world_size):
        samples = dialogues(70)
        inputs = stage_inputs(Path(), samples, samples, rank=rank, world_size=world_size)
        batches = held_out_batches(samples, settings(max_evaluation_samples=50), inputs)
        seen.update(index for batch in batches for index in batch.sample_indices)
    assert len(seen) == 50
    assert set(seen.values()) == {1}


def test_without_held_out_samples_there_is_nothing() -> None:
    nothing = ListSamples([])
    assert list(held_out_batches(nothing, settings(), stage_inputs(Path(), nothing, nothing))) == []


def test_the_budget_is_room_for_the_longest() -> None:
    assert settings().token_budget == 48
    assert settings(micro_batch_tokens=40).token_budget == 40


def test_a_sample_above_the_budget_has_a_micro_batch_of_its_own_and_is_counted() -> None:
    one = loader(micro_batch_tokens=16, epochs=1)
    longer = [sample.index for sample in dialogues(21).samples if sample.tokens > 16]
    assert one.over_budget == len(longer) > 0
    plans = [one.step_batches(step) for step in range(one.total_steps)]
    assert sum(plan.over_budget for plan in plans) == len(longer)
    batches = [batch for plan in plans for batch in plan.micro_batches]
    alone = [batch.sample_indices[0] for batch in batches if batch.tokens > 16]
    assert sorted(alone) == longer
    assert all(len(batch.sample_indices) == 1 for batch in batches if batch.tokens > 16)


def test_seeds_of_places_differ() -> None:
    places = [(seed, step, rank) for seed in range(3) for step in range(20) for rank in range(4)]
    assert len({seed_of(*place) for place in places}) == len(places)
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)
