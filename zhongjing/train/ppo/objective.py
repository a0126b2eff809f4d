"""PPO's losses per token: pure functions. The loop divides sums by the tokens of the whole step.

Shapes: all tensors [1, T], the tokens of a packed row, unless said otherwise. ``mask`` is true on response
tokens. Losses are returned as sums over the mask, never means: a mean of micro-batch means would weigh short
responses more.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

# exp(20) is far beyond any clip range and far below overflow, also in sums.
LOG_RATIO_LIMIT = 20.0


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
