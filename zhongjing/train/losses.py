"""Losses of the reward model and of PPO as pure functions; that of pretraining and SFT is in model/causal.py.

Sums, not means: the loop divides by what the whole optimizer step counts. A mean of micro-batch means would
weigh short responses more.

Shapes: S segments (answers) of P prompts in a micro-batch. PPO's tensors are [1, T], the tokens of a packed
row; ``mask`` is true on response tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

# exp(20) is far beyond any clip range and far below overflow, also in sums.
LOG_RATIO_LIMIT = 20.0


def ranking_pairs(samples: torch.Tensor, ranks: torch.Tensor) -> torch.Tensor:
    """Which answer beats which: bool [S, S], ``[i, j]`` is True where i is the better answer to j's prompt.

    Args:
        samples: int64 [S], prompt of each answer.
        ranks: int64 [S], rank of each answer among its prompt's, 0 the best; equal ranks are ties.
    """
    return (samples[:, None] == samples[None, :]) & (ranks[:, None] < ranks[None, :])


def ranking_loss(
    rewards: torch.Tensor, samples: torch.Tensor, ranks: torch.Tensor, num_prompts: int
) -> torch.Tensor:
    """Sum over prompts of -mean over the C(K, 2) pairs of log sigmoid(r_better - r_worse). fp32 scalar.

    Ties are left out, of the numerator and of the count; a prompt of nothing but ties adds 0. For K = 2 it is
    the loss of Ouyang et al. 2022 and of TRL's RewardTrainer, times the number of prompts.

    Args:
        rewards: [S], fp32.
        samples: int64 [S], prompt of each answer, from 0 to ``num_prompts`` - 1.
        ranks: int64 [S], rank of each answer among its prompt's.
        num_prompts: P.
    """
    pairs = ranking_pairs(samples, ranks).float()
    losses = -functional.logsigmoid(rewards[:, None] - rewards[None, :]) * pairs
    counts = _of_prompts(pairs.sum(1), samples, num_prompts)
    return (_of_prompts(losses.sum(1), samples, num_prompts) / counts.clamp(min=1)).sum()


def pair_counts(
    rewards: torch.Tensor, samples: torch.Tensor, ranks: torch.Tensor, num_prompts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pairs of each prompt that the rewards order rightly, and all its pairs; fp32 [P] each.

    Equal rewards are half right, as by chance.
    """
    pairs = ranking_pairs(samples, ranks).float()
    right = _of_prompts((_order(rewards) * pairs).sum(1), samples, num_prompts)
    return right, _of_prompts(pairs.sum(1), samples, num_prompts)


def pair_fractions(
    rewards: torch.Tensor, samples: torch.Tensor, ranks: torch.Tensor, num_prompts: int
) -> torch.Tensor:
    """Share of each prompt's pairs that the rewards order rightly, fp32 [P]; 0 for a prompt of ties."""
    right, pairs = pair_counts(rewards, samples, ranks, num_prompts)
    return right / pairs.clamp(min=1)


def _order(rewards: torch.Tensor) -> torch.Tensor:
    """[S, S]: 1 where i is above j, 0.5 where they are equal: half right, as by chance."""
    above = (rewards[:, None] > rewards[None, :]).float()
    return above + 0.5 * (rewards[:, None] == rewards[None, :]).float()


def _of_prompts(values: torch.Tensor, samples: torch.Tensor, num_prompts: int) -> torch.Tensor:
    return values.new_zeros(num_prompts).index_add(0, samples, values)


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """Sums over the masked tokens; only ``loss`` carries a gradient."""

    loss: torch.Tensor
    clipped: torch.Tensor  # tokens whose gradient the clipping took away
    kl: torch.Tensor  # k3 estimate of KL(rollout's policy || policy now)
    ratio: torch.Tensor
    largest: torch.Tensor  # largest |log ratio|, before the limit; not a sum


def policy_loss(
    logprobs: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, equation 7), as a sum to be minimised.

    Args:
        logprobs: of the taken tokens now, with grad.
        old_logprobs: of the same tokens when the rollout was made.
        advantages: of the tokens.
        mask: bool.
        clip_range: epsilon.
    """
    difference = torch.where(mask, logprobs - old_logprobs, 0)
    log_ratio = difference.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_range, 1 + clip_range)
    loss = torch.where(mask, torch.maximum(plain, clipped), 0).sum()
    with torch.no_grad():
        return PolicyLoss(
            loss,
            ((clipped > plain) & mask).sum(dtype=torch.float32),
            torch.where(mask, ratio - 1 - log_ratio, 0).sum(),
            torch.where(mask, ratio, 0).sum(),
            difference.abs().max(),
        )


@dataclass(frozen=True, slots=True)
class ValueLoss:
    """Sums over the masked tokens; only ``loss`` carries a gradient."""

    loss: torch.Tensor
    clipped: torch.Tensor


def value_loss(
    values: torch.Tensor,
    old_values: torch.Tensor,
    returns: torch.Tensor,
    mask: torch.Tensor,
    clip_range: float,
) -> ValueLoss:
    """Half the squared error, the larger of the plain and the clipped one, as a sum.

    The clipped value may be no farther than ``clip_range`` from the rollout's. Source: the PPO of OpenAI's
    baselines, kept by Ziegler et al. 2019.

    Args:
        values: of the critic now, with grad.
        old_values: of the critic when the rollout was made.
        returns: targets.
        mask: bool.
        clip_range: in units of the reward.
    """
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    plain = (values - returns).square()
    clipped = (near - returns).square()
    loss = 0.5 * torch.where(mask, torch.maximum(plain, clipped), 0).sum()
    with torch.no_grad():
        return ValueLoss(loss, ((clipped > plain) & mask).sum(dtype=torch.float32))
