"""Attention over packed rows: what is done with it, and what the same model does without segments."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, BloomConfig, BloomForCausalLM, Qwen3NextConfig

from zhongjing.data.samples import PackedRow
from zhongjing.errors import DataError
from zhongjing.model import attention as attention_module
from zhongjing.model.attention import (
    PACKED,
    attention,
    by_segment,
    check_attention,
    packed_arguments,
    varlen,
)
from zhongjing.model.base import load_base
from zhongjing.model.causal import backbone, hidden_states
from zhongjing.model.export import write_full_model

LENGTHS = (5, 3, 3, 3, 1, 8)


def row_of(lengths: tuple[int, ...] = LENGTHS) -> PackedRow:
    rng = np.random.default_rng(0)
    return PackedRow.of([rng.integers(3, 300, length) for length in lengths])


def heads(count: int, tokens: int, seed: int, channels: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, count, tokens, channels, generator=generator, dtype=torch.float64)


def by_hand(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, row: PackedRow, window: int
) -> torch.Tensor:
    """Softmax over the tokens that each may see, one at a time."""
    found = torch.zeros(1, query.shape[2], query.shape[1], query.shape[3], dtype=torch.float64)
    start = 0
    for length in row.lengths:
        for token in range(start, start + length):
            seen = slice(max(start, token - window + 1), token + 1)
            for head in range(query.shape[1]):
                shared = head * key.shape[1] // query.shape[1]
                scores = key[0, shared, seen] @ query[0, head, token] * 0.3
                found[0, token, head] = scores.softmax(0) @ value[0, shared, seen]
        start += length
    return found


@pytest.mark.parametrize("shared", [4, 2, 1])
@pytest.mark.parametrize("window", [None, 2, 5])
def test_attention_is_what_its_formula_says(shared: int, window: int | None) -> None:
    row = row_of()
    query, key, value = heads(4, row.tokens, 1), heads(shared, row.tokens, 2), heads(shared, row.tokens, 3)
    ours = by_segment(query, key, value, row, scaling=0.3, window=window)
    torch.testing.assert_close(ours, by_hand(query, key, value, row, window or 99), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("window", [None, 2, 5])
def test_the_gpu_kernel_is_called_as_documented(
    shared: int, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for the kernel by its documentation: [T, heads, D], edges, tokens to the left and right."""
    row = row_of()
    query, key, value = heads(4, row.tokens, 1), heads(shared, row.tokens, 2), heads(shared, row.tokens, 3)

    def kernel(*given: Any, scale: float, window_size: tuple[int, int], enable_gqa: bool) -> torch.Tensor:
        q, k, v, edges, edges_k, longest, longest_k = given
        assert torch.equal(edges, edges_k)
        assert edges.dtype == torch.int32
        assert longest == longest_k == max(LENGTHS)
        assert (window_size[1], enable_gqa, scale) == (0, shared != 4, 0.3)
        width = 99 if window_size[0] < 0 else window_size[0] + 1
        q, k, v = (tensor.transpose(0, 1)[None] for tensor in (q, k, v))
        return by_hand(q, k, v, row, width)[0]

    monkeypatch.setattr(attention_module, "varlen_attn", kernel)
    ours = varlen(query, key, value, row, scaling=0.3, window=window)
    torch.testing.assert_close(ours, by_segment(query, key, value, row, scaling=0.3, window=window))
    with pytest.raises(ValueError, match="no dropout"):
        varlen(query, key, value, row, dropout=0.1)


def test_dropout_is_drawn_for_every_segment_and_right_on_average() -> None:
    row = row_of((6,) * 2000)  # the same segment so many times
    query, key, value = (heads(2, 6, seed).repeat(1, 1, 2000, 1) for seed in (1, 2, 3))
    exact = by_segment(query, key, value, row)[0, :6]
    torch.manual_seed(0)
    drawn = by_segment(query, key, value, row, dropout=0.3)[0].view(2000, 6, 2, 8)
    assert not torch.equal(drawn[0], drawn[1])
    deviation = drawn.std(0) / 2000**0.5
    assert ((drawn.mean(0) - exact).abs() < 5 * deviation).all()


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_generation_is_that_of_transformers(family: str, base_folder: Callable[[str], Path]) -> None:
    """Padding to the left, a key-value cache, no segments: the same model, by transformers' own mask."""
    ours = load_base(base_folder(family), dtype=torch.float32).eval()
    theirs = AutoModelForCausalLM.from_pretrained(base_folder(family), attn_implementation="eager").eval()
    ids = torch.randint(3, 300, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :4], mask[1, :1] = 0, 0
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "use_cache": True, "pad_token_id": 0}
    found = ours.generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(found, theirs.generate(input_ids=ids, attention_mask=mask, **options))


def test_what_is_exported_does_not_name_our_attention(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    model = load_base(base_folder("llama"), dtype=torch.float32)
    write_full_model(model, tmp_path / "ours", base_folder("llama"))
    model.save_pretrained(tmp_path / "theirs")
    for folder in ("ours", "theirs"):
        text = (tmp_path / folder / "config.json").read_text()
        assert json.loads(text)["model_type"] == "llama"
        assert "zhongjing" not in text
        assert "attn_implementation" not in text


def test_no_mask_is_made_and_segments_reach_every_layer(
    base_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AttentionInterface, AttentionMaskInterface

    calls: list[tuple[int, ...]] = []

    def spy(*given: Any, **arguments: Any) -> Any:
        calls.append(arguments["zhongjing_segments"].lengths)
        return attention(*given, **arguments)

    def no_mask(*_: Any, **__: Any) -> Any:
        raise AssertionError("a mask was made")

    model = load_base(base_folder("qwen3"), dtype=torch.float32)
    monkeypatch.setitem(AttentionInterface._global_mapping, PACKED, spy)
    monkeypatch.setitem(AttentionMaskInterface._global_mapping, PACKED, no_mask)
    hidden_states(model, row_of())
    assert calls == [LENGTHS] * model.config.num_hidden_layers


def test_segments_that_are_lost_on_the_way_are_no_silent_leak(base_folder: Callable[[str], Path]) -> None:
    model = load_base(base_folder("llama"), dtype=torch.float32)
    arguments = packed_arguments(row_of())
    del arguments["zhongjing_segments"]
    with pytest.raises(DataError, match="not told the segments"):
        backbone(model)(input_ids=row_of().input_ids, use_cache=False, **arguments)


def test_scores_that_a_family_changes_are_refused() -> None:
    row = row_of()
    query = heads(2, row.tokens, 1)
    with pytest.raises(DataError, match="softcap"):
        attention(torch.nn.Identity(), query, query, query, None, softcap=30.0, zhongjing_segments=row)


def test_families_whose_attention_cannot_be_told_are_refused() -> None:
    with pytest.raises(DataError, match="a bloom model's attention"):
        check_attention(BloomForCausalLM(BloomConfig(vocab_size=50, hidden_size=8, n_layer=1, n_head=2)))

    class Hybrid(torch.nn.Module):  # what check_attention looks at, of a family with linear attention
        _supports_attention_backend = True
        config = Qwen3NextConfig(num_hidden_layers=4)

    with pytest.raises(DataError, match="a qwen3_next model's attention"):
        check_attention(Hybrid())  # type: ignore[arg-type]
