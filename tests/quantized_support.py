"""A base whose linear layers hold exactly the values that NF4 rounds another base's to."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn.modules import Linear4bit

from zhongjing.model.base import load_base
from zhongjing.model.tokenizer import TOKENIZER_FILES
from zhongjing.model.weights import WeightWriter


def write_rounded(base: Path, out: Path) -> Path:
    """Writes ``base`` with every layer that is quantized replaced by what it is computed with, in fp32.

    The rule is bitsandbytes' own (its documentation of ``Linear4bit``: weights are dequantized to the compute
    type for every product), so a stage on ``base`` in NF4 must equal the same stage on ``out`` without it.
    """
    out.mkdir()
    for name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
        if (base / name).is_file():
            shutil.copyfile(base / name, out / name)
    model = load_base(base, dtype=torch.float32, quantization="nf4")
    layers = {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}
    assert layers, "nothing was quantized"
    writer = WeightWriter(out)
    tied = set(model.all_tied_weights_keys)
    for name, parameter in model.named_parameters():
        layer = layers.get(name.removesuffix(".weight"))
        value = parameter.detach()
        if layer is not None:
            weight: Any = layer.weight
            value = dequantize_4bit(weight.data, weight.quant_state).to(torch.float32)
            value = value.reshape(layer.out_features, layer.in_features)
        if name not in tied:
            writer.add(name, value.contiguous())
    writer.finish()
    return out
