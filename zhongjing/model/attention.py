"""Attention over packed rows: segments stand one after the other, and each sees nothing but itself.

One attention function is registered in transformers under :data:`PACKED`, and models are loaded with it.
Given the segments of a row it has two ways to the same numbers:

- *segment by segment*: PyTorch's scaled dot product attention on each segment, neighbours of equal length
  together. On a CPU always; on a GPU for fp32, and where attention dropout is drawn.
- *varlen*: ``torch.nn.attention.varlen``, FlashAttention's kernel for rows of several lengths, one call a
  layer. On a GPU for 16-bit numbers without dropout (it draws none; docs/adr/0020).

Without segments it is transformers' own SDPA with the mask that transformers makes: generation with padding
to the left and a key-value cache works with the same loaded model.

Segments come from the host (:class:`zhongjing.data.samples.PackedRow`) as a keyword argument that
transformers' decoders pass through to attention, also when they recompute a layer. Nothing is read off the
device. Source of the interface: "Attention Interface" in transformers' documentation.

Shapes: T tokens, A query heads, K key-value heads, D channels a head, S segments.
"""

from __future__ import annotations

import functools
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from zhongjing.codes import model as codes
from zhongjing.data.samples import PackedRow
from zhongjing.errors import DataError

PACKED = "zhongjing_packed"

_SEGMENTS = "zhongjing_segments"
# What some families add to the scores; none of the two ways knows it, and SDPA does not either.
_SCORE_CHANGES = ("softcap", "s_aux", "position_bias")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def check_attention(model: PreTrainedModel, where: str | None = None) -> None:
    """Checks that the family's attention isolates segments when it is told to.

    Raises:
        DataError: it does not take its attention from transformers' interface, or has layers of another kind
            (linear attention and state spaces run on over the edges of segments).
    """
    layers = set(getattr(model.config, "layer_types", None) or ())
    if not getattr(type(model), "_supports_attention_backend", False) or layers - _LAYER_TYPES:
        raise DataError(
            f"a {model.config.model_type} model's attention cannot be told which tokens belong together",
            code=codes.UNSUPPORTED_MODEL,
            where=where,
            remedy="use a family with transformers' standard attention (Llama, Qwen2, Qwen3, Mistral)",
        )


def packed_arguments(row: PackedRow) -> dict[str, Any]:
    """What a decoder is called with, besides the tokens, so that the segments of ``row`` are isolated."""
    return {
        "position_ids": row.position_ids,
        # A mask of four dimensions is passed on as it is: transformers makes none, and does not look for
        # restarting positions, which would make the host wait. Empty, so that nothing else can use it.
        "attention_mask": row.input_ids.new_empty((1, 1, 0, 0)),
        _SEGMENTS: row,
    }


def attention(  # noqa: PLR0917 - as transformers calls it
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the attention layer.
        query: [1, A, T, D] of a packed row.
        key: [1, K, T, D].
        value: [1, K, T, D].
        attention_mask: of what is not packed; see :func:`packed_arguments`.
        dropout: on attention probabilities; 0 in evaluation mode.
        scaling: of the scores; none: D ** -0.5.
        sliding_window: tokens that a token sees, itself included; none: all before it.
        arguments: the rest of what the decoder was called with.

    Returns:
        [1, T, A, D], and no probabilities.

    Raises:
        DataError: the family lost the segments on the way, or changes its scores.
    """
    row: PackedRow | None = arguments.pop(_SEGMENTS, None)
    if row is None:
        if attention_mask is not None and attention_mask.ndim == 4 and not attention_mask.numel():
            raise DataError(
                f"{type(module).__name__} was not told the segments of its row", code=codes.UNSUPPORTED_MODEL
            )
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **arguments
        )
    for name in _SCORE_CHANGES:
        if arguments.get(name) is not None:
            raise DataError(
                f"{type(module).__name__} changes its scores by {name}", code=codes.UNSUPPORTED_MODEL
            )
    if sliding_window is not None and sliding_window >= max(row.lengths):
        sliding_window = None
    way = varlen if dropout == 0.0 and _has_varlen(query) else by_segment
    return way(query, key, value, row, dropout=dropout, scaling=scaling, window=sliding_window), None


def by_segment(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """Causal attention within segments, by SDPA; arguments and result as of :func:`attention`."""
    grouped = query.shape[1] != key.shape[1]
    if grouped and (window is not None or (query.is_cuda and query.dtype == torch.float32)):
        # No fused kernel takes grouped heads with a mask, nor in fp32 on a GPU.
        repeats = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
        grouped = False
    runs = [(length, len(list(same))) for length, same in groupby(row.lengths)]
    sizes = [length * count for length, count in runs]
    outputs = []
    # Split, not sliced: the gradients of slices would each be as long as the row.
    for (length, count), q, k, v in zip(
        runs, query.split(sizes, 2), key.split(sizes, 2), value.split(sizes, 2), strict=True
    ):
        band = _band(length, window, query.device) if window is not None and window < length else None
        out = functional.scaled_dot_product_attention(
            _stacked(q, count),
            _stacked(k, count),
            _stacked(v, count),
            attn_mask=band,
            dropout_p=dropout,
            is_causal=band is None,
            scale=scaling,
            enable_gqa=grouped,
        )
        outputs.append(out.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[None]


def _stacked(part: torch.Tensor, count: int) -> torch.Tensor:
    """``count`` segments of equal length, [1, A, count * length, D] to [count, A, length, D]."""
    _, heads, tokens, channels = part.shape
    return part.reshape(heads, count, tokens // count, channels).transpose(0, 1)


def varlen(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row: PackedRow,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    window: int | None = None,
) -> torch.Tensor:
    """As :func:`by_segment`, by one kernel; on a GPU, 16 bits, no dropout."""
    if dropout:
        raise ValueError("this kernel draws no dropout")
    longest = max(row.lengths)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    out = varlen_attn(
        query,
        key,
        value,
        row.edges,
        row.edges,
        longest,
        longest,
        scale=scaling,
        # So many tokens to the left of each, and none to the right.
        window_size=(-1 if window is None else window - 1, 0),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(out, torch.Tensor)
    return out[None]


def _has_varlen(query: torch.Tensor) -> bool:
    """Whether FlashAttention's kernel takes these queries."""
    channels = query.shape[-1]
    return (
        query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
        and channels <= 256
        and channels % 8 == 0
        and is_ampere(query.device)
    )


@functools.cache
def is_ampere(device: torch.device) -> bool:
    """Whether a CUDA device is of NVIDIA's Ampere or later: it has bf16, and FlashAttention's kernels."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Bool [length, length]: a token sees itself and the ``window - 1`` before it."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


AttentionInterface.register(PACKED, attention)
AttentionMaskInterface.register(PACKED, sdpa_mask)
