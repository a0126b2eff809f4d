from __future__ import annotations

import json
import shutil
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

from tests.older_readers import read_as_before
from tests.published_tokenizers import write_tokenizer
from zhongjing.config.stages import Lora
from zhongjing.errors import DataError
from zhongjing.model.adapters import add_lora, save_adapter
from zhongjing.model.base import load_base
from zhongjing.model.export import (
    copy_tokenizer,
    finish_adapter_folder,
    localise,
    merge_adapter,
    write_full_model,
)
from zhongjing.model.reward import build_reward_model, save_reward_model
from zhongjing.model.tokenizer import load_tokenizer, padding_id

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
def test_full_weights_come_back(
    family: str, base_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_base(base_folder(family), dtype=torch.float32, attention_dropout=0.1)
    monkeypatch.setattr("zhongjing.model.weights.SHARD_BYTES", 20_000)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    write_full_model(model, tmp_path, base_folder(family))
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
    family: str, base_folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = causal_adapter(base_folder(family), tmp_path / "adapter")
    monkeypatch.setattr("zhongjing.model.weights.SHARD_BYTES", 20_000)
    merge_adapter(base_folder(family), tmp_path / "adapter", tmp_path / "out")
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


@pytest.fixture
def eot_base(base_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A base as Llama-3 is published: no padding, no template, EOS ends documents."""
    base = tmp_path / "eot"
    shutil.copytree(base_folder("llama"), base)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        (base / name).unlink(missing_ok=True)
    write_tokenizer(base, "llama-3")
    config = json.loads((base / "config.json").read_text())
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
    config = {name: value for name, value in config.items() if name not in ("rope_theta", "rope_scaling")}
    config |= {"pad_token_id": None, "eos_token_id": 401, "rope_parameters": rope}
    (base / "config.json").write_text(json.dumps(config))
    (base / "generation_config.json").write_text(
        json.dumps({"eos_token_id": 401, "do_sample": True, "temperature": 0.6})
    )
    return base


@pytest.fixture
def eot_tokenizer(tmp_path: Path) -> Path:
    """The tokenizer that a stage uses with it: the Instruct template, and padding."""
    write_tokenizer(tmp_path / "template", "llama-3-eot")
    tokenizer = load_tokenizer(tmp_path / "template")
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(padding_id(tokenizer))
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    return tmp_path / "tokenizer"


def test_every_export_ends_turns_as_its_template_does(
    eot_base: Path, eot_tokenizer: Path, tmp_path: Path
) -> None:
    """Where EOS is not what ends a turn, generation would never end (unsloth #416, ms-swift #3113)."""
    tokenizer = load_tokenizer(eot_tokenizer)
    id_of = tokenizer.get_vocab()
    end, pad = id_of["<|eot_id|>"], id_of["<|end_of_text|>"]
    adapter = tmp_path / "adapter"
    causal_adapter(eot_base, adapter)
    finish_adapter_folder(adapter, eot_tokenizer)
    merge_adapter(eot_base, adapter, tmp_path / "merged")
    localise(adapter, eot_base)
    write_full_model(load_base(eot_base, dtype=torch.float32), tmp_path / "full", eot_tokenizer)
    for folder in (adapter, tmp_path / "merged", tmp_path / "full", eot_base):
        settings = GenerationConfig.from_pretrained(str(folder))
        assert end in settings.eos_token_id, folder
        assert settings.pad_token_id == pad
        if folder != adapter:
            assert settings.temperature == 0.6, "what the publisher says beside ends and padding stays"
    for folder in (tmp_path / "merged", tmp_path / "full", eot_base):
        assert json.loads((folder / "config.json").read_text())["pad_token_id"] == pad
        scaling = {"rope_type": "linear", "type": "linear", "factor": 2.0}
        assert read_as_before(folder) == (5e5, scaling), folder
    assert load_tokenizer(tmp_path / "merged").chat_template == tokenizer.chat_template
    assert AutoPeftModelForCausalLM.from_pretrained(str(adapter)).generation_config.eos_token_id == sorted(
        {401, end, pad}
    )


def test_a_reward_model_reads_the_end_of_a_turn_through_padding(
    eot_base: Path, eot_tokenizer: Path, tmp_path: Path
) -> None:
    """Batches of transformers' classifier score as single sequences do, whatever the base pads with."""
    adapter = tmp_path / "adapter"
    reward_adapter(eot_base, adapter)
    copy_tokenizer(eot_tokenizer, adapter)
    merge_adapter(eot_base, adapter, tmp_path / "merged")
    classifier: Any = AutoModelForSequenceClassification
    model = classifier.from_pretrained(str(tmp_path / "merged")).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / "merged"))
    talks = [
        [{"role": "user", "content": "头痛"}, {"role": "assistant", "content": answer}]
        for answer in ("多休息", "去医院检查，按时吃药。")
    ]
    texts = [str(tokenizer.apply_chat_template(talk, tokenize=False)) for talk in talks]
    assert all(text.endswith("<|eot_id|>") for text in texts)
    with torch.no_grad():
        batch = tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False)
        together = model(**batch).logits
        alone = [model(**tokenizer(t, return_tensors="pt", add_special_tokens=False)).logits for t in texts]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)
