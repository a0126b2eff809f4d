"""NF4 on a GPU: the same loss as on the rounded base, and the memory that it is there to save."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.quantized_support import write_rounded
from tests.training_support import tiny_base
from zhongjing.config.stages import Lora
from zhongjing.model.adapters import add_lora
from zhongjing.model.base import load_base

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_loss_and_memory(tmp_path: Path) -> None:
    base = tiny_base(
        tmp_path / "base", hidden_size=1024, intermediate_size=4096, layers=4, heads=8, kv_heads=8
    )
    rounded = write_rounded(base, tmp_path / "rounded")
    ids = torch.randint(3, 300, (2, 64), generator=torch.Generator().manual_seed(0)).cuda()
    cuda = torch.device("cuda")
    losses, sizes = [], []
    for folder, quantization in ((base, "nf4"), (rounded, "none")):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        model: Any = load_base(folder, dtype=torch.bfloat16, quantization=quantization, device=cuda)  # type: ignore[arg-type]
        model.to(cuda)
        sizes.append(torch.cuda.memory_allocated() - before)
        adapted = add_lora(model, Lora.model_validate({"rank": 4, "dropout": 0.0}), "default", 1)
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        losses.append(float(loss))
        del model, adapted, loss
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    assert sizes[0] < 0.35 * sizes[1]
