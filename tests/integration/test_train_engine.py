"""The engine against plain torch: accumulation, clipping, guard, state; on one rank and on two."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_jobs import (
    CPU,
    Batch,
    Toy,
    engine_steps,
    toy_batches,
    toy_dummy,
    toy_engine,
    toy_settings,
    toy_step,
    weights_of,
)
from tests.training_support import run_ranks, tiny_base
from zhongjing.errors import ConfigError, StorageError
from zhongjing.train.engine import Engine
from zhongjing.train.stages.program import StepBatches
from zhongjing.train.state import read_state, write_state

pytestmark = pytest.mark.integration

COUNTS = [3, 1, 4, 2, 5]


def plain(counts: list[int]) -> dict[str, Any]:
    """The same steps by torch alone, every micro-batch in one sum."""
    module = Toy()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in module.trainable() if p.ndim > 1], "weight_decay": 0.1},
        {"params": [p for p in module.trainable() if p.ndim == 1], "lr": 2e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.95))
    losses, norms = [], []
    for step, count in enumerate(counts):
        batches = toy_batches(step, count)
        optimizer.zero_grad()
        rows = sum(len(batch[2]) for batch in batches)
        loss = torch.stack([module(batch).total for batch in batches]).sum() / rows
        loss.backward()
        for parameter in module.trainable():
            # DeepSpeed gives unused parameters a gradient of zero, so that decay moves them (training.md).
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.trainable(), 0.5)))
        optimizer.step()
        losses.append(float(loss.detach()))
    return {"losses": losses, "norms": norms, "weights": weights_of(module)}


def assert_same(got: dict[str, Any], wanted: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert got["losses"] == pytest.approx(wanted["losses"], rel=tolerance)
    assert got["norms"] == pytest.approx(wanted["norms"], rel=tolerance)
    for name, values in wanted["weights"].items():
        assert got["weights"][name] == pytest.approx(values, rel=tolerance, abs=1e-6), name


def test_steps_equal_plain_torch(tmp_path: Path) -> None:
    got = engine_steps(tmp_path, counts=COUNTS)
    assert_same(got, plain(COUNTS))
    assert got["counts"] == [1.0] * len(COUNTS)  # a sum over its denominator
    assert got["flags"] == [[1.0, 0.0]] * len(COUNTS)


def test_two_ranks_with_fillers_equal_plain_torch(tmp_path: Path) -> None:
    first, second = run_ranks("engine_steps", tmp_path, 2, counts=COUNTS)
    assert first == second
    assert_same(first, plain(COUNTS))
    assert first["flags"] == [[2.0, 1.0]] * len(COUNTS)  # summed over the ranks


def test_state_moves_between_world_sizes(tmp_path: Path) -> None:
    run_ranks("engine_steps", tmp_path / "two", 2, counts=COUNTS[:3], save=True)
    assert len(list((tmp_path / "two" / "state").glob("*-weights.bin"))) == 2
    wanted = plain(COUNTS)
    everything = 12 * sum(len(values) for values in wanted["weights"].values())
    got = engine_steps(tmp_path / "two", counts=COUNTS[3:], load=True)
    assert_same(got, {**wanted, "losses": wanted["losses"][3:], "norms": wanted["norms"][3:]})
    assert got["wanted"] == everything

    three = run_ranks("engine_steps", tmp_path / "two", 3, counts=COUNTS[3:], load=True)
    assert three[0]["weights"] == three[1]["weights"] == three[2]["weights"]
    assert_same(three[0], {**wanted, "losses": wanted["losses"][3:], "norms": wanted["norms"][3:]})
    # Each rank has read what it keeps, and no two the same.
    assert sum(rank["wanted"] for rank in three) == everything
    assert max(rank["wanted"] for rank in three) < everything / 2

    (tmp_path / "one").mkdir()
    engine_steps(tmp_path / "one", counts=COUNTS[:3], save=True)
    one, two = run_ranks("engine_steps", tmp_path / "one", 2, counts=COUNTS[3:], load=True)
    assert one["weights"] == two["weights"]
    assert one["wanted"] + two["wanted"] == everything
    assert_same(one, {**wanted, "losses": wanted["losses"][3:], "norms": wanted["norms"][3:]})


def test_same_world_size_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = engine_steps(tmp_path, counts=COUNTS)
    engine_steps(tmp_path, counts=COUNTS[:2], save=True)
    rest = engine_steps(tmp_path, counts=COUNTS[2:], load=True)
    assert rest["weights"] == whole["weights"]
    assert rest["losses"] == whole["losses"][2:]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    engine = toy_engine()
    write_state(engine, tmp_path, {})
    engine.names = {"stranger": next(iter(engine.names.values()))}
    with pytest.raises(StorageError, match="another model"):
        read_state(engine, tmp_path)


def test_a_cut_checkpoint_is_refused(tmp_path: Path) -> None:
    engine = toy_engine()
    write_state(engine, tmp_path, {})
    content = (tmp_path / "trainer.json").read_text()
    (tmp_path / "trainer.json").write_text(content[: len(content) // 2])
    with pytest.raises(StorageError, match="not a checkpoint"):
        read_state(engine, tmp_path)


def scaled(batches: list[Batch], factor: float) -> list[Batch]:
    return [(x, y, weights * factor) for x, y, weights in batches]


def test_a_spike_halves_the_clipped_update() -> None:
    guard = {"warmup_steps": 2, "window": 8, "recovery_steps": 4}
    engine = toy_engine(guard=guard)
    batches = toy_batches(0, 2)
    for step in range(3):
        assert not engine.train_step(StepBatches(batches, 5.0), 0.0, step=step).guard.spike  # type: ignore[union-attr]
    seen: list[float] = []
    # What reaches AdamW: the gradient after unscaling, clipping and the guard.
    original = engine.zero._optimizer_step

    def spy(group: int) -> None:
        seen.append(float(engine.zero.single_partition_of_fp32_groups[group].grad.norm()))
        original(group)

    engine.zero._optimizer_step = spy
    result = engine.train_step(StepBatches(scaled(batches, 1000.0), 5.0), 1e-3, step=3)
    assert result.guard is not None
    assert result.guard.spike
    assert result.learning_rate == pytest.approx(0.5e-3)
    assert math.hypot(*seen) == pytest.approx(0.5 * 0.5, rel=1e-4)  # half of max_gradient_norm
    seen.clear()
    calm = engine.train_step(StepBatches(batches, 5.0), 1e-3, step=4)
    assert calm.guard is not None
    assert not calm.guard.spike
    assert calm.learning_rate == pytest.approx(1e-3 * 0.625)  # a quarter of the way back


def test_a_gradient_that_is_not_finite_changes_nothing() -> None:
    engine = toy_engine()
    engine.train_step(StepBatches(toy_batches(0, 2), 5.0), 1e-2)
    before = weights_of(engine.module)
    bad = engine.train_step(StepBatches(scaled(toy_batches(1, 2), math.inf), 5.0), 1e-2)
    assert not bad.applied
    assert not bad.overflow
    assert bad.guard is not None
    assert bad.guard.spike
    assert weights_of(engine.module) == before
    good = engine.train_step(StepBatches(toy_batches(2, 1), 3.0), 1e-2)
    assert good.applied
    assert weights_of(engine.module) != before


def test_fillers_add_nothing() -> None:
    alone, filled = toy_engine(), toy_engine()
    one = alone.train_step(StepBatches(toy_batches(0, 2), 5.0), 1e-2)
    two = filled.train_step(StepBatches([*toy_batches(0, 2), toy_dummy(), toy_dummy()], 5.0), 1e-2)
    assert one.loss == two.loss
    assert weights_of(alone.module) == weights_of(filled.module)


def test_offload_changes_no_update(tmp_path: Path) -> None:
    wanted = engine_steps(tmp_path, counts=COUNTS)
    assert_same(engine_steps(tmp_path, counts=COUNTS, offload="cpu"), wanted, tolerance=1e-6)
    assert_same(wanted, plain(COUNTS))


def test_offloaded_state_goes_on_bit_for_bit_and_moves(tmp_path: Path) -> None:
    whole = engine_steps(tmp_path, counts=COUNTS, offload="cpu")
    engine_steps(tmp_path, counts=COUNTS[:3], offload="cpu", save=True)
    rest = engine_steps(tmp_path, counts=COUNTS[3:], offload="cpu", load=True)
    assert rest["weights"] == whole["weights"]
    # From the host to the device, and to two ranks.
    assert_same(engine_steps(tmp_path, counts=COUNTS[3:], load=True), rest, tolerance=1e-6)
    for two in run_ranks("engine_steps", tmp_path, 2, counts=COUNTS[3:], offload="cpu", load=True):
        assert_same(two, rest)


def test_offload_skips_and_weakens_as_without() -> None:
    results, weights = [], []
    for offload in ("none", "cpu"):
        engine = toy_engine(optimizer={"offload": offload}, guard={"warmup_steps": 2})
        for step in range(2):
            engine.train_step(toy_step(step, 2, 0, 1), 1e-2, step=step)
        before = weights_of(engine.module)
        bad = StepBatches(scaled(toy_batches(2, 1), math.inf), 1.0)
        assert not engine.train_step(bad, 1e-2, step=2).applied
        assert weights_of(engine.module) == before
        results.append(engine.train_step(StepBatches(scaled(toy_batches(3, 2), 1000.0), 5.0), 1e-2, step=3))
        weights.append(weights_of(engine.module))
    without, offloaded = results
    assert without.guard is not None
    assert without.guard.spike
    assert without.learning_rate == pytest.approx(0.25e-2)  # halved by both spikes
    assert offloaded.guard is not None
    assert offloaded.guard.spike
    assert offloaded.guard.loss_factor == without.guard.loss_factor
    assert offloaded.learning_rate == without.learning_rate
    assert offloaded.gradient_norm == pytest.approx(without.gradient_norm, rel=1e-6)
    for name, values in weights[0].items():
        assert weights[1][name] == pytest.approx(values, rel=1e-6, abs=1e-7), name


def test_the_norm_waits_for_gradients_on_their_way_to_the_host() -> None:
    """On a GPU copies end after the call that began them; here they end when their event is waited for."""
    wanted = toy_engine().train_step(toy_step(0, 2, 0, 1), 1e-2)
    engine = toy_engine(optimizer={"offload": "cpu"})
    zero = engine.zero
    arriving = [torch.zeros_like(partition) for partition in zero.single_partition_of_fp32_groups]

    class Event:
        def synchronize(self) -> None:
            for partition, values in zip(zero.single_partition_of_fp32_groups, arriving, strict=True):
                partition.grad.add_(values)
                values.zero_()

    def record_copy() -> None:
        for partition, values in zip(zero.single_partition_of_fp32_groups, arriving, strict=True):
            values.add_(partition.grad)
            partition.grad.zero_()
        zero._pending_offload_events[None] = Event()  # None: the CPU's stream

    zero._record_offload_copy = record_copy
    result = engine.train_step(toy_step(0, 2, 0, 1), 1e-2)
    assert result.gradient_norm == pytest.approx(wanted.gradient_norm, rel=1e-6)


def test_a_growing_loss_scale_changes_no_update() -> None:
    """DeepSpeed's own scaler on fp32 weights: scales are powers of two, so the updates must be equal.

    In ZeRO-2's ``step`` the scale is updated before the gradients are divided by it (DeepSpeed 0.19.8,
    runtime/zero/stage_1_and_2.py), so the divisor must be the scale that the backward pass used.
    """
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler

    plain, scaled = toy_engine(), toy_engine()
    scaled.zero.loss_scaler = DynamicLossScaler(
        init_scale=2.0**8,
        scale_window=2,
        min_scale=1.0,
        delayed_shift=1,
        consecutive_hysteresis=False,
        dtype=torch.float32,
    )
    scales = []
    for step in range(7):
        wanted = plain.train_step(toy_step(step, 2, 0, 1), 1e-2, step=step)
        result = scaled.train_step(toy_step(step, 2, 0, 1), 1e-2, step=step)
        assert result.gradient_norm == wanted.gradient_norm
        assert weights_of(scaled.module) == weights_of(plain.module), (
            f"step {step}, scale {result.loss_scale:g}"
        )
        scales.append(result.loss_scale)
    assert scales[-1] > scales[0], "the scale never grew: nothing was shown"


def test_ranks_of_a_node_share_the_pages_of_the_frozen_base(tmp_path: Path) -> None:
    """DeepSpeed's own start has each rank but the first write all weights: a private copy of the base."""
    base = tiny_base(tmp_path / "base")
    for result in run_ranks("beginnings", tmp_path / "ranks", 2, base=str(base)):
        assert result["mapped"] == [[str(base / "model.safetensors"), 0]] * len(result["mapped"])
        assert result["mapped"]
        assert "begin with other weights in 1 of" in result["said"]
        assert "lora_A" in result["said"]


def test_every_trainable_parameter_must_be_optimised() -> None:
    module = Toy()
    with pytest.raises(ConfigError, match="trainable"):
        Engine(module, [{"params": list(module.first.parameters())}], toy_settings(), CPU)


def test_nothing_on_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    engine = toy_engine()
    engine.train_step(StepBatches(toy_batches(0, 2), 5.0), 1e-2)
    assert capfd.readouterr().out == ""
