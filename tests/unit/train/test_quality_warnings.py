"""Intervals of shares, and warnings on reward models and critics before anything follows them."""

from __future__ import annotations

import random

import pytest

from zhongjing.config.stages import PpoSettings
from zhongjing.train.quality_warnings import (
    CRITIC_UPDATES,
    critic_warnings,
    effective_trials,
    mean_interval,
    reward_warnings,
    wilson,
)


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3 (Wilson's score, no correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (10, 21, 0.2834, 0.6763),
        (21, 21, 0.8454, 1.0),
    ],
)
def test_the_interval_of_a_share_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    assert wilson(right / n, n) == pytest.approx((low, high), abs=6e-5)


def test_the_interval_of_a_mean_holds_it_95_times_in_100() -> None:
    generator = random.Random(0)
    samples = [[generator.gauss(0.3, 2.0) for _ in range(40)] for _ in range(1000)]
    holding = sum(low <= 0.3 <= high for low, high in map(mean_interval, samples))
    assert 925 <= holding <= 970
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)


def test_pairs_of_one_prompt_count_as_what_they_are_worth() -> None:
    """Simulated: with prompts that err as a whole the interval of n pairs would be far too narrow."""
    noise = random.Random(0)
    covered = {"pairs": 0, "worth": 0}
    for _ in range(400):
        # Six pairs a prompt, all right or all wrong: the accuracy is 0.7 of 40 trials, not of 240.
        rights = [6.0 if noise.random() < 0.7 else 0.0 for _ in range(40)]
        right, pairs = sum(rights), 240.0
        squares = (sum(r * r for r in rights), sum(r * 6 for r in rights), 36.0 * 40)
        worth = effective_trials(right, pairs, squares, 40)
        for name, n in (("pairs", pairs), ("worth", worth)):
            low, high = wilson(right / pairs, n)
            covered[name] += low <= 0.7 <= high
    assert covered["pairs"] / 400 < 0.7
    assert 0.91 < covered["worth"] / 400 < 0.985


def test_one_pair_a_prompt_is_a_pair() -> None:
    assert effective_trials(10, 21, (10, 10, 21), 21) == pytest.approx(20, abs=0.01)
    assert effective_trials(21, 21, (21, 21, 21), 21) == 21, "no variance seen"
    assert effective_trials(0, 6, (0, 0, 36), 1) == 1, "one prompt"


def measured(accuracy: float, low: float, longer: float) -> dict[str, float]:
    return {
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": 0.99,
        "longer_accuracy": longer,
        "pairs": 21.0,
    }


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (measured(0.8, 0.7, 0.6), []),
        (measured(0.476, 0.28, 0.3), ["above chance"]),
        (measured(0.7, 0.5, 0.3), ["above chance"]),
        (measured(0.8, 0.7, 0.8), ["longer answer wins"]),
        (measured(0.476, 0.28, 0.7), ["above chance", "longer answer wins"]),
        ({"accuracy": 0.1}, []),
        ({}, []),
    ],
)
def test_a_reward_model_not_above_chance_or_length_is_warned_of(
    metrics: dict[str, float], said: list[str]
) -> None:
    found = reward_warnings(metrics)
    assert len(found) == len(said)
    for sentence, words in zip(found, said, strict=True):
        assert words in sentence
        assert "21 held-out pairs (95 %" in sentence


def test_a_critic_whose_explained_variance_stays_negative_is_warned_of() -> None:
    settings = PpoSettings.model_validate({"data": [{"source": "x"}]})
    assert critic_warnings([-0.2, -0.1], settings, CRITIC_UPDATES) == [], "too early"
    assert critic_warnings([-9.0, -0.2, -0.1, 0.1, -0.2], settings, CRITIC_UPDATES) == []
    stays = [0.5, -0.2, -0.1, -0.3, -0.2, -0.25]
    assert critic_warnings(stays, settings, CRITIC_UPDATES - 1) == [], "a run too short to tell"
    (said,) = critic_warnings(stays, settings, CRITIC_UPDATES)
    assert "stays negative (-0.2, -0.1, -0.3, -0.2, -0.25 in the last 5 rollouts)" in said
    assert "spec.stages.ppo.criticWarmupSteps" in said
