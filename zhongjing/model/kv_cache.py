"""How much memory generation takes, and how many rows a budget allows.

What grows is the key-value cache: keys and values of every token of every row in every layer. At 13B a row of
4,096 tokens has 3.1 GiB of it in fp16, so a number of rows that is right for short answers is far too much
for long ones. Rows of a batch follow from a budget in bytes instead. A response does not depend on the rows
beside it (see ``rollout.py``), so the budget decides about time and memory and not about the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

FREE_FRACTION = 0.5
"""Part of the free memory that generation takes where no budget is given.

The rest is for what is not counted: workspaces of kernels, masks, and blocks that an allocator cannot join.
"""
_LOGIT_BYTES = 28  # fp32 logits and their quotient by the temperature, fp64 shares and running sum, a mask
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, slots=True)
class RowSize:
    """Bytes that generation takes, of one model.

    Attributes:
        token: keys and values of a token in all layers: layers x 2 x key-value heads x head size x format.
            Models with sliding windows keep less.
        growth: of the copy that a layer's keys or values are while a token is added, a token.
        reading: of a prompt's token while it is read: the widest activations of one layer, which has no
            gradients to keep.
        row: of a row whatever its length: its logits.
    """

    token: int
    growth: int
    reading: int
    row: int

    @classmethod
    def of(cls, config: PretrainedConfig, dtype: torch.dtype) -> RowSize:
        """Of a model.

        Args:
            config: its configuration.
            dtype: number format in which it computes keys and values: also that of fused adapters.
        """
        text = config.get_text_config()
        heads = int(text.num_attention_heads)
        kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
        hidden = int(text.hidden_size)
        head_size = int(getattr(text, "head_dim", None) or hidden // heads)
        inner = int(getattr(text, "intermediate_size", None) or 4 * hidden)
        growth = kv_heads * head_size * dtype.itemsize
        # MLP: gate, up and their product; around it residual, norm (fp32 on the way), queries, keys, values.
        reading = dtype.itemsize * (3 * inner + 6 * hidden) + 8 * hidden
        layers, row = int(text.num_hidden_layers), int(text.vocab_size) * _LOGIT_BYTES
        return cls(layers * 2 * growth, growth, reading, row)

    def needed(self, rows: int, prompt: int, new: int) -> int:
        """Bytes of ``rows`` prompts, padded to ``prompt`` tokens, with ``new`` tokens each."""
        read = prompt * (self.token + self.reading)
        grown = (prompt + new) * (self.token + self.growth)
        return rows * (max(read, grown) + self.row)


def batches_within(
    lengths: Sequence[int], new: int, size: RowSize, budget: int, max_rows: int
) -> Iterator[range]:
    """Cuts rows into batches that need no more than ``budget``; a row that alone needs more is a batch.

    Args:
        lengths: tokens of each prompt, ascending: neighbours share a batch, so there is little padding.
        new: longest response.
        size: of the model.
        budget: bytes.
        max_rows: of a batch, whatever the budget.
    """
    start = 0
    for at, length in enumerate(lengths):
        rows = at - start + 1
        if at > start and (rows > max_rows or size.needed(rows, length, new) > budget):
            yield range(start, at)
            start = at
    if lengths:
        yield range(start, len(lengths))


def free_bytes(device: torch.device) -> int:
    """Memory of ``device`` that is free now.

    On a GPU what torch holds unused counts as free. On a CPU the processes of a node share what the machine,
    or the container's limit, leaves.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    free = int(psutil.virtual_memory().available)
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        free = min(free, max(limit - int((_CGROUP / "memory.current").read_text()), 0))
    except (OSError, ValueError):
        pass  # no cgroup of version 2, or no limit ("max")
    return free // max(int(os.environ.get("LOCAL_WORLD_SIZE", "1")), 1)
