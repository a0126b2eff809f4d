"""From a prepared stage to its program: which class, with which folders and splits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zhongjing.config.stages import AnySettings, PpoSettings, PretrainSettings, SftSettings
from zhongjing.data.samples import SampleSet
from zhongjing.train.job.worker_config import Prepared
from zhongjing.train.ppo.build import build_ppo
from zhongjing.train.stages.causal import PretrainProgram, SftProgram
from zhongjing.train.stages.program import StageProgram
from zhongjing.train.stages.rm import RmProgram


@dataclass(frozen=True, slots=True)
class Local:
    """A prepared stage's folders on this node, and this process's place."""

    base: Path
    adapter: Path | None
    reward: Path | None
    tokenizer: Path
    train: SampleSet
    validation: SampleSet
    rank: int
    world_size: int
    device: torch.device
    seed: int


def build_program(settings: AnySettings, prepared: Prepared, local: Local) -> StageProgram:
    """The program of a stage; the kind of its settings says which.

    Raises:
        DataError: a model, adapter or split cannot be used.
        ConfigError: settings contradict each other.
    """
    if isinstance(settings, PpoSettings):
        assert local.reward is not None, "a PPO request has a reward input"
        return build_ppo(
            settings,
            local.base,
            adapter_folder=local.adapter,
            reward_folder=local.reward,
            base_reference=prepared.base,
            tokenizer_folder=local.tokenizer,
            train=local.train,
            validation=local.validation,
            rank=local.rank,
            world_size=local.world_size,
            device=local.device,
            seed=local.seed,
            reward_mean=prepared.reward_mean,
            reward_std=prepared.reward_std,
        )
    kind: Any = RmProgram
    if isinstance(settings, PretrainSettings | SftSettings):
        kind = PretrainProgram if isinstance(settings, PretrainSettings) else SftProgram
    program: StageProgram = kind(
        settings,
        local.base,
        base_reference=prepared.base,
        tokenizer_folder=local.tokenizer,
        train=local.train,
        validation=local.validation,
        rank=local.rank,
        world_size=local.world_size,
        device=local.device,
        seed=local.seed,
    )
    return program
