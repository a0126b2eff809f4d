"""The plan against what torch says that a GPU held: the most bytes of its allocator over a short run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.plan_memory import BASES, BOUND, CASES, FITTED, PEAK_FILE, Case, make_base
from zhongjing.planning.memory import plan_memory
from zhongjing.planning.shape import of_config

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def on_gpu(case: Case, **changes: Any) -> Case:
    """The case on a GPU."""
    return replace(case, fields={**case.fields, "resources": {"cpus": 1, "gpus": 1}, **changes})


GPU_CASES = {
    "pretrain full, fp32": on_gpu(FITTED["pretrain full"]),
    "sft full, bf16": on_gpu(FITTED["sft full, bf16"]),
    "sft full, fp16, offload": on_gpu(
        FITTED["sft full, bf16"], precision="fp16", optimizer={"offload": "cpu"}
    ),
    "sft full, checkpointing, bf16": on_gpu(CASES["sft full, bf16, checkpointing"]),
    "sft lora, dropout, bf16": on_gpu(CASES["sft lora 64, dropout"], precision="bf16"),
    "sft lora, nf4, bf16": on_gpu(FITTED["sft lora, nf4"], precision="bf16"),
    "rm, bf16": on_gpu(FITTED["rm"], precision="bf16"),
    "ppo, bf16": on_gpu(FITTED["ppo"], precision="bf16", rollout={"cacheGiB": 0.2}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bases")
    for name in {case.base for case in GPU_CASES.values()}:
        (folder / name).mkdir()
        make_base(folder / name, BASES[name])
    return folder


@pytest.mark.parametrize("name", GPU_CASES)
def test_the_peak_is_the_planned_one(tmp_path: Path, bases: Path, name: str) -> None:
    case = GPU_CASES[name]
    base = bases / case.base
    shape = of_config(json.loads((base / "config.json").read_text(encoding="utf-8")))
    assert shape is not None
    planned = plan_memory(shape, case.settings(), torch.cuda.get_device_properties(0).total_memory)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--worker"]
    command += [json.dumps(asdict(case)), str(base), str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    held = int((tmp_path / PEAK_FILE).read_text(encoding="ascii"))
    assert planned.peak == pytest.approx(held, rel=BOUND), dict(planned.device)
