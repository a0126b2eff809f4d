"""Putting a PPO program together from folders: what the job calls."""

from __future__ import annotations

import math

import torch

from zhongjing.config.stages import PpoSettings
from zhongjing.data.samples import SampleSet
from zhongjing.errors import ConfigError, DataError
from zhongjing.model.adapters import read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.rollout import CompactingEngine, Sampling
from zhongjing.train.distributed import seed_of
from zhongjing.train.ppo.exchange import Group
from zhongjing.train.ppo.program import Order, PpoProgram
from zhongjing.train.ppo.roles import POLICY, PpoModule
from zhongjing.train.ppo.sources import Sources, Vocabulary


def build_ppo(
    sources: Sources,
    *,
    prompts: SampleSet,
    order: Order,
    held_out: SampleSet,
    settings: PpoSettings,
    group: Group,
    seed: int,
    reward_mean: float = 0.0,
    reward_std: float = 1.0,
) -> PpoProgram:
    """The program of a PPO job.

    Args:
        sources: folders of base, adapters and tokenizer.
        prompts: training prompts.
        order: their order, a :class:`zhongjing.data.order.SampleOrder`.
        held_out: held-out prompts.
        settings: of the stage.
        group: the ranks.
        seed: of the stage.
        reward_mean: mean of the reward model's scores on its held-out answers (in the rm stage's metrics).
        reward_std: their standard deviation. Both count only where ``normalizeReward`` is set.

    Raises:
        DataError: a model, adapter or prompt cannot be used.
        ConfigError: settings contradict each other.
    """
    if not settings.normalize_reward:
        reward_mean, reward_std = 0.0, 1.0
    if not (math.isfinite(reward_mean) and math.isfinite(reward_std) and reward_std > 0):
        raise DataError(
            f"the reward model's mean {reward_mean:g} and deviation {reward_std:g} cannot normalise a reward",
            where=str(sources.reward),
            remedy="set normalizeReward: false, or train the reward model again",
        )
    if settings.lora.dropout:
        raise ConfigError(
            "PPO compares probabilities, and dropout would be noise in their ratio",
            where="spec.stages.ppo.lora.dropout",
            remedy="set it to 0",
        )
    vocabulary = Vocabulary.of(sources.tokenizer)
    module = PpoModule(
        load_base(sources.base, dtype=_dtype(settings)),
        None if sources.sft is None else read_adapter(sources.sft),
        read_adapter(sources.reward),
        settings,
        seed_of(seed, 0),
        reward_mean=reward_mean,
        reward_std=reward_std,
    )
    module.to(group.device)
    sampling = Sampling(settings.max_new_tokens, vocabulary.stop_ids, settings.temperature)
    engine = CompactingEngine(module.router, POLICY, sampling)
    return PpoProgram(
        module,
        engine,
        prompts=prompts,
        order=order,
        held_out=held_out,
        settings=settings,
        vocabulary=vocabulary,
        group=group,
        seed=seed,
        sources=sources,
    )


def _dtype(settings: PpoSettings) -> torch.dtype:
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[settings.precision]
