"""Tiny random bases of three families with random adapters: every number differs between the roles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from tests.training_support import TEMPLATE, tiny
from zhongjing.config.stages import Lora, PpoSettings
from zhongjing.data.samples import Sample, SampleSet, Segment
from zhongjing.model.adapters import add_lora, save_adapter
from zhongjing.model.base import load_base, make_tiny_base
from zhongjing.model.reward import build_reward_model, save_reward_model
from zhongjing.train.stages.inputs import StageInputs

TEXTS = ["感冒的典型症状是发热、咳嗽、流鼻涕，多喝水，注意休息。", "高血压患者应当低盐饮食，按时服药。"] * 20


@dataclass(frozen=True)
class Folders:
    """A base with an SFT adapter and a reward model, on disk."""

    base: Path
    sft: Path
    reward: Path


class Prompts:
    """A sample set of prompts in memory."""

    def __init__(self, prompts: Sequence[Sequence[int]]) -> None:
        self._prompts = [np.asarray(prompt, dtype=np.int32) for prompt in prompts]

    def __len__(self) -> int:
        return len(self._prompts)

    @property
    def tokens(self) -> npt.NDArray[np.int64]:
        return np.array([len(prompt) for prompt in self._prompts], dtype=np.int64)

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return np.zeros(len(self), dtype=np.int64)

    @property
    def groups(self) -> npt.NDArray[np.int32]:
        return np.zeros(len(self), dtype=np.int32)

    @property
    def group_names(self) -> Sequence[str]:
        return ["prompts"]

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        found = []
        for index in indices:
            ids = self._prompts[index]
            found.append(Sample(index, (Segment(ids, np.zeros(len(ids), dtype=np.bool_)),)))
        return found


def shake(model: PeftModel, seed: int) -> None:
    """Gives B random values: a fresh adapter would change nothing, and every test would pass."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0.0, 0.2, generator=generator)


def make_folders(root: Path, family: str) -> Folders:
    folders = Folders(root / "base", root / "sft", root / "rm")
    make_tiny_base(folders.base, tiny(family=family, vocabulary_size=320), TEXTS, 3, TEMPLATE)
    lora = Lora.model_validate({"rank": 4, "alpha": 8.0, "dropout": 0.0})
    sft = add_lora(load_base(folders.base, dtype=torch.float32), lora, "default", 5)
    shake(sft, 6)
    save_adapter(sft, folders.sft, str(folders.base))
    rm_lora = Lora.model_validate(
        {"rank": 3, "alpha": 9.0, "dropout": 0.0, "targetModules": ["q_proj", "v_proj", "down_proj"]}
    )
    reward = build_reward_model(folders.base, rm_lora, 7, torch.float32)
    shake(reward, 8)
    save_reward_model(reward, folders.reward, str(folders.base))
    return folders


def ppo_inputs(folders: Folders, train: SampleSet, validation: SampleSet, **changes: Any) -> StageInputs:
    """Inputs of PPO over these folders, on one CPU unless ``changes`` say otherwise."""
    fields: dict[str, Any] = {"rank": 0, "world_size": 1, "device": torch.device("cpu"), "seed": 1, **changes}
    return StageInputs(
        base=folders.base,
        base_reference=str(folders.base),
        tokenizer=folders.base,
        train=train,
        validation=validation,
        adapter=folders.sft,
        reward=folders.reward,
        **fields,
    )


def reward_by_peft(base: Path, adapter: Path) -> PeftModel:
    """A reward model (or critic) as transformers and PEFT load it, with no code of ours."""
    classifier = AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=1)
    loaded: PeftModel = PeftModel.from_pretrained(classifier, str(adapter))
    return loaded.eval()


def make_settings(**fields: Any) -> PpoSettings:
    return PpoSettings.model_validate(
        {
            "data": [{"source": "prompts"}],
            "precision": "fp32",
            "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0},
            "globalBatchSize": 8,
            "microBatchTokens": 48,
            "maxNewTokens": 8,
            "learningRate": 1e-3,
            **fields,
        }
    )


def random_prompts(count: int, seed: int = 0) -> Prompts:
    rng = np.random.default_rng(seed)
    return Prompts([rng.integers(3, 300, rng.integers(2, 12)).tolist() for _ in range(count)])
