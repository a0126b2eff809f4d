"""From scores and log-probabilities to rewards, advantages and returns: pure functions.

Shapes: E episodes of one rollout (all ranks'), T columns of response tokens, counted from the first token of
the response. ``mask`` is bool [E, T], true on response tokens, which stand to the left. Everything is fp32
(or fp64 in tests) and everything outside the mask is 0 in what is returned.

Because every rank holds the whole rollout (see ``rollout.py``), statistics are over the rollout and over all
ranks without a word between them, and bit-identical everywhere.
"""

from __future__ import annotations

from typing import Literal

import torch


def masked_mean(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of ``values`` where ``mask``; scalar, 0 where the mask is empty."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp_min(1)


def masked_var(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Variance (divided by the count) of ``values`` where ``mask``; scalar, 0 where the mask is empty."""
    return masked_mean((values - masked_mean(values, mask)).square(), mask)


def whiten(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``values`` with mean 0 and variance 1 over the mask; [E, T]."""
    white = (values - masked_mean(values, mask)) * torch.rsqrt(masked_var(values, mask) + 1e-8)
    return torch.where(mask, white, 0)


def kl_per_token(
    logprobs: torch.Tensor, ref_logprobs: torch.Tensor, kind: Literal["k1", "k2", "k3"]
) -> torch.Tensor:
    """Estimate of KL(policy || reference) in nats, from log-probabilities of sampled tokens; [E, T].

    With d = logprobs - ref_logprobs: k1 = d (unbiased, may be negative), k2 = d^2 / 2 (biased, low variance),
    k3 = exp(-d) - 1 + d (unbiased, never negative). Source: Schulman, "Approximating KL Divergence" (2020).
    """
    difference = logprobs - ref_logprobs
    if kind == "k1":
        return difference
    if kind == "k2":
        return 0.5 * difference.square()
    return torch.expm1((-difference).clamp(max=20.0)) + difference


def episode_scores(
    scores: torch.Tensor,
    ended: torch.Tensor,
    *,
    mean: float,
    std: float,
    clip: float,
    missing_eos_penalty: float,
) -> torch.Tensor:
    """What an episode earns besides the KL penalty; [E].

    Args:
        scores: output of the reward model, [E].
        ended: bool [E], whether the response has an end.
        mean: of the reward model on held-out answers; 0 to leave scores unshifted.
        std: likewise, positive; 1 to leave scores unscaled.
        clip: normalised scores are clipped to +- this.
        missing_eos_penalty: taken, after clipping, from episodes without an end.
    """
    normal = ((scores - mean) / std).clamp(-clip, clip)
    return normal - missing_eos_penalty * (~ended).to(normal.dtype)


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Reward of every response token: ``-kl_coef x kl``, and the score at the last one; [E, T].

    Args:
        scores: [E], see :func:`episode_scores`.
        kl: [E, T], see :func:`kl_per_token`.
        mask: bool [E, T]; every episode has a token.
        kl_coef: weight of the penalty.
    """
    rewards = torch.where(mask, -kl_coef * kl, 0)
    last = mask.sum(1, keepdim=True) - 1
    return rewards.scatter_add(1, last, scores[:, None].to(rewards.dtype))


def gae(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantage estimates over the response, and the returns; both [E, T].

    ``values[e, t]`` is the critic's estimate before token t is taken. After the last token there is nothing:
    its next value is 0, whether the response ended or was cut. Returns are advantages plus values, before any
    whitening. Source: Schulman et al. 2016, equation 16.

    Args:
        rewards: [E, T].
        values: [E, T].
        mask: bool [E, T].
        gamma: discount.
        lam: lambda.
    """
    values = torch.where(mask, values, 0)
    rewards = torch.where(mask, rewards, 0)
    advantages = torch.zeros_like(values)
    running = torch.zeros_like(values[:, 0])
    following = torch.zeros_like(values[:, 0])
    for column in reversed(range(values.shape[1])):
        delta = rewards[:, column] + gamma * following - values[:, column]
        running = torch.where(mask[:, column], delta + gamma * lam * running, 0)
        following = values[:, column]
        advantages[:, column] = running
    return advantages, advantages + values


def explained_variance(values: torch.Tensor, returns: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """``1 - var(returns - values) / var(returns)`` over the mask; scalar; 0 where returns do not vary."""
    spread = masked_var(returns, mask)
    ratio = masked_var(returns - values, mask) / spread.clamp_min(1e-12)
    return torch.where(spread > 1e-12, 1 - ratio, torch.zeros_like(spread))
