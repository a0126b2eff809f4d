"""PPO on a CUDA device: bf16 and fp16, the first ratio, generation, memory of the roles."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, sys, torch
from pathlib import Path
from tests.ppo_support import make_folders
from tests.training_jobs import ppo
models, out, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[3])
make_folders(models, "llama")
outcome = ppo(out, models=str(models), settings=settings, toy=True, device=torch.device("cuda"))
(out / "outcome.json").write_text(json.dumps(outcome))
"""

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def run(folder: Path, **settings: Any) -> dict[str, Any]:
    """A short run of the toy task in a process of its own; returns what it reports."""
    out = folder / "out"
    command = [sys.executable, "-c", PROGRAM, str(folder / "models"), str(out), json.dumps(settings)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    outcome: dict[str, Any] = json.loads((out / "outcome.json").read_text())
    return outcome


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_reward_rises_on_a_gpu(tmp_path: Path, precision: str, checkpointing: bool) -> None:
    outcome = run(
        tmp_path,
        precision=precision,
        gradientCheckpointing=checkpointing,
        epochs=10,
        globalBatchSize=32,
        microBatchSize=16,
        ppoEpochs=2,
        minibatches=2,
        learningRate=1e-2,
        klCoef=0.01,
        missingEosPenalty=0.0,
        schedule="constant",
        evaluations=2,
    )
    # The worker checks the first ratio of every rollout itself; here it stands in the log.
    first = [p["values"] for p in outcome["points"] if p["kind"] == "train" and p["step"] % 4 == 1]
    tolerance = 1e-5 if precision == "fp32" else 2e-2
    assert all(abs(values["ratio"] - 1.0) < tolerance for values in first)
    assert outcome["metrics"]["score"] > outcome["before"]["score"] + 0.3
