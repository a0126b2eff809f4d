"""Losses as pure functions. Sums, not means: the loop divides by what the whole optimizer step counts.

Shapes: S segments (answers) of P prompts in a micro-batch.
"""

from __future__ import annotations

import torch
from torch.nn import functional


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
