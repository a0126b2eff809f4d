"""Attention over packed rows on a GPU: varlen against segment by segment, no wait for the device, dropout."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training_support import tiny_base
from zhongjing.data.samples import PackedRow
from zhongjing.model import attention
from zhongjing.model.base import load_base
from zhongjing.model.causal import hidden_states

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

LENGTHS = (300, 5, 1, 64, 64, 200)
CUDA = torch.device("cuda")


def row() -> PackedRow:
    rng = np.random.default_rng(0)
    return PackedRow.of([rng.integers(3, 300, length) for length in LENGTHS]).to(CUDA)


def heads(count: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(1, count, sum(LENGTHS), 64, generator=generator)
    return values.to(CUDA, dtype).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shared", [8, 2])
@pytest.mark.parametrize("window", [None, 50])
def test_varlen_equals_segment_by_segment(dtype: torch.dtype, shared: int, window: int | None) -> None:
    weights = torch.randn(1, sum(LENGTHS), 8, 64, generator=torch.Generator().manual_seed(9)).to(CUDA)
    ways: list[Callable[..., torch.Tensor]] = [attention.by_segment, attention.varlen, attention.by_segment]
    kinds = [torch.float32, dtype, dtype]
    found = []
    for way, kind in zip(ways, kinds, strict=True):
        # The same rounded numbers, so that only what is computed differs.
        given = [
            heads(n, s, dtype).detach().to(kind).requires_grad_()
            for n, s in ((8, 1), (shared, 2), (shared, 3))
        ]
        out = way(*given, row(), scaling=0.2, window=window)
        (out.float() * weights).sum().backward()
        found.append([out.float(), *(tensor.grad.float() for tensor in given if tensor.grad is not None)])
    for exact, by_varlen, by_sdpa in zip(*found, strict=True):
        noise = (by_sdpa - exact).norm()
        assert (by_varlen - exact).norm() <= 2 * noise + 1e-3 * exact.norm()


def noted(name: str, way: Callable[..., torch.Tensor], ran: list[str]) -> Callable[..., torch.Tensor]:
    """``way``, noting its name whenever it runs."""

    def run(*given: Any, **options: Any) -> torch.Tensor:
        ran.append(name)
        return way(*given, **options)

    return run


def test_which_way_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    for name in ("varlen", "by_segment"):
        monkeypatch.setattr(attention, name, noted(name, getattr(attention, name), ran))
    for dtype, dropout in ((torch.bfloat16, 0.0), (torch.bfloat16, 0.1), (torch.float32, 0.0)):
        query = heads(4, 1, dtype)
        attention.attention(
            torch.nn.Identity(), query, query, query, None, dropout=dropout, zhongjing_segments=row()
        )
    assert ran == ["varlen", "by_segment", "by_segment"]


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_a_pass_does_not_wait_for_the_device(tmp_path: Path, dropout: float) -> None:
    base = tiny_base(tmp_path / "base", hidden_size=256, heads=4, max_positions=512)
    model: Any = load_base(base, dtype=torch.bfloat16, attention_dropout=dropout)
    model.to(CUDA).train()
    given = row()
    hidden_states(model, given).float().sum().backward()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            hidden_states(model, given).float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert not [str(w.message) for w in caught if "synchroniz" in str(w.message)]
