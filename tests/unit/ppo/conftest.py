"""Roles and programs over tiny random bases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from tests.ppo_support import Folders, Prompts, make_folders, make_settings, ppo_inputs, random_prompts
from zhongjing.config.stages import PpoSettings
from zhongjing.model.adapters import read_adapter
from zhongjing.model.base import load_base
from zhongjing.train.ppo.program import PpoProgram
from zhongjing.train.ppo.roles import PpoModule


@pytest.fixture(scope="session")
def folders_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Folders]:
    made: dict[str, Folders] = {}

    def make(family: str) -> Folders:
        if family not in made:
            made[family] = make_folders(tmp_path_factory.mktemp("ppo") / family, family)
        return made[family]

    return make


@pytest.fixture(scope="session")
def settings() -> Callable[..., PpoSettings]:
    return make_settings


@pytest.fixture
def module_of(folders_of: Callable[[str], Folders]) -> Callable[..., PpoModule]:
    """``module_of(family, **settings)``: all four roles; the policy's adapter is shaken too."""

    def make(family: str, *, shaken: bool = True, **fields: Any) -> PpoModule:
        folders = folders_of(family)
        base: PreTrainedModel = load_base(folders.base, dtype=torch.float32)
        module = PpoModule(
            base, read_adapter(folders.sft), read_adapter(folders.reward), make_settings(**fields), 11
        )
        if shaken:
            generator = torch.Generator().manual_seed(12)
            for name, parameter in module.router.parameters_of("ppo"):
                if name.endswith("lora_B"):
                    parameter.data.normal_(0.0, 0.2, generator=generator)
        return module

    return make


@pytest.fixture(scope="session")
def prompts() -> Callable[..., Prompts]:
    return random_prompts


@pytest.fixture
def program_of(folders_of: Callable[[str], Folders]) -> Callable[..., PpoProgram]:
    def make(*, rank: int = 0, world_size: int = 1, seed: int = 1, **fields: Any) -> PpoProgram:
        folders = folders_of("llama")
        inputs = ppo_inputs(
            folders,
            random_prompts(20),
            random_prompts(6, seed=1),
            rank=rank,
            world_size=world_size,
            seed=seed,
            reward_mean=0.1,
            reward_std=0.7,
        )
        return PpoProgram(make_settings(**fields), inputs)

    return make
