"""Memory of generation: by the models' configurations, and never above its budget."""

from __future__ import annotations

import random
from pathlib import Path

import psutil
import pytest
import torch
from transformers import LlamaConfig, Qwen3Config

from zhongjing.model import kv_cache
from zhongjing.model.kv_cache import batches_within, free_bytes, row_size

# config.json of LLaMA-13B (huggyllama/llama-13b) and Qwen3-8B (Qwen/Qwen3-8B), as published.
LLAMA_13B = LlamaConfig(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, vocab_size=39424
)
QWEN3_8B = Qwen3Config(
    hidden_size=4096, intermediate_size=12288, num_hidden_layers=36, num_attention_heads=32,
    num_key_value_heads=8, head_dim=128, vocab_size=151936,
)  # fmt: skip


def test_bytes_of_a_token_by_the_configuration() -> None:
    assert row_size(LLAMA_13B, torch.float16).token == 40 * 2 * 5120 * 2 == 819_200
    assert row_size(LLAMA_13B, torch.float32).token == 2 * 819_200
    assert row_size(QWEN3_8B, torch.bfloat16).token == 36 * 2 * 8 * 128 * 2 == 147_456


def test_the_papers_evaluation_fits_beside_the_weights() -> None:
    """64 rows of 3,072 + 1,024 tokens at 13B would be 200 GiB; an A100 with 26 GB of weights has 50 free."""
    size = row_size(LLAMA_13B, torch.float16)
    assert 64 * 4096 * size.token == 200 * 2**30
    batches = list(batches_within([3072] * 64, 1024, size, 25 * 2**30, 64))
    assert {len(batch) for batch in batches[:-1]} == {7}
    assert [row for batch in batches for row in batch] == list(range(64))


@pytest.mark.parametrize("seed", range(30))
def test_no_batch_is_above_its_budget_but_a_row_alone(seed: int) -> None:
    draw = random.Random(seed)
    size = row_size(draw.choice([LLAMA_13B, QWEN3_8B]), torch.bfloat16)
    new, most = draw.randint(1, 2048), draw.randint(1, 100)
    lengths = sorted(draw.randint(1, draw.choice([20, 500, 4000])) for _ in range(draw.randint(0, 200)))
    budget = int(draw.uniform(0.1, 40) * 2**30)
    batches = list(batches_within(lengths, new, size, budget, most))
    assert [row for batch in batches for row in batch] == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches[1:], None], strict=True):
        width = lengths[batch.stop - 1]
        assert len(batch) == 1 or size.needed(len(batch), width, new) <= budget
        assert len(batch) <= most
        # And none is smaller than it must be.
        if following is not None and len(batch) < most:
            assert size.needed(len(batch) + 1, lengths[batch.stop], new) > budget


def test_free_memory_is_the_containers_and_shared_by_the_processes_of_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_cache, "_CGROUP", tmp_path)
    cpu = torch.device("cpu")
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    available = psutil.virtual_memory().available
    assert free_bytes(cpu) == pytest.approx(available, rel=0.3)
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("3000000\n")
    assert free_bytes(cpu) == pytest.approx(available, rel=0.3)
    (tmp_path / "memory.max").write_text("5000000\n")
    assert free_bytes(cpu) == 2_000_000
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(cpu) == 500_000
