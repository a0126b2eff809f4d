"""What the plan says that a block keeps for its backward pass, against what autograd saves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from zhongjing.config.stages import PretrainSettings, SftSettings
from zhongjing.data.samples import PackedRow
from zhongjing.model.adapters import add_lora, base_of
from zhongjing.model.attention import PACKED
from zhongjing.model.causal import hidden_states
from zhongjing.planning.memory import plan_memory
from zhongjing.planning.shape import Shape, of_config

TOKENS, SEGMENT = 256, 128
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 320,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def planned(shape: Shape, settings: SftSettings | PretrainSettings) -> float:
    """Bytes a token of one block more."""
    more = plan_memory(replace(shape, layers=9), settings).device["activations"]
    return (more - plan_memory(replace(shape, layers=8), settings).device["activations"]) / TOKENS


def saved(model: torch.nn.Module, blocks: Any) -> float:
    """Bytes a token that autograd keeps of the second block: each storage once, parameters not."""
    row = PackedRow.of([np.arange(SEGMENT) % 300] * (TOKENS // SEGMENT))
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}
    kept: list[torch.Tensor] = []
    earlier: set[int] = set()
    counting = False

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept.append(tensor)  # so that no address is used twice
        if counting and storage.data_ptr() not in parameters | earlier:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    def begin(*_: Any) -> None:
        nonlocal counting, earlier
        counting, earlier = True, {tensor.untyped_storage().data_ptr() for tensor in kept}

    def end(*_: Any) -> None:
        nonlocal counting
        counting = False

    blocks[1].register_forward_pre_hook(begin)
    blocks[1].register_forward_hook(end)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden_states(model, row)
    return sum(sizes.values()) / TOKENS


@pytest.mark.parametrize("kind", ["llama", "qwen3"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("tuning", ["full", "lora", "lora with dropout", "full with attention's dropout"])
def test_a_block_keeps_what_is_planned(kind: str, precision: str, tuning: str) -> None:
    config = AutoConfig.for_model(kind, **SIZES)
    shape = of_config(config.to_dict())
    assert shape is not None
    drawn = 0.1 if "attention" in tuning else 0.0
    config.attention_dropout = drawn
    model: Any = AutoModelForCausalLM.from_config(config).to(DTYPES[precision])
    model.set_attn_implementation(PACKED)
    lora: dict[str, Any] = {"rank": 8, "alpha": 16.0, "dropout": 0.1 if "with dropout" in tuning else 0.0}
    fields: dict[str, Any] = {
        "data": [{"source": "any"}],
        "precision": precision,
        "lora": lora,
        "tuning": tuning.split(maxsplit=1)[0],
    }
    fields |= {"maxLength": SEGMENT, "microBatchTokens": TOKENS}
    settings: SftSettings | PretrainSettings = SftSettings.model_validate(fields)
    if drawn:
        settings = PretrainSettings.model_validate(fields | {"dropout": drawn})
    if settings.tuning == "lora":
        model = add_lora(model, settings.lora, "default", 0).to(DTYPES[precision])
    model.train()
    blocks = base_of(model).model.layers
    assert planned(shape, settings) == pytest.approx(saved(model, blocks), rel=0.02)
