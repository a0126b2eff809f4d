from __future__ import annotations

import random
from collections import Counter

import numpy as np
import pytest

from zhongjing.config.stages import PretrainSettings, SftSettings
from zhongjing.data.order import SampleOrder, mixture_of, permutation
from zhongjing.errors import ConfigError, DataError


def test_every_epoch_has_every_sample_once() -> None:
    rng = random.Random(0)
    for seed in range(20):
        size = rng.randint(1, 300)
        order = SampleOrder(np.zeros(size, np.int32), ["a"], seed)
        assert order.epoch_size == size
        for epoch in range(3):
            assert sorted(order.indices(epoch * size, size)) == list(range(size))


def test_epochs_and_seeds_differ_and_equal_seeds_do_not() -> None:
    orders = [SampleOrder([0] * 200, ["a"], seed) for seed in (1, 2)]
    epochs = {tuple(order.indices(e * 200, 200)) for order in orders for e in range(4)}
    assert len(epochs) == 8
    again = SampleOrder([0] * 200, ["a"], 1)
    assert again.indices(600, 200).tolist() == orders[0].indices(600, 200).tolist()


def test_the_order_does_not_depend_on_how_it_is_asked_for() -> None:
    """Steps of any size, from any point, spanning epochs: always the same infinite sequence."""
    rng = random.Random(1)
    groups = np.array([rng.randrange(3) for _ in range(157)])
    for weights in (None, {"a": 3.0, "b": 1.0}):
        whole = SampleOrder(groups, ["a", "b", "c"], 5, weights).indices(0, 2000)
        for _ in range(50):
            start, count = rng.randrange(1900), rng.randrange(100)
            fresh = SampleOrder(groups, ["a", "b", "c"], 5, weights)
            assert fresh.indices(start, count).tolist() == whole[start : start + count].tolist()


@pytest.mark.parametrize("workers", range(1, 9))
def test_any_number_of_workers_reads_the_same_order(workers: int) -> None:
    groups = np.arange(101) % 2
    whole = SampleOrder(groups, ["a", "b"], 3, {"a": 1.0, "b": 3.0}).indices(0, 24 * 20)
    read = []
    for step in range(20):
        parts = []
        for rank in range(workers):
            own = SampleOrder(groups, ["a", "b"], 3, {"a": 1.0, "b": 3.0})
            parts.append(own.indices(step * 24, 24)[rank::workers])
        merged = np.empty(24, dtype=np.int64)
        for rank, part in enumerate(parts):
            merged[rank::workers] = part
        read.extend(merged.tolist())
    assert read == whole.tolist()


@pytest.mark.parametrize(
    ("sizes", "weights", "repeats", "expected"),
    [
        # 7 : 1 as in the paper; the larger group sets the scale until the smaller is repeated too often.
        ((700, 100), {"g0": 7, "g1": 1}, 4.0, (700, 100)),
        ((700, 50), {"g0": 7, "g1": 1}, 4.0, (700, 100)),
        ((700, 10), {"g0": 7, "g1": 1}, 4.0, (280, 40)),
        ((70, 100), {"g0": 7, "g1": 1}, 4.0, (280, 40)),
        ((70, 100), {"g0": 7, "g1": 1}, 100.0, (700, 100)),
        ((50, 50), {"g0": 1}, 4.0, (50, 50)),
        ((1000, 30), {"g0": 1000, "g1": 0.001}, 1.0, (1000, 1)),
        ((40, 60, 7), {"g0": 1, "g1": 1}, 4.0, (60, 60, 7)),
    ],
)
def test_mixture_shares(
    sizes: tuple[int, ...], weights: dict[str, float], repeats: float, expected: tuple[int, ...]
) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    names = [f"g{i}" for i in range(len(sizes))]
    order = SampleOrder(groups, names, 0, weights, repeats)
    assert tuple(order.contributions.values()) == expected
    assert order.epoch_size == sum(expected)
    for epoch in range(3):
        drawn = order.indices(epoch * order.epoch_size, order.epoch_size)
        assert tuple(Counter(groups[drawn].tolist())[i] for i in range(len(sizes))) == expected


