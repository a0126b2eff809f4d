"""The frozen base in 4 bits while an adapter is trained (QLoRA, Dettmers et al. 2023, arXiv 2305.14314).

NF4 with double quantization, by bitsandbytes through transformers: every linear layer but the output layer
and a classifier's head is kept in 4 bits and multiplied in the stage's precision. The quantization is a pure
function of the base's weights, so an attempt that is resumed computes with the same numbers.

The adapter that comes out stands on the base as it was published: a merge adds it to the full
weights, never to the rounded ones (section 3 of the paper trains by gradients *through* the rounded base).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from zhongjing.config.stages import Quantization

# By transformers' names; a tied or chunked output layer and a fresh head must keep their precision.
_KEPT = ("lm_head", "score")


def loading_arguments(quantization: Quantization, dtype: torch.dtype) -> dict[str, Any]:
    """Arguments of ``from_pretrained`` for a base that is stored as ``quantization`` says; none for ``none``.

    Args:
        quantization: of the stage.
        dtype: in which the 4-bit layers are multiplied. Each is quantized where ``device_map`` puts it, as it
            is read.
    """
    if quantization == "none":
        return {}
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(_KEPT),
    )
    return {"quantization_config": config}


def keep_storage(model: nn.Module) -> None:
    """Keeps bitsandbytes from storing 4-bit layers anew in an evaluation on a CPU with AVX512-BF16.

    There ``Linear4bit`` changes to a layout for inference, its scales rounded to bf16, for good: training
    would go on with other weights after every evaluation, and a resumed attempt would not be the same.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 - mypy takes modules for tensors


def compute_dtype(linear: nn.Linear) -> torch.dtype:
    """Number format that a linear layer computes in: not that of its storage where it is quantized."""
    if linear.weight.is_floating_point():
        return linear.weight.dtype
    dtype = getattr(linear, "compute_dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
