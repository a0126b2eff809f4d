"""How much memory generation takes, and how many rows a budget allows.

What grows is the key-value cache: keys and values of every token of every row in every layer. At 13B a row of
4,096 tokens has 3.1 GiB of it in fp16, so a number of rows that is right for short answers is far too much
for long ones. Rows of a batch follow from a budget in bytes instead. A response does not depend on the rows
beside it (see ``rollout.py``), so the budget decides about time and memory and not about the result.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import torch
from transformers import PretrainedConfig

from zhongjing.planning.row_size import RowSize
from zhongjing.planning.shape import Shape

_CGROUP = Path("/sys/fs/cgroup")


def row_size(config: PretrainedConfig, dtype: torch.dtype) -> RowSize:
    """What a row of generation takes.

    Args:
        config: of the model.
        dtype: number format in which it computes keys and values: also that of fused adapters.
    """
    text = config.get_text_config()
    heads, hidden = int(text.num_attention_heads), int(text.hidden_size)
    shape = Shape(
        hidden=hidden,
        intermediate=int(getattr(text, "intermediate_size", None) or 4 * hidden),
        layers=int(text.num_hidden_layers),
        heads=heads,
        kv_heads=int(getattr(text, "num_key_value_heads", None) or heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden // heads),
        vocabulary=int(text.vocab_size),
        tied=False,
    )
    return RowSize.of(shape, dtype.itemsize)


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
