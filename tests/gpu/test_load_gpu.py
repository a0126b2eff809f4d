"""Loading to a GPU: the weights go there from their mapped files, without a copy on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests.memory_support import PeakWatch, private_bytes
from zhongjing.model.base import load_config, load_weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("trained_in", [torch.bfloat16, torch.float16])
def test_the_host_holds_no_copy(tmp_path: Path, trained_in: torch.dtype) -> None:
    config = LlamaConfig(
        vocab_size=4096, hidden_size=1024, intermediate_size=2816, num_hidden_layers=20, num_attention_heads=8
    )
    made: Any = LlamaForCausalLM(config)
    made.to(torch.bfloat16)
    size = sum(2 * parameter.numel() for parameter in made.parameters())
    made.save_pretrained(tmp_path, max_shard_size="200MB")
    del made
    device = torch.device("cuda", 0)
    torch.zeros(1, device=device)  # the context's own memory
    before = private_bytes()
    with PeakWatch() as watch:
        model = load_weights(
            AutoModelForCausalLM,
            tmp_path,
            load_config(tmp_path),
            trained_in,
            quantization="none",
            device=device,
        )
    assert {parameter.device for parameter in model.parameters()} == {device}
    assert {parameter.dtype for parameter in model.parameters()} == {trained_in}
    assert watch.peak - before < 0.5 * size
