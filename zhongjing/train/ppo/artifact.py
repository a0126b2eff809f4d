"""PPO's result on disk: one adapter over the base, and the critic as a PEFT sequence classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from zhongjing.config.stages import Lora
from zhongjing.model.adapters import read_adapter, stack_adapters, write_adapter
from zhongjing.model.router import AdapterRouter
from zhongjing.train.ppo.roles import CRITIC, PPO

_PREFIX = "base_model.model."


def write_policy(
    router: AdapterRouter, folder: Path, scratch: Path, *, sft: Path | None, lora: Lora, base: str
) -> None:
    """Writes sft + ppo as one adapter of their ranks' sum, so that one PEFT load gives the policy.

    Args:
        router: has the trained adapter.
        folder: where the result goes.
        scratch: an empty folder for the trained adapter alone.
        sft: adapter below it, or None: then the trained adapter alone is the result.
        lora: settings of the trained adapter.
        base: stored as ``base_model_name_or_path``.
    """
    tensors = _tensors(router, PPO)
    config: dict[str, Any] = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,  # type: ignore[arg-type]  # PEFT says int and takes any number
        lora_dropout=0.0,
        target_modules=sorted({name.split(".")[-3] for name in tensors}),
        bias="none",
        task_type="CAUSAL_LM",
    ).to_dict()  # type: ignore[no-untyped-call]
    if sft is None:
        write_adapter(folder, config, tensors, base)
        return
    write_adapter(scratch, config, tensors, base)
    stack_adapters(sft, scratch, folder, base=base)


def write_critic(router: AdapterRouter, head: torch.Tensor, folder: Path, *, reward: Path, base: str) -> None:
    """Writes the critic in the format of the reward model that it started from; its output has its units.

    Args:
        router: has the critic's adapter.
        head: weight [1, hidden].
        folder: where it goes.
        reward: adapter folder whose configuration it shares.
        base: stored as ``base_model_name_or_path``.
    """
    tensors = _tensors(router, CRITIC)
    tensors[f"{_PREFIX}score.weight"] = head.detach().float()
    write_adapter(folder, read_adapter(reward).config, tensors, base)


def _tensors(router: AdapterRouter, adapter: str) -> dict[str, torch.Tensor]:
    return {
        f"{_PREFIX}{path}.weight": parameter.detach().float()
        for path, parameter in router.parameters_of(adapter)
    }
