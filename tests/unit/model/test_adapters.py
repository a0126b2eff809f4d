from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from zhongjing.config.stages import Lora
from zhongjing.errors import DataError
from zhongjing.model.adapters import (
    add_lora,
    load_adapter,
    read_adapter,
    save_adapter,
    stack_adapters,
    target_modules,
)
from zhongjing.model.base import load_base

FAMILIES = ("llama", "qwen2", "qwen3")
LINEAR = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])


def lora(**changes: Any) -> Lora:
    return Lora.model_validate({"rank": 4, "alpha": 8, "dropout": 0.0, **changes})


def disturb(model: PeftModel, name: str, seed: int) -> None:
    """Gives B values, as training would: a fresh adapter changes nothing."""
    generator = torch.Generator().manual_seed(seed)
    for path, parameter in model.named_parameters():
        if f".lora_B.{name}." in path:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)


def trained(folder: Path, base: Path, seed: int, **changes: Any) -> PeftModel:
    model = add_lora(load_base(base, dtype=torch.float32), lora(**changes), "default", seed)
    disturb(model, "default", seed)
    save_adapter(model, folder, str(base))
    model.eval()
    return model


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model.eval()(input_ids=IDS).logits
        return result


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_loads_what_is_saved(family: str, base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_folder(family)
    model = trained(tmp_path, base, 3)
    plain = AutoModelForCausalLM.from_pretrained(str(base))
    before = logits(plain)
    loaded = PeftModel.from_pretrained(plain, str(tmp_path))
    assert torch.equal(logits(loaded), logits(model))
    assert (logits(loaded) - before).abs().max() > 1e-3
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["target_modules"] == LINEAR
    assert config["task_type"] == "CAUSAL_LM"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_fresh_adapter_changes_nothing_and_is_a_function_of_its_seed(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_folder("llama")
    before = logits(load_base(base, dtype=torch.float32))
    for number, seed in enumerate((1, 1, 2)):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        model = add_lora(load_base(base, dtype=torch.float32), lora(), "default", seed)
        assert torch.equal(state, torch.get_rng_state())
        assert torch.equal(logits(model), before)
        save_adapter(model, tmp_path / str(number), "s3://bucket/base")
    files = [(tmp_path / str(number) / "adapter_model.safetensors").read_bytes() for number in range(3)]
    assert files[0] == files[1] != files[2]
    configs = [(tmp_path / str(number) / "adapter_config.json").read_bytes() for number in range(2)]
    assert configs[0] == configs[1]


def test_only_the_adapter_is_trained(base_folder: Callable[[str], Path]) -> None:
    model = add_lora(load_base(base_folder("qwen2"), dtype=torch.float32), lora(), "default", 0)
    trainable = [path for path, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trainable) == 2 * len(LINEAR) * 2
    assert all(".lora_" in path for path in trainable)


def test_a_second_adapter_on_top_has_the_same_modules(base_folder: Callable[[str], Path]) -> None:
    model = add_lora(load_base(base_folder("llama"), dtype=torch.float32), lora(), "sft", 0)
    model = add_lora(model, lora(rank=2), "ppo", 1)
    config: Any = model.peft_config["ppo"]
    assert sorted(config.target_modules) == LINEAR
    paths = [path for path, _ in model.named_parameters() if ".lora_A." in path]
    assert len([path for path in paths if ".ppo." in path]) == len(LINEAR) * 2
    assert not any(".lora_A.sft.lora_" in path or "base_layer.lora_" in path for path in paths)


def test_modules_are_checked_by_name(base_folder: Callable[[str], Path]) -> None:
    model = load_base(base_folder("llama"), dtype=torch.float32)
    assert target_modules(model, lora()) == LINEAR
    assert target_modules(model, lora(targetModules=["v_proj", "q_proj"])) == ["q_proj", "v_proj"]
    with pytest.raises(DataError, match=r"'W_pack'.*down_proj"):
        target_modules(model, lora(targetModules=["W_pack"]))


def test_a_loaded_adapter_is_frozen(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    base = base_folder("llama")
    model = trained(tmp_path, base, 3)
    loaded = load_adapter(load_base(base, dtype=torch.float32), tmp_path, "sft")
    assert torch.equal(logits(loaded), logits(model))
    assert not any(
        parameter.requires_grad for path, parameter in loaded.named_parameters() if ".sft." in path
    )


@pytest.mark.parametrize("difference", ["family", "layers"])
def test_an_adapter_of_another_base_is_refused(
    difference: str, base_folder: Callable[[str], Path], new_base: Callable[..., None], tmp_path: Path
) -> None:
    trained(tmp_path / "adapter", base_folder("llama"), 3)
    if difference == "layers":
        new_base(tmp_path / "other", "llama", layers=3)
    else:
        new_base(tmp_path / "other", "llama")
        config = json.loads((tmp_path / "other" / "config.json").read_text())
        config["num_key_value_heads"] = 4
        (tmp_path / "other" / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(
            AutoModelForCausalLM.from_pretrained(str(base_folder("llama"))).config.__class__(**config)
        )
        model.save_pretrained(str(tmp_path / "other"))
    other = load_base(tmp_path / "other", dtype=torch.float32)
    with pytest.raises(DataError, match="adapter of another base") as caught:
        load_adapter(other, tmp_path / "adapter", "sft")
    assert str(base_folder("llama")) in str(caught.value)


def test_what_is_no_lora_adapter_is_refused(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_adapter(tmp_path)
    trained(tmp_path / "a", base_folder("llama"), 3)
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(DataError, match="not a plain LoRA"):
        read_adapter(tmp_path / "a")


@pytest.mark.parametrize("second", [{}, {"rank": 2, "alpha": 6}, {"targetModules": ["q_proj", "up_proj"]}])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_stack_is_the_sum(
    family: str, second: dict[str, Any], base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_folder(family)
    trained(tmp_path / "sft", base, 3)
    trained(tmp_path / "ppo", base, 4, **second)
    stack_adapters(tmp_path / "sft", tmp_path / "ppo", tmp_path / "out")

    both = load_adapter(load_base(base, dtype=torch.float32), tmp_path / "sft", "sft")
    both = load_adapter(both, tmp_path / "ppo", "ppo")
    tuner: Any = both.base_model
    tuner.set_adapter(["sft", "ppo"])
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(str(base)), str(tmp_path / "out"))
    torch.testing.assert_close(logits(loaded), logits(both), rtol=2e-6, atol=2e-6)

    one, two, out = (read_adapter(tmp_path / name) for name in ("sft", "ppo", "out"))
    assert out.rank == one.rank + two.rank
    for module in out.modules:
        wanted = torch.zeros(out.pair(module)[1].shape[0], out.pair(module)[0].shape[1], dtype=torch.float64)
        for adapter in (one, two):
            if module in adapter.modules:
                a, b = adapter.pair(module)
                wanted += b.double() @ a.double() * adapter.scaling
        a, b = out.pair(module)
        torch.testing.assert_close(b.double() @ a.double() * out.scaling, wanted, rtol=2e-6, atol=2e-6)


def test_two_of_rank_16_become_one_of_rank_32_bit_for_bit(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    base = base_folder("llama")
    trained(tmp_path / "sft", base, 3, rank=16, alpha=32)
    trained(tmp_path / "ppo", base, 4, rank=16, alpha=32)
    stack_adapters(tmp_path / "sft", tmp_path / "ppo", tmp_path / "out", base="elsewhere")
    one, two, out = (read_adapter(tmp_path / name) for name in ("sft", "ppo", "out"))
    assert (out.rank, out.scaling, out.config["base_model_name_or_path"]) == (32, 2.0, "elsewhere")
    a, b = out.pair("model.layers.1.mlp.up_proj")
    assert torch.equal(a[:16], one.pair("model.layers.1.mlp.up_proj")[0])
    assert torch.equal(b[:, 16:], two.pair("model.layers.1.mlp.up_proj")[1])
