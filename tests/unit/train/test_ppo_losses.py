"""Losses against numbers worked out by hand, and their gradients."""

from __future__ import annotations

import math

import pytest
import torch

from zhongjing.train.losses import LOG_RATIO_LIMIT, policy_loss, value_loss

MASK = torch.tensor([[True, True, True, True, False]])


def test_policy_loss_by_hand() -> None:
    ratios = torch.tensor([[1.5, 1.5, 0.5, 0.5, 3.0]])
    advantages = torch.tensor([[1.0, -1.0, 1.0, -1.0, 5.0]])
    old = torch.full((1, 5), -2.0)
    logprobs = (old + ratios.log()).requires_grad_()
    found = policy_loss(logprobs, old, advantages, MASK, 0.2)
    # Rising with a gain: clipped at 1.2. Rising with a loss: not clipped. Falling: the other way round.
    assert found.loss.item() == pytest.approx(-1.2 + 1.5 - 0.5 + 0.8, rel=1e-6)
    assert found.clipped.item() == 2.0
    assert found.ratio.item() == pytest.approx(4.0)
    kl = 2 * (1.5 - 1 - math.log(1.5)) + 2 * (0.5 - 1 - math.log(0.5))
    assert found.kl.item() == pytest.approx(kl, rel=1e-5)
    assert found.largest.item() == pytest.approx(math.log(2.0))
    found.loss.backward()
    # d/dlogp of -A ratio is -A ratio; 0 where clipped and off the mask.
    torch.testing.assert_close(logprobs.grad, torch.tensor([[0.0, 1.5, -0.5, 0.0, 0.0]]))


def test_policy_loss_stays_finite_when_the_policy_has_run_away() -> None:
    logprobs = torch.tensor([[-500.0, 0.0]], requires_grad=True)
    old = torch.tensor([[0.0, -500.0]])
    found = policy_loss(logprobs, old, torch.tensor([[-1.0, -1.0]]), torch.ones(1, 2, dtype=torch.bool), 0.2)
    assert torch.isfinite(found.loss)
    assert found.largest.item() == 500.0  # reported before the limit
    assert found.ratio.item() == pytest.approx(math.exp(LOG_RATIO_LIMIT), rel=1e-5)
    found.loss.backward()
    assert logprobs.grad is not None
    assert torch.isfinite(logprobs.grad).all()


def test_value_loss_by_hand() -> None:
    values = torch.tensor([[0.5, 2.0, -2.0, 1.0, 9.0]], requires_grad=True)
    old = torch.tensor([[0.4, 0.0, 0.0, 0.0, 0.0]])
    returns = torch.tensor([[1.0, 3.0, 3.0, 0.1, 0.0]])
    found = value_loss(values, old, returns, MASK, 0.2)
    # 0.5: near. 2.0: clipped to 0.2, farther from 3. -2.0: clipped to -0.2, nearer: the plain one counts.
    # 1.0: clipped to 0.2, nearer to 0.1: the plain one counts.
    assert found.loss.item() == pytest.approx(0.5 * (0.25 + 2.8**2 + 25.0 + 0.81), rel=1e-6)
    assert found.clipped.item() == 1.0
    found.loss.backward()
    torch.testing.assert_close(values.grad, torch.tensor([[-0.5, 0.0, -5.0, 0.9, 0.0]]))


def test_sums_of_parts_equal_the_sum_of_the_whole() -> None:
    """What makes results independent of micro-batches and ranks."""
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(6, 5, generator=generator) for _ in range(3))
    mask = torch.rand(6, 5, generator=generator) > 0.4
    whole = policy_loss(a, b, c, mask, 0.2).loss + value_loss(a, b, c, mask, 0.2).loss
    parts = sum(
        policy_loss(a[i], b[i], c[i], mask[i], 0.2).loss + value_loss(a[i], b[i], c[i], mask[i], 0.2).loss
        for i in (slice(0, 1), slice(1, 4), slice(4, 6))
    )
    torch.testing.assert_close(torch.as_tensor(parts), whole)
