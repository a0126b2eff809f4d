"""The spike guard and the watch over the loss."""

from __future__ import annotations

import json
import math
import statistics

import numpy as np
import pytest

from zhongjing.codes import training as codes
from zhongjing.config.stages import SpikeGuard as Settings
from zhongjing.errors import TrainingError
from zhongjing.train.spike_guard import DivergenceWatch, SpikeGuard

SETTINGS = Settings(window=16, warmup_steps=4, threshold=5.0, recovery_steps=10, max_consecutive=3)


def calm(guard: SpikeGuard, steps: int, norm: float = 1.0) -> None:
    for _ in range(steps):
        assert not guard.observe(norm).spike


def test_a_spike_halves_both_factors_and_both_recover() -> None:
    guard = SpikeGuard(SETTINGS)
    calm(guard, 4)
    decision = guard.observe(5.1)
    assert decision.spike
    assert (decision.loss_factor, decision.learning_rate_factor, decision.median) == (0.5, 0.5, 1.0)
    factors = [guard.observe(1.0).learning_rate_factor for _ in range(10)]
    assert factors == pytest.approx([0.5 + 0.05 * step for step in range(1, 11)])
    assert guard.spikes == 1


def test_spikes_in_a_row_halve_again() -> None:
    guard = SpikeGuard(SETTINGS)
    calm(guard, 4)
    assert [guard.observe(100.0).loss_factor for _ in range(3)] == [0.5, 0.25, 0.125]


def test_factors_have_a_floor_which_is_told() -> None:
    watch = SpikeGuard(Settings(warmup_steps=4))
    calm(watch, 4)
    decisions = [watch.observe(100.0) for _ in range(6)]
    assert [decision.loss_factor for decision in decisions] == [0.5, 0.25, 0.125, 0.1, 0.1, 0.1]
    assert [decision.learning_rate_factor for decision in decisions][-1] == 0.1
    assert [decision.at_floor for decision in decisions] == [False, False, False, True, True, True]
    for _ in range(100):
        last = watch.observe(1.0)
    assert (last.loss_factor, last.learning_rate_factor) == (1.0, 1.0)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 1.5])
def test_heavy_tails_do_not_hold_the_learning_rate_down(sigma: float) -> None:
    """Lognormal norms: at sigma 1.5 every twelfth is above 8 medians, and none of them is an explosion."""
    random = np.random.default_rng(0)
    watch = SpikeGuard(Settings())
    factors = [
        decision.learning_rate_factor * decision.loss_factor
        for decision in (watch.observe(float(norm)) for norm in random.lognormal(0.0, sigma, 5000))
    ]
    assert statistics.mean(factors) > 0.97
    assert watch.observe(1e4 * math.exp(3 * sigma)).spike


def test_the_median_is_not_trusted_at_first_and_spikes_stay_out_of_it() -> None:
    guard = SpikeGuard(SETTINGS)
    calm(guard, 3)
    assert not guard.observe(50.0).spike  # the fourth norm: no median yet
    assert guard.observe(50.0).spike  # median of 1, 1, 1, 50
    assert guard.observe(50.0).spike


def test_what_is_not_finite_is_a_spike_even_at_the_first_step() -> None:
    for norm in (math.nan, math.inf):
        guard = SpikeGuard(SETTINGS)
        assert guard.observe(norm).spike


def test_too_many_in_a_row_end_the_stage() -> None:
    guard = SpikeGuard(SETTINGS)
    calm(guard, 4)
    for step in range(2):
        guard.observe(100.0)
        guard.check(step, 40)
    guard.observe(100.0)
    with pytest.raises(TrainingError) as caught:
        guard.check(57, 40)
    assert caught.value.code is codes.DIVERGED
    assert caught.value.where == "step 57"
    assert "last good checkpoint: step 40" in str(caught.value)


def test_a_calm_step_ends_the_row() -> None:
    guard = SpikeGuard(SETTINGS)
    calm(guard, 4)
    for _ in range(5):
        guard.observe(100.0)
        guard.observe(100.0)
        guard.observe(1.0)
        guard.check(0, None)


def test_disabled_it_weakens_nothing_but_still_ends_a_run_of_nan() -> None:
    guard = SpikeGuard(SETTINGS.model_copy(update={"enabled": False}))
    calm(guard, 8)
    assert not guard.observe(1e6).spike
    for _ in range(3):
        decision = guard.observe(math.nan)
    assert decision.spike
    assert decision.loss_factor == decision.learning_rate_factor == 1.0
    with pytest.raises(TrainingError, match="none was made yet"):
        guard.check(9, None)


def test_the_state_survives_json() -> None:
    one = SpikeGuard(SETTINGS)
    calm(one, 6)
    one.observe(30.0)
    one.observe(1.5)
    two = SpikeGuard(SETTINGS)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    for norm in (1.0, 20.0, 1.0, 2.0, math.nan, 1.0):
        assert one.observe(norm) == two.observe(norm)


def test_a_loss_that_climbs_out_of_reach_ends_the_stage() -> None:
    watch = DivergenceWatch(window=4)
    for step in range(6):
        watch.observe(2.0 + step, step, None)  # median of the latest four: 5.5, not yet three times 2
    with pytest.raises(TrainingError, match="diverged"):
        watch.observe(8.0, 6, None)


@pytest.mark.parametrize(
    "losses",
    [
        [8.0 - 0.1 * step for step in range(60)],
        [0.7, 0.1, 2.1, 0.05, 1.9, 0.01, 0.3] * 6,  # a reward model: single losses jump
        [2.0] * 10 + [50.0] + [2.0] * 10,  # one bad batch
        [math.nan, 2.0] * 10,
    ],
)
def test_ordinary_losses_go_on(losses: list[float]) -> None:
    watch = DivergenceWatch()
    for step, loss in enumerate(losses):
        watch.observe(loss, step, None)


def test_the_watch_survives_json() -> None:
    one, two = DivergenceWatch(window=4), DivergenceWatch(window=4)
    for step in range(4):
        one.observe(1.0 + step, step, None)
    two.load_state_dict(json.loads(json.dumps(one.state_dict())))
    assert one.state_dict() == two.state_dict()
    with pytest.raises(TrainingError, match="1 at the start"):
        two.observe(5.0, 4, None)
