from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from zhongjing.config.stages import Lora
from zhongjing.data.samples import PackedRow
from zhongjing.model.adapters import read_adapter
from zhongjing.model.causal import segment_ends_hidden
from zhongjing.model.reward import (
    build_reward_model,
    head_rewards,
    head_weight,
    save_reward_model,
)

FAMILIES = ("llama", "qwen2", "qwen3")
LORA = Lora.model_validate({"rank": 4, "alpha": 8, "dropout": 0.0})
ANSWERS = ["感冒应多喝水<|im_end|>", "高血压患者应当低盐饮食，按时服药。<|im_end|>", "胃炎<|im_end|>"]


def trained(base: Path, seed: int = 5, dtype: torch.dtype = torch.float32) -> PeftModel:
    model = build_reward_model(base, LORA, seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in model.named_parameters():
        if ".lora_B." in path:
            parameter.data = (0.2 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
    return model.eval()


def our_scores(model: PeftModel, base: Path) -> torch.Tensor:
    """Read at the last token of each segment of a packed row."""
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    row = PackedRow.of([np.array(tokenizer(answer)["input_ids"]) for answer in ANSWERS])
    return head_rewards(segment_ends_hidden(model, row), head_weight(model))


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_and_peft_give_the_same_scores(
    family: str, base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_folder(family)
    model = trained(base)
    with torch.no_grad():
        ours = our_scores(model, base)
    save_reward_model(model, tmp_path, str(base))

    classifier = AutoModelForSequenceClassification.from_pretrained(str(base), num_labels=1)
    loaded = PeftModel.from_pretrained(classifier, str(tmp_path)).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(base))
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer(ANSWERS, return_tensors="pt", padding=True)
        with torch.no_grad():
            theirs = loaded(**batch).logits.squeeze(-1)
        torch.testing.assert_close(theirs, ours, rtol=2e-5, atol=2e-6)
    assert ours.std() > 1e-3  # the scores do differ, so that equality says something


def test_adapter_and_head_are_trained_and_nothing_else(base_folder: Callable[[str], Path]) -> None:
    model = build_reward_model(base_folder("llama"), LORA, 5, torch.float32)
    model.train()
    our_scores(model, base_folder("llama")).sum().backward()
    trainable = {path for path, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".lora_" in path or "score.modules_to_save" in path for path in trainable)
    assert (
        head_weight(model)
        is dict(model.named_parameters())["base_model.model.score.modules_to_save.default.weight"]
    )
    assert head_weight(model).grad is not None
    assert head_weight(model).shape == (1, 32)


def test_the_head_is_fp32_and_so_are_its_rewards(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = trained(base_folder("llama"), dtype=torch.bfloat16)
    assert head_weight(model).dtype == torch.float32
    save_reward_model(model, tmp_path, "base")
    head = read_adapter(tmp_path).head
    assert head is not None
    assert head.dtype == torch.float32
    hidden = torch.full((2, 4096), 1.001, dtype=torch.bfloat16)
    weight = torch.full((1, 4096), 1.0009765625)
    exact = (hidden.double() @ weight.double().t()).squeeze(-1)
    torch.testing.assert_close(head_rewards(hidden, weight).double(), exact, rtol=1e-6, atol=0)
    rounded = (hidden @ weight.bfloat16().t()).squeeze(-1).double()
    assert (rounded - exact).abs().max() > 1  # what a cast head would have given


def test_adapter_and_head_are_a_function_of_the_seed(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)
        model = build_reward_model(base_folder("llama"), LORA, seed, torch.float32)
        save_reward_model(model, tmp_path / str(number), "base")
    files = [(tmp_path / str(number) / "adapter_model.safetensors").read_bytes() for number in range(3)]
    assert files[0] == files[1] != files[2]
