"""Putting a PPO program together from folders: what the job calls."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from transformers import PretrainedConfig

from zhongjing.codes import data as data_codes
from zhongjing.codes import model as model_codes
from zhongjing.config.stages import PpoSettings
from zhongjing.data.order import SampleOrder, mixture_of
from zhongjing.data.samples import SampleSet
from zhongjing.errors import DataError
from zhongjing.model.adapters import read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.rollout import CompactingEngine, Sampling
from zhongjing.train.distributed import seed_of
from zhongjing.train.ppo.group import Group
from zhongjing.train.ppo.program import PpoProgram
from zhongjing.train.ppo.roles import POLICY, PpoModule
from zhongjing.train.ppo.sources import Sources, Vocabulary
from zhongjing.train.precision import dtype_of


def build_ppo(
    settings: PpoSettings,
    base_folder: Path,
    *,
    adapter_folder: Path | None,
    reward_folder: Path,
    base_reference: str,
    tokenizer_folder: Path,
    train: SampleSet,
    validation: SampleSet,
    rank: int,
    world_size: int,
    device: torch.device,
    seed: int,
    reward_mean: float | None = None,
    reward_std: float | None = None,
) -> PpoProgram:
    """The program of a PPO job.

    Args:
        settings: of the stage.
        base_folder: full model under all roles. Where SFT was a full tuning, the SFT model.
        adapter_folder: adapter that policy and reference start from; None where ``base_folder`` is it.
        reward_folder: the reward model's adapter, of the same base.
        base_reference: URI or path by which the result refers to its base.
        tokenizer_folder: tokenizer with the chat template in use; copied beside the result.
        train: training prompts, one segment each.
        validation: held-out prompts; may be empty.
        rank: of this process.
        world_size: number of processes.
        device: of this process.
        seed: of the stage.
        reward_mean: mean of the reward model's scores on its held-out answers (``rewardMean`` of the rm
            stage's manifest); None counts as 0. It and the next count only where ``normalizeReward`` is set.
        reward_std: their standard deviation (``rewardStd``); None counts as 1.

    Raises:
        DataError: a model, adapter or prompt cannot be used.
        ConfigError: settings contradict each other.
    """
    normalize = settings.normalize_reward
    mean = reward_mean if normalize and reward_mean is not None else 0.0
    std = reward_std if normalize and reward_std is not None else 1.0
    if not (math.isfinite(mean) and math.isfinite(std) and std > 0):
        raise DataError(
            f"the reward model's mean {mean:g} and deviation {std:g} cannot normalise a reward",
            code=model_codes.UNUSABLE_REWARD,
            where=str(reward_folder),
        )
    if not len(train):
        raise DataError(
            "no training prompts are left",
            code=data_codes.NO_GOOD_RECORD,
            where="data",
            remedy="add sources, or lower validationFraction",
        )
    vocabulary = Vocabulary.of(tokenizer_folder)
    base = load_base(
        base_folder, dtype=dtype_of(settings, device), quantization=settings.quantization, device=device
    )
    _check_room(base.config, settings, (train, validation), len(vocabulary.turn_end_ids))
    module = PpoModule(
        base,
        None if adapter_folder is None else read_adapter(adapter_folder),
        read_adapter(reward_folder),
        settings,
        seed_of(seed, 0),
        reward_mean=mean,
        reward_std=std,
    )
    module.to(device)
    sampling = Sampling(settings.max_new_tokens, vocabulary.stop_ids, settings.temperature)
    gib = settings.rollout.cache_gib
    cache_bytes = None if gib is None else int(gib * 2**30)
    weights, repeats = mixture_of(settings)
    return PpoProgram(
        module,
        CompactingEngine(module.router, POLICY, sampling, cache_bytes=cache_bytes),
        prompts=train,
        order=SampleOrder(train.groups, train.group_names, seed, weights, repeats),
        held_out=validation,
        settings=settings,
        vocabulary=vocabulary,
        group=Group(rank, world_size, device),
        seed=seed,
        sources=Sources(adapter_folder, reward_folder, tokenizer_folder, base_reference),
    )


def _check_room(
    config: PretrainedConfig, settings: PpoSettings, splits: tuple[SampleSet, ...], turn_end: int
) -> None:
    """Finds before the first rollout what would end it: a prompt that leaves too few positions."""
    longest = max(int(split.tokens.max()) for split in splits if len(split))
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and longest + settings.max_new_tokens + turn_end > positions:
        raise DataError(
            f"a prompt has {longest} tokens; with maxNewTokens {settings.max_new_tokens} it is longer "
            f"than the model's {positions} positions",
            code=model_codes.TOO_LONG_FOR_MODEL,
            where="spec.stages.ppo",
            remedy="lower maxPromptLength or maxNewTokens",
        )
