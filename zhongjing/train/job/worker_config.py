"""What the driver hands to the workers, and the function that Ray Train calls on each.

This module is light on purpose: Ray Train's controller imports it too, and has no use for torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from zhongjing.storage.manifest import SourceCounts


@dataclass(frozen=True)
class Prepared:
    """What the workers need, by reference; every reference means the same on every node.

    Attributes:
        base: full model that the workers load.
        adapter: PPO only: the adapter that policy and reference start from, if ``from`` is one.
        reward: PPO only: the reward model's adapter.
        reward_mean: PPO only: mean of its held-out rewards, where its manifest tells it.
        reward_std: PPO only: their standard deviation.
        tokenizer: folder of the tokenizer, chat template included.
        tokens: the token cache.
        counts: what became of the sources' records.
        warnings: what was found doubtful before the training.
    """

    base: str
    base_revision: str | None
    adapter: str | None
    reward: str | None
    reward_mean: float | None
    reward_std: float | None
    tokenizer: str
    tokens: str
    counts: tuple[SourceCounts, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class WorkerConfig:
    """What every worker gets. No secret: credentials are in each worker's environment."""

    request: str  # StageRequest as JSON
    prepared: Prepared
    submission_id: str
    driver_node: str  # id of the Ray node that the driver runs on


def train_worker(config: dict[str, Any]) -> dict[str, Any] | None:
    """Trains one rank; rank 0 uploads the result and returns what the manifest needs."""
    from zhongjing.train.job.scratch import keep_downloads_in_scratch

    keep_downloads_in_scratch()
    from zhongjing.train.job.worker import train_rank

    worker: WorkerConfig = config["worker"]
    return train_rank(worker)
