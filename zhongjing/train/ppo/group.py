"""Sharing a rollout between ranks.

Every rank makes and measures a share of the episodes, and then holds all of them: a rollout is small
(32 episodes of 512 tokens are 64 KB a quantity). So whitening and every other statistic of the rollout needs
no further word between ranks, minibatches can be divided evenly, and results do not depend on who made what.

Sharing is a sum: each rank fills the rows it has, the others leave zeros. x + 0 is x, so this is exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import distributed


@dataclass(frozen=True, slots=True)
class Group:
    """The processes that train together."""

    rank: int
    world_size: int
    device: torch.device

    def all_reduce_sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum of ``tensor`` over all ranks, on CPU; the same on every rank."""
        if self.world_size == 1:
            return tensor.cpu()
        whole = tensor.to(self.device, copy=True)
        if whole.dtype == torch.bool:
            whole = whole.to(torch.int32)
        distributed.all_reduce(whole)
        return whole.to(tensor.dtype).cpu()

    def shard(self, count: int) -> list[int]:
        """Which of ``count`` things this rank takes: every ``world_size``-th."""
        return list(range(self.rank, count, self.world_size))
