"""Learning rates."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import pytest

from zhongjing.train.schedule import Schedule


def test_warm_up_then_cosine_to_the_end() -> None:
    schedule = Schedule("cosine", 1e-3, 110, 0.09, 0.0)
    assert schedule.warmup_steps == 10
    rates = [schedule.rate(step) for step in range(110)]
    assert 0 < rates[0] < rates[5] < rates[9] < rates[10] == 1e-3
    assert rates[60] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 0.5)))
    assert all(later < earlier for earlier, later in itertools.pairwise(rates[10:]))
    assert 0 < rates[-1] < 1e-6


@pytest.mark.parametrize(("kind", "end"), [("cosine", 0.1), ("linear", 0.1), ("constant", 1.0)])
def test_where_the_decay_ends(kind: Literal["cosine", "linear", "constant"], end: float) -> None:
    schedule = Schedule(kind, 2.0, 100, 0.0, 0.1)
    assert schedule.rate(0) == 2.0
    assert schedule.rate(100) == pytest.approx(2.0 * end)
    assert schedule.rate(1000) == pytest.approx(2.0 * end)  # past the end it stays there


def test_a_peak_of_zero_is_zero_everywhere() -> None:
    schedule = Schedule("cosine", 0.0, 10, 0.5)
    assert {schedule.rate(step) for step in range(10)} == {0.0}


@pytest.mark.parametrize("total", [1, 2, 3])
def test_short_stages_have_rates(total: int) -> None:
    schedule = Schedule("cosine", 1.0, total, 0.5)
    assert all(0 < schedule.rate(step) <= 1 for step in range(total))
