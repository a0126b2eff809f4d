"""Rewards, advantages, whitening and KL estimates against numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch

from zhongjing.train.ppo.advantages import (
    episode_scores,
    explained_variance,
    gae,
    kl_per_token,
    masked_mean,
    masked_var,
    token_rewards,
    whiten,
)
from zhongjing.train.ppo.kl_control import KlController

MASK = torch.tensor([[True, True, True], [True, False, False]])


def test_masked_statistics_count_only_what_is_masked() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, math.nan, 99.0]])
    assert masked_mean(values, MASK).item() == 3.0  # (1 + 2 + 3 + 6) / 4
    assert masked_var(values, MASK).item() == 3.5  # (4 + 1 + 0 + 9) / 4
    assert masked_mean(values, torch.zeros_like(MASK)).item() == 0.0


def test_whitening_is_over_the_whole_rollout() -> None:
    values = torch.tensor([[1.0, 2.0, 3.0], [6.0, 99.0, 99.0]], dtype=torch.float64)
    white = whiten(values, MASK)
    root = math.sqrt(3.5 + 1e-8)
    expected = torch.tensor([[-2 / root, -1 / root, 0.0], [3 / root, 0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(white, expected)
    # A rollout in which all episodes are alike has nothing to tell.
    assert torch.equal(whiten(torch.full((2, 3), 5.0), MASK), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("k1", [0.5, -0.5]), ("k2", [0.125, 0.125]), ("k3", [math.exp(-0.5) - 0.5, math.exp(0.5) - 1.5])],
)
def test_kl_estimators(kind: Literal["k1", "k2", "k3"], expected: list[float]) -> None:
    found = kl_per_token(torch.tensor([-1.0, -2.0]), torch.tensor([-1.5, -1.5]), kind)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_kl_estimators_are_unbiased(kind: Literal["k1", "k3"]) -> None:
    policy = torch.log_softmax(torch.tensor([0.3, -1.0, 2.0, 0.0], dtype=torch.float64), 0)
    reference = torch.log_softmax(torch.tensor([0.0, 0.5, 1.0, -1.0], dtype=torch.float64), 0)
    exact = (policy.exp() * (policy - reference)).sum()
    mean = (policy.exp() * kl_per_token(policy, reference, kind)).sum()
    torch.testing.assert_close(mean, exact)


def test_scores_are_normalised_then_clipped_then_punished() -> None:
    scores = torch.tensor([3.0, 3.0, 100.0, -100.0])
    ended = torch.tensor([True, False, True, False])
    found = episode_scores(scores, ended, mean=1.0, std=4.0, clip=2.0, missing_eos_penalty=1.5)
    torch.testing.assert_close(found, torch.tensor([0.5, -1.0, 2.0, -3.5]))


def test_the_score_falls_on_the_last_response_token() -> None:
    kl = torch.tensor([[0.1, 0.2, -0.3], [0.4, 9.0, 9.0]])
    found = token_rewards(torch.tensor([1.0, -2.0]), kl, MASK, 0.5)
    torch.testing.assert_close(found, torch.tensor([[-0.05, -0.1, 1.15], [-2.2, 0.0, 0.0]]))


def test_gae_by_hand() -> None:
    rewards = torch.tensor([[0.0, 0.5, 1.0], [2.0, 7.0, 7.0]], dtype=torch.float64)
    values = torch.tensor([[0.2, 0.4, 0.6], [0.5, 7.0, 7.0]], dtype=torch.float64)
    gamma, lam = 0.9, 0.8
    d2 = 1.0 - 0.6
    d1 = 0.5 + gamma * 0.6 - 0.4
    d0 = 0.0 + gamma * 0.4 - 0.2
    a1 = d1 + gamma * lam * d2
    a0 = d0 + gamma * lam * a1
    expected = torch.tensor([[a0, a1, d2], [1.5, 0.0, 0.0]], dtype=torch.float64)
    advantages, returns = gae(rewards, values, MASK, gamma, lam)
    torch.testing.assert_close(advantages, expected)
    torch.testing.assert_close(returns, expected + torch.where(MASK, values, 0.0))


def test_gae_with_lambda_one_is_the_return_less_the_value() -> None:
    generator = torch.Generator().manual_seed(0)
    rewards = torch.rand(2, 3, generator=generator)
    values = torch.rand(2, 3, generator=generator)
    _, returns = gae(rewards, values, MASK, 1.0, 1.0)
    torch.testing.assert_close(returns[0], rewards[0].flip(0).cumsum(0).flip(0))
    torch.testing.assert_close(returns[1, 0], rewards[1, 0])


def test_explained_variance() -> None:
    returns = torch.tensor([[1.0, 2.0, 3.0], [6.0, 0.0, 0.0]])
    assert explained_variance(returns, returns, MASK).item() == 1.0
    assert explained_variance(torch.full((2, 3), 3.0), returns, MASK).item() == pytest.approx(0.0)
    # Residuals 0, 0, 0, 2: variance 0.75 of 3.5.
    off = returns.clone()
    off[1, 0] = 4.0
    assert explained_variance(off, returns, MASK).item() == pytest.approx(1 - 0.75 / 3.5)
    assert explained_variance(returns, torch.ones(2, 3), MASK).item() == 0.0


def test_kl_controller_follows_its_target() -> None:
    fixed = KlController(0.1, None, 1000)
    fixed.update(99.0, 100)
    assert fixed.coefficient == 0.1
    steered = KlController(0.1, 6.0, 1000)
    steered.update(6.6, 100)  # error 0.1, a tenth of the horizon
    assert steered.coefficient == pytest.approx(0.1 * 1.01)
    steered.update(600.0, 100)  # the error is clipped to 0.2
    assert steered.coefficient == pytest.approx(0.1 * 1.01 * 1.02)
    again = KlController(0.5, 6.0, 1000)
    again.load_state_dict(steered.state_dict())
    assert again.coefficient == steered.coefficient
