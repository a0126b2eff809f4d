from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
)

from zhongjing.config.stages import Lora
from zhongjing.errors import DataError
from zhongjing.model.adapters import add_lora, save_adapter
from zhongjing.model.base import load_base
from zhongjing.model.export import finish_adapter_folder, localise, merge_adapter, write_full_model
from zhongjing.model.reward import build_reward_model, save_reward_model

CAUSAL: Any = AutoModelForCausalLM  # typed as if output_loading_info did not exist
FAMILIES = ("llama", "qwen2", "qwen3")
LORA = Lora.model_validate({"rank": 4, "alpha": 8, "dropout": 0.0})
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def disturb(model: PeftModel) -> None:
    generator = torch.Generator().manual_seed(9)
    for path, parameter in model.named_parameters():
        if ".lora_B." in path:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def causal_adapter(base: Path, folder: Path) -> PeftModel:
    model = add_lora(load_base(base, dtype=torch.float32), LORA, "default", 1)
    disturb(model)
    save_adapter(model, folder, "s3://bucket/base")
    return model.eval()


def reward_adapter(base: Path, folder: Path) -> PeftModel:
    model = build_reward_model(base, LORA, 1, torch.float32)
    disturb(model)
    save_reward_model(model, folder, "s3://bucket/base")
    return model.eval()


@torch.no_grad()
def logits(model: torch.nn.Module) -> torch.Tensor:
    result: torch.Tensor = model.eval()(input_ids=IDS).logits
    return result


@pytest.mark.parametrize("family", FAMILIES)
def test_full_weights_come_back(family: str, base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_base(base_folder(family), dtype=torch.float32, attention_dropout=0.1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    write_full_model(model, tmp_path, base_folder(family), max_shard_bytes=20_000)
    assert (tmp_path / "model.safetensors.index.json").is_file()
    loaded, report = CAUSAL.from_pretrained(str(tmp_path), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(loaded), logits(model))
    assert loaded.config.use_cache is True
    assert loaded.config.pad_token_id == 0
    assert GenerationConfig.from_pretrained(str(tmp_path)).eos_token_id == [0, 2]
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path))
    question = [{"role": "user", "content": "感冒"}]
    text = tokenizer.apply_chat_template(question, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>user\n感冒<|im_end|>\n<|im_start|>assistant\n"


def test_full_weights_in_another_format(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    model = load_base(base_folder("llama"), dtype=torch.float32)
    write_full_model(model, tmp_path, base_folder("llama"), dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert CAUSAL.from_pretrained(str(tmp_path)).dtype == torch.bfloat16


def test_a_pulled_adapter_finds_its_base_by_itself(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in base_folder("llama").iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config["pad_token_id"] = None
    (base / "config.json").write_text(json.dumps(config))
    model = causal_adapter(base, tmp_path / "adapter")
    localise(tmp_path / "adapter", base)
    finish_adapter_folder(tmp_path / "adapter", base)
    loaded = AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "adapter"))
    assert torch.equal(logits(loaded), logits(model))
    assert json.loads((base / "config.json").read_text())["pad_token_id"] == 0
    assert AutoTokenizer.from_pretrained(str(tmp_path / "adapter")).chat_template
    assert GenerationConfig.from_pretrained(str(tmp_path / "adapter")).eos_token_id == [0, 2]


def test_an_adapter_is_not_bound_to_a_foreign_base(
    base_folder: Callable[[str], Path], new_base: Callable[..., None], tmp_path: Path
) -> None:
    causal_adapter(base_folder("llama"), tmp_path / "adapter")
    new_base(tmp_path / "deeper", "llama", layers=3)
    with pytest.raises(DataError, match="adapter of another base"):
        localise(tmp_path / "adapter", tmp_path / "deeper")
    with pytest.raises(DataError, match="adapter of another base"):
        merge_adapter(tmp_path / "deeper", tmp_path / "adapter", tmp_path / "out")


@pytest.mark.parametrize("family", FAMILIES)
def test_merged_equals_base_with_adapter(
    family: str, base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = causal_adapter(base_folder(family), tmp_path / "adapter")
    merge_adapter(base_folder(family), tmp_path / "adapter", tmp_path / "out", max_shard_bytes=20_000)
    loaded, report = CAUSAL.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=2e-6)
    assert (logits(loaded) - logits(load_base(base_folder(family), dtype=torch.float32))).abs().max() > 1e-3
    theirs = model.merge_and_unload().state_dict()
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_reward_model_is_a_classifier(
    family: str, base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = reward_adapter(base_folder(family), tmp_path / "adapter")
    merge_adapter(base_folder(family), tmp_path / "adapter", tmp_path / "out")
    classifier: Any = AutoModelForSequenceClassification
    loaded, report = classifier.from_pretrained(str(tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert loaded.config.num_labels == 1
    torch.testing.assert_close(logits(loaded), logits(model), rtol=1e-5, atol=2e-6)
    batch = AutoTokenizer.from_pretrained(str(tmp_path / "out"))(
        ["感冒", "高血压患者"], return_tensors="pt", padding=True
    )
    assert loaded(**batch).logits.shape == (2, 1)
