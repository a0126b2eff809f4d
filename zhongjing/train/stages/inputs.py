"""What a stage's program is made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from zhongjing.data.samples import SampleSet


@dataclass(frozen=True, slots=True, kw_only=True)
class StageInputs:
    """Folders of this node, the splits, and this process among the ranks.

    Attributes:
        base: full model in Hugging Face format; where PPO follows a full SFT, the SFT model.
        base_reference: URI or path by which an adapter refers to that model.
        tokenizer: folder of the tokenizer with the chat template in use; copied beside the result.
        train: training split.
        validation: held-out split; may be empty.
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        seed: of everything random in the stage.
        adapter: PPO: what policy and reference start from; None where ``base`` is it.
        reward: PPO: the reward model's adapter, of the same base.
        reward_mean: PPO: mean of the reward model's held-out scores, as its manifest says; None counts as 0.
        reward_std: PPO: their standard deviation; None counts as 1.
    """

    base: Path
    base_reference: str
    tokenizer: Path
    train: SampleSet
    validation: SampleSet
    rank: int
    world_size: int
    device: torch.device
    seed: int
    adapter: Path | None = None
    reward: Path | None = None
    reward_mean: float | None = None
    reward_std: float | None = None
