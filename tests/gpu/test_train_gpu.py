"""The engine on a GPU: number formats, loss scaling, host syncs, packed rows."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.local_context import LocalContext
from tests.training_jobs import SOURCE
from tests.training_support import dialogues, stage_inputs, tiny_base
from zhongjing.config.stages import SftSettings
from zhongjing.train.engine import Engine
from zhongjing.train.loop import LoopResult, run_loop
from zhongjing.train.stages.causal import SftProgram
from zhongjing.train.stages.program import StepBatches

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True)
def _own_process() -> None:
    # DeepSpeed chooses its accelerator once in a process, and so does the process group its backend.
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        pytest.skip("this process has trained on the CPU already: run tests/gpu alone")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base") / "llama", hidden_size=64, intermediate_size=128)


def sft(base: Path, precision: str, **changes: Any) -> tuple[SftProgram, SftSettings]:
    settings = SftSettings(
        **{
            "precision": precision,
            "data": SOURCE,
            "max_length": 64,
            "tuning": "full",
            "epochs": 6,
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "learning_rate": 3e-3,
            "evaluations": 2,
            **changes,
        }
    )
    inputs = stage_inputs(base, dialogues(64), dialogues(16, seed=9), seed=3, device=torch.device("cuda", 0))
    program = SftProgram(settings, inputs)
    return program, settings


def run(folder: Path, base: Path, precision: str, **changes: Any) -> tuple[LoopResult, list[dict[str, Any]]]:
    program, settings = sft(base, precision, **changes)
    context = LocalContext(folder, device=torch.device("cuda", 0))
    return run_loop(program, settings, context, seed=3), context.points


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_every_number_format_learns(tmp_path: Path, base: Path, precision: str) -> None:
    result, points = run(tmp_path, base, precision)
    assert result.metrics["loss"] < 0.8 * result.metrics_before["loss"]
    assert result.spikes == 0
    if precision == "fp16":
        scales = [point["values"]["loss_scale"] for point in points if point["kind"] == "train"]
        assert all(scale >= 1 for scale in scales)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_stay_near_fp32(tmp_path: Path, base: Path, precision: str) -> None:
    exact, _ = run(tmp_path / "fp32", base, "fp32")
    rounded, _ = run(tmp_path / precision, base, precision)
    assert rounded.metrics["loss"] == pytest.approx(exact.metrics["loss"], rel=0.05)


def test_an_overflow_of_the_loss_scale_is_no_spike(base: Path) -> None:
    program, settings = sft(base, "fp16")
    engine = Engine(program.module, program.parameter_groups(), settings, torch.device("cuda", 0))
    plan = program.step_batches(0)
    engine.zero.loss_scaler.cur_scale = 2.0**40
    before = [parameter.detach().clone() for parameter in engine.names.values()]
    result = engine.train_step(plan, 1e-3)
    assert result.overflow
    assert not result.applied
    assert engine.guard.spikes == 0
    assert engine.loss_scale == 2.0**39
    for parameter, old in zip(engine.names.values(), before, strict=True):
        assert torch.equal(parameter, old)
    engine.zero.loss_scaler.cur_scale = 2.0**10
    assert engine.train_step(plan, 1e-3).applied


def test_a_loss_that_is_not_finite_is_a_spike_and_keeps_the_scale(base: Path) -> None:
    program, settings = sft(base, "fp16")
    engine = Engine(program.module, program.parameter_groups(), settings, torch.device("cuda", 0))
    scale = engine.loss_scale
    plan = program.step_batches(0)
    result = engine.train_step(StepBatches(plan.micro_batches, plan.denominator), 1e-3)
    assert math.isfinite(result.loss)
    with torch.no_grad():
        next(iter(engine.names.values())).fill_(math.nan)
    result = engine.train_step(plan, 1e-3)
    assert not result.overflow
    assert engine.guard.spikes == 1
    assert engine.loss_scale == scale


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_one_host_sync_per_optimizer_step(base: Path, precision: str) -> None:
    program, settings = sft(base, precision, micro_batch_tokens=32)
    engine = Engine(program.module, program.parameter_groups(), settings, torch.device("cuda", 0))
    plan = program.step_batches(0)
    assert len(plan.micro_batches) > 4
    for _ in range(3):
        engine.train_step(plan, 1e-4)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            engine.train_step(plan, 1e-4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    syncs = [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    assert len(syncs) == 1, syncs


def test_a_deterministic_run_repeats_bit_for_bit(tmp_path: Path, base: Path) -> None:
    try:
        one, _ = run(tmp_path / "one", base, "bf16", deterministic=True)
        two, _ = run(tmp_path / "two", base, "bf16", deterministic=True)
    finally:
        torch.use_deterministic_algorithms(False)
    assert one.metrics == two.metrics


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_offload_changes_no_update(base: Path, precision: str) -> None:
    runs = []
    for offload in ("none", "cpu"):
        program, settings = sft(base, precision, optimizer={"offload": offload}, micro_batch_tokens=32)
        engine = Engine(program.module, program.parameter_groups(), settings, torch.device("cuda", 0))
        # Several micro-batches a step: their sum goes through the host.
        runs.append([engine.train_step(program.step_batches(step), 1e-3, step=step) for step in range(4)])
    for without, offloaded in zip(*runs, strict=True):
        assert offloaded.applied == without.applied
        assert offloaded.gradient_norm == pytest.approx(without.gradient_norm, rel=0.01)
        assert offloaded.loss == pytest.approx(without.loss, rel=0.01)


def test_a_growing_loss_scale_halves_no_update(base: Path) -> None:
    """The clipped gradient that reaches AdamW has the same norm at the step at which the scale grows."""
    program, settings = sft(base, "fp16", max_gradient_norm=1e-3)
    engine = Engine(program.module, program.parameter_groups(), settings, torch.device("cuda", 0))
    engine.zero.loss_scaler.scale_window = 2
    engine.zero.loss_scaler.cur_scale = 2.0**8
    squares: list[float] = []
    original = engine.zero._optimizer_step

    def spy(group: int) -> None:
        squares.append(float(engine.zero.single_partition_of_fp32_groups[group].grad.square().sum()))
        original(group)

    engine.zero._optimizer_step = spy
    scales = []
    for step in range(6):
        squares.clear()
        scales.append(engine.train_step(program.step_batches(step), 1e-4, step=step).loss_scale)
        assert math.sqrt(sum(squares)) == pytest.approx(1e-3, rel=0.01), f"step {step}"
    assert scales[-1] > scales[0], "the scale never grew: nothing was shown"