def test_a_cut_group_is_visited_whole_before_it_repeats() -> None:
    groups = np.repeat([0, 1], [100, 10])
    order = SampleOrder(groups, ["big", "small"], 0, {"big": 1, "small": 1}, 4.0)
    assert order.contributions == {"big": 40, "small": 40}
    drawn = order.indices(0, 5 * order.epoch_size)
    big = drawn[groups[drawn] == 0]
    seen = Counter(big.tolist())
    assert len(seen) == 100
    assert set(seen.values()) == {2}
    first, second = (
        set(drawn[e * 80 : (e + 1) * 80][groups[drawn[e * 80 : (e + 1) * 80]] == 0]) for e in (0, 1)
    )
    assert len(first) == len(second) == 40
    assert not first & second, "the second epoch takes what the first left out"
    for epoch in range(5):
        part = drawn[epoch * 80 : (epoch + 1) * 80]
        assert set(Counter(part[groups[part] == 1].tolist()).values()) == {4}


def test_groups_are_spread_over_the_epoch() -> None:
    groups = np.repeat([0, 1], [900, 100])
    drawn = groups[SampleOrder(groups, ["a", "b"], 0, {"a": 9, "b": 1}).indices(0, 1000)]
    tenths = drawn.reshape(10, 100).sum(axis=1)
    assert tenths.min() >= 2
    assert tenths.max() <= 22


def test_permutations_are_uniform_and_pinned() -> None:
    first = Counter(int(permutation(5, seed)[0]) for seed in range(5000))
    assert all(abs(first[value] / 5000 - 0.2) < 0.03 for value in range(5))
    # Written down: a change would reorder every running training.
    assert permutation(10, 0, 1, 2).tolist() == PINNED
    assert permutation(0, 1).tolist() == []


PINNED = [9, 7, 4, 6, 0, 3, 2, 5, 1, 8]


def test_what_cannot_be_ordered() -> None:
    with pytest.raises(DataError, match="no training samples"):
        SampleOrder([], ["a"], 0)
    with pytest.raises(DataError, match="gives b a share, but no training sample"):
        SampleOrder([0, 0], ["a", "b"], 0, {"a": 1, "b": 1})
    with pytest.raises(ValueError, match="negative"):
        SampleOrder([0], ["a"], 0).indices(-1, 3)
    assert SampleOrder([0], ["a"], 0).indices(5, 0).tolist() == []
    assert SampleOrder([0], ["a"], 0).indices(5, 3).tolist() == [0, 0, 0]


def test_a_million_samples_take_no_loop_over_samples() -> None:
    import time

    order = SampleOrder(np.arange(1_000_000) % 4, list("abcd"), 0, {"a": 1, "b": 2, "c": 1, "d": 1})
    began = time.perf_counter()
    order.indices(0, 64)
    first = time.perf_counter() - began
    began = time.perf_counter()
    for step in range(100):
        order.indices(64 * step, 64)
    assert first < 5.0
    assert time.perf_counter() - began < 0.5


def test_the_weights_of_a_stage() -> None:
    plain = SftSettings.model_validate({"data": [{"source": "a"}]})
    assert mixture_of(plain) == (None, 4.0)
    weighted = PretrainSettings.model_validate(
        {"data": [{"source": "a", "weight": 2}, {"source": "b", "weight": 1}]}
    )
    assert mixture_of(weighted) == ({"a": 2.0, "b": 1.0}, 4.0)
    mixed = SftSettings.model_validate(
        {"data": [{"source": "a"}], "mixture": {"singleTurn": 7, "multiTurn": 1, "maxRepeats": 2}}
    )
    assert mixture_of(mixed) == ({"singleTurn": 7.0, "multiTurn": 1.0}, 2.0)
    both = SftSettings.model_validate({"data": [{"source": "a", "weight": 1}], "mixture": {"singleTurn": 7}})
    with pytest.raises(ConfigError, match="both mixture and weights"):
        mixture_of(both)
