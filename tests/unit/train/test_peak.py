"""Measured peaks of the ranks, beside the plan."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import torch

from tests.unit.pipeline.support import user_document
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.planning.memory import plan_memory
from zhongjing.planning.shape import of_config
from zhongjing.train.job.peak_memory import memory_use, own_peak, planned

CONFIG = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
}
PROBE = """
from pathlib import Path
from zhongjing.train.job.peak_memory import _private_peak
before = _private_peak()
block = bytearray(200 * 2**20)
block[::4096] = b"x" * len(block[::4096])
del block
print(_private_peak() - before)
"""


def settings() -> AnySettings:
    found = resolve(user_document(stages=("sft",))).spec.stages.get(Stage.SFT)
    assert found is not None
    return found


def test_a_peak_stays_when_the_memory_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    assert 190 * 2**20 < int(done.stdout) < 230 * 2**20


def test_the_largest_peak_of_the_ranks_counts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    plan = planned(tmp_path, settings())
    shape = of_config(CONFIG)
    assert shape is not None
    assert plan == plan_memory(shape, settings())
    assert plan is not None
    here = own_peak(torch.device("cpu"))
    assert set(here) == {"host"}
    on_cpu = memory_use([here, {"host": here["host"] + 5}], plan)
    assert (on_cpu.device, on_cpu.peak, on_cpu.plan) == ("cpu", here["host"] + 5, plan.host)
    ranks = [{"host": 7, "allocated": 5, "reserved": 6}, {"host": 8, "allocated": 4, "reserved": 9}]
    on_gpu = memory_use(ranks, plan)
    assert (on_gpu.peak, on_gpu.reserved, on_gpu.host_peak) == (5, 9, 8)
    assert (on_gpu.plan, on_gpu.host_plan) == (plan.peak, plan.host)


def test_a_base_of_another_kind_is_measured_without_a_plan(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5", "d_model": 512}')
    assert planned(tmp_path, settings()) is None
    assert memory_use([{"host": 2**30}], None).plan is None
