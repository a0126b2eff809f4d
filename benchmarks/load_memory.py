"""Memory that two workers of one node hold while they load a sharded model of 1 GB and begin to train it.

Run: ``python -m benchmarks.load_memory``. Each case runs in two fresh workers that load and make the engine
as a stage does. Private memory (RssAnon of /proc/self/status, looked at every two milliseconds) is given
beside what the process held before, as a ratio to the bytes of the model in the number format of training;
mapped pages of the weights' files, which the workers share, are no part of it. `before` sends rank 0's
parameters to the other rank, as DeepSpeed does and as this project did. Returns 1 if a bar is missed: while
loading at most 0.1 copies where the files are in the format of training, else 1.1, and 0.2 more with an
engine for LoRA.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.memory_support import PeakWatch, private_bytes
from tests.training_support import free_port
from zhongjing.config.stages import Lora, SftSettings
from zhongjing.model.adapters import add_lora
from zhongjing.model.base import load_config, load_weights
from zhongjing.train import engine as engine_module
from zhongjing.train.distributed import ensure_process_group
from zhongjing.train.engine import Engine
from zhongjing.train.parameters import adamw_groups

SHAPE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 20,
    "num_attention_heads": 8,
}
SHARD = "200MB"
CASES = ("float32 lora", "bfloat16 lora", "float32 full")
TRAINED_IN = torch.float32


def one_rank(folder: Path, tuning: str, way: str) -> dict[str, Any]:
    """Copies of the model that a rank holds: while it loads, after it, while the engine is made, after it."""
    from transformers import AutoModelForCausalLM

    device = torch.device("cpu")
    ensure_process_group(device)
    settings = SftSettings(precision="fp32", data=[{"source": "any"}])
    if way == "before":
        setattr(engine_module, "_unsent", _Sent)  # noqa: B010
    torch.manual_seed(0)
    warm = nn.Linear(8, 8)  # what a first engine needs besides: DeepSpeed's modules
    Engine(warm, [{"params": list(warm.parameters())}], settings, device).destroy()
    start = private_bytes()
    with PeakWatch() as loading:
        base = load_weights(
            AutoModelForCausalLM, folder, load_config(folder), TRAINED_IN, quantization="none", device=device
        )
        model: Any = add_lora(base, Lora(rank=8, alpha=16.0), "default", 0) if tuning == "lora" else base
    size = sum(p.numel() * TRAINED_IN.itemsize for p in base.parameters())
    loaded = private_bytes()
    with PeakWatch() as making:
        Engine(model, adamw_groups(model, 0.0), settings, device)
    made = private_bytes()
    held = {"load peak": loading.peak, "loaded": loaded, "engine peak": making.peak, "engine": made}
    return {name: round((value - start) / size, 3) for name, value in held.items()} | {"bytes": size}


class _Sent:
    """Lets DeepSpeed send."""

    def __init__(self, _module: nn.Module) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


def run(folder: Path, tuning: str, way: str) -> list[dict[str, Any]]:
    """A case in two workers; their results by rank."""
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    workers = [
        subprocess.Popen(
            [sys.executable, "-m", "benchmarks.load_memory", str(folder), tuning, way],
            env={**os.environ, **shared, "RANK": str(rank), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [worker.communicate()[0] for worker in workers]
    assert not any(worker.returncode for worker in workers), outputs
    return [json.loads(output.splitlines()[-1]) for output in outputs]


def main() -> int:
    """Prints the figures; returns 1 if a bar is missed."""
    missed = 0
    with tempfile.TemporaryDirectory() as name:
        for case in CASES:
            stored, tuning = case.split()
            folder = Path(name) / stored
            if not folder.is_dir():
                dtype = getattr(torch, stored)
                model = LlamaForCausalLM(LlamaConfig(vocab_size=4096, **SHAPE)).to(dtype)
                model.save_pretrained(folder, max_shard_size=SHARD)
                del model
            loaded = 0.1 if stored == "float32" else 1.1
            for way in ("before", "now"):
                began = time.monotonic()
                results = run(folder, tuning, way)
                seconds = time.monotonic() - began
                for rank, result in enumerate(results):
                    print(f"{case:14} {way:6} rank {rank}: {json.dumps(result)} {seconds:.0f} s", flush=True)
                    if way == "now":
                        missed |= result["load peak"] > loaded
                        missed |= tuning == "lora" and result["engine peak"] > loaded + 0.2
    return int(missed)


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit(main())
    print(json.dumps(one_rank(Path(sys.argv[1]), sys.argv[2], sys.argv[3])))
