"""Training on a base in 4 bits is training on the rounded base, whatever the stage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.ppo_support import make_folders, make_settings
from tests.quantized_support import write_rounded
from zhongjing.config.stages import Lora, SftSettings
from zhongjing.data.samples import PackedRow
from zhongjing.model.adapters import add_lora, linear_layers, read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.quantization import compute_dtype
from zhongjing.model.reward import build_reward_model, head_weight
from zhongjing.model.rollout import CompactingEngine, Sampling
from zhongjing.train.ppo.roles import PpoModule

FAMILIES = ["llama", "qwen2", "qwen3"]
IDS = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def pair(
    request: pytest.FixtureRequest, base_folder: Callable[[str], Path], tmp_path: Path
) -> tuple[Path, Path]:
    base = base_folder(request.param)
    return base, write_rounded(base, tmp_path / "rounded")


def test_loss_and_gradients_are_those_of_the_rounded_base(pair: tuple[Path, Path]) -> None:
    found: list[dict[str, torch.Tensor]] = []
    for folder, quantization in zip(pair, ("nf4", "none"), strict=True):
        base = load_base(folder, dtype=torch.float32, quantization=quantization)  # type: ignore[arg-type]
        model = add_lora(base, Lora.model_validate({"rank": 4, "dropout": 0.0}), "default", 1)
        generator = torch.Generator().manual_seed(2)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(0.0, 0.2, generator=generator)
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach(), **grads})
    nf4, rounded = found
    assert nf4.keys() == rounded.keys()
    for name, value in rounded.items():
        torch.testing.assert_close(nf4[name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_linear_layers_take_half_a_byte_a_weight_and_the_rest_keeps_its_format(
    pair: tuple[Path, Path],
) -> None:
    model = load_base(pair[0], dtype=torch.bfloat16, quantization="nf4")
    for layer in linear_layers(model).values():
        assert layer.weight.untyped_storage().nbytes() == layer.in_features * layer.out_features // 2
        assert compute_dtype(layer) is torch.bfloat16
    head = model.get_output_embeddings()
    assert head is not None
    assert head.weight.dtype is torch.bfloat16
    assert model.config.architectures == load_base(pair[0], dtype=torch.bfloat16).config.architectures


def test_the_head_of_a_reward_model_is_not_quantized(pair: tuple[Path, Path]) -> None:
    lora = Lora.model_validate({"rank": 4, "dropout": 0.0})
    scores = []
    for folder, quantization in zip(pair, ("nf4", "none"), strict=True):
        model = build_reward_model(folder, lora, 3, torch.float32, quantization=quantization)  # type: ignore[arg-type]
        assert head_weight(model).dtype is torch.float32
        with torch.no_grad():
            scores.append(model(input_ids=IDS).logits)
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-4, atol=1e-6)


def test_ppo_on_one_quantized_base(tmp_path: Path) -> None:
    folders = make_folders(tmp_path, "llama")
    rounded = write_rounded(folders.base, tmp_path / "rounded")
    results: list[tuple[list[Any], torch.Tensor]] = []
    for folder, quantization in ((folders.base, "nf4"), (rounded, "none")):
        base = load_base(folder, dtype=torch.float32, quantization=quantization)  # type: ignore[arg-type]
        module = PpoModule(base, read_adapter(folders.sft), read_adapter(folders.reward), make_settings(), 11)
        engine = CompactingEngine(module.router, "policy", Sampling(8, (1,), 0.0))
        made = engine.generate([[5, 6, 7], [8, 9, 10, 11]], [1, 2])
        results.append((made.tokens.tolist(), module.score_reward(PackedRow.of(list(IDS.numpy())))))
    assert results[0][0] == results[1][0]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-6)


def test_a_base_that_is_trained_itself_cannot_be_quantized() -> None:
    with pytest.raises(ValidationError, match="set tuning: lora"):
        SftSettings.model_validate({"data": [{"source": "a"}], "tuning": "full", "quantization": "nf4"})
