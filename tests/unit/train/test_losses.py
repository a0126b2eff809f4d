"""Ranking loss by hand, pair accuracy, token loss."""

from __future__ import annotations

import math

import pytest
import torch

from zhongjing.train.losses import pair_counts, pair_fractions, ranking_loss, ranking_pairs


def sigmoid_loss(better: float, worse: float) -> float:
    return math.log1p(math.exp(worse - better))


def test_one_prompt_of_three() -> None:
    rewards = torch.tensor([0.5, 2.0, -1.0])
    ranks = torch.tensor([1, 0, 2])
    wanted = (sigmoid_loss(2.0, 0.5) + sigmoid_loss(2.0, -1.0) + sigmoid_loss(0.5, -1.0)) / 3
    assert ranking_loss(rewards, torch.zeros(3).long(), ranks, 1).item() == pytest.approx(wanted, rel=1e-6)


def test_prompts_weigh_equally_and_ties_are_left_out() -> None:
    # Prompt 0: two answers. Prompt 1: three, two of them tied. Prompt 2: nothing but a tie.
    rewards = torch.tensor([1.0, 0.0, 3.0, 1.0, 2.0, 5.0, -5.0])
    samples = torch.tensor([0, 0, 1, 1, 1, 2, 2])
    ranks = torch.tensor([0, 1, 1, 0, 1, 0, 0])
    first = sigmoid_loss(1.0, 0.0)
    second = (sigmoid_loss(1.0, 3.0) + sigmoid_loss(1.0, 2.0)) / 2
    assert ranking_loss(rewards, samples, ranks, 3).item() == pytest.approx(first + second, rel=1e-6)
    assert int(ranking_pairs(samples, ranks).sum()) == 3
    right, pairs = pair_counts(rewards, samples, ranks, 3)
    assert (right.tolist(), pairs.tolist()) == ([1.0, 0.0, 0.0], [1.0, 2.0, 0.0])
    assert pair_fractions(rewards, samples, ranks, 3).tolist() == [1.0, 0.0, 0.0]


def test_the_order_of_answers_and_prompts_does_not_matter() -> None:
    random = torch.Generator().manual_seed(0)
    rewards, samples = torch.randn(12, generator=random), torch.arange(12) // 4
    ranks = torch.tensor([0, 1, 2, 3] * 3)
    order = torch.randperm(12, generator=random)
    torch.testing.assert_close(
        ranking_loss(rewards, samples, ranks, 3),
        ranking_loss(rewards[order], samples[order], ranks[order], 3),
    )


def test_the_gradient_lifts_the_better_and_lowers_the_worse() -> None:
    rewards = torch.zeros(4, requires_grad=True)
    ranking_loss(rewards, torch.zeros(4).long(), torch.arange(4), 1).backward()
    assert rewards.grad is not None
    assert rewards.grad.tolist() == pytest.approx([-1.5 / 6, -0.5 / 6, 0.5 / 6, 1.5 / 6])


def test_large_gaps_stay_finite() -> None:
    rewards = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = ranking_loss(rewards, torch.zeros(2).long(), torch.arange(2), 1)
    loss.backward()
    assert loss.item() == pytest.approx(2e4)
    assert rewards.grad is not None
    assert rewards.grad.isfinite().all()


def test_equal_rewards_are_half_right() -> None:
    samples, ranks = torch.zeros(2).long(), torch.arange(2)
    assert pair_counts(torch.ones(2), samples, ranks, 1)[0].item() == 0.5
