"""The one training loop: serves all four stages, in one plain process as under Ray Train.

It takes a :class:`StageProgram` (what a stage is) and a :class:`RunContext` (the world), and does the rest:
ZeRO-2 engine, schedule, spike guard, evaluation, best checkpoint, resume, cooperative stop, progress.

An optimizer step is a pure function of the parameters, AdamW's state and (seed, step, rank): generators are
seeded anew for every step, so a run that was stopped goes on bit for bit on the same number of workers.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from zhongjing.codes import storage as codes
from zhongjing.config.stages import StageSettings
from zhongjing.errors import StorageError, TrainingError
from zhongjing.storage.progress import Activity
from zhongjing.train.context import RunContext
from zhongjing.train.distributed import make_deterministic, reseed
from zhongjing.train.engine import Engine, StepResult
from zhongjing.train.meter import Meter
from zhongjing.train.schedule import Schedule
from zhongjing.train.snapshot import SnapshotBuffer
from zhongjing.train.spike_guard import DivergenceWatch, exploded
from zhongjing.train.stages.program import StageProgram, StepBatches
from zhongjing.train.state import read_state, wanted_ranges, write_state

logger = logging.getLogger(__name__)

# Places in the seed's space, so that no two uses of the generators share a stream.
_TRAINING, _EVALUATION = 0, 1


@dataclass(frozen=True, slots=True)
class LoopResult:
    """What became of a stage. Unless it is suspended, the module holds the best weights on every rank."""

    steps: int
    best_step: int
    metrics_before: dict[str, float]
    metrics: dict[str, float]  # of the best checkpoint
    spikes: int
    tokens: int
    samples: int
    suspended: bool


@dataclass(slots=True)
class TrainState:
    """Where a run stands; part of every checkpoint."""

    step: int = 0  # optimizer steps taken
    samples: int = 0
    tokens: int = 0
    epoch: float = 0.0
    evaluated: int = 0  # step of the latest evaluation
    best_step: int = 0
    best_value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    metrics_before: dict[str, float] = field(default_factory=dict)


def run_loop(program: StageProgram, settings: StageSettings, context: RunContext, *, seed: int) -> LoopResult:
    """Trains a stage from its beginning or from its latest checkpoint. Every rank calls it.

    Args:
        program: the stage.
        settings: of the stage; only what all stages have in common is read here.
        context: the world.
        seed: of everything random in training.

    Returns:
        What was reached; ``suspended`` if the run was asked to stop, and then a checkpoint is complete.

    Raises:
        TrainingError: the training exploded; names the step and the last good checkpoint.
        StorageError: a checkpoint is damaged or belongs to another model.
    """
    return _Loop(program, settings, context, seed).run()


class _Loop:
    def __init__(
        self, program: StageProgram, settings: StageSettings, context: RunContext, seed: int
    ) -> None:
        if settings.deterministic:
            make_deterministic()
        self.program = program
        self.settings = settings
        self.context = context
        self.seed = seed
        self.engine = Engine(program.module, program.parameter_groups(), settings, context.device)
        self.schedule = Schedule(
            settings.schedule,
            settings.learning_rate,
            program.total_steps,
            settings.warmup_fraction,
            settings.min_learning_rate_fraction,
        )
        self.buffer = SnapshotBuffer(context.buffers)
        self.state = TrainState()
        self.watch = DivergenceWatch() if settings.guard.enabled and program.best_metric == "loss" else None
        self.meter = Meter(program.total_steps, settings.evaluations)
        self.saved_step: int | None = None
        self.saved_at = time.monotonic()
        self._rollout: dict[str, float] = {}  # figures of the latest one (PPO)
        self.save_pending = False
        self.stop_pending = False
        self.warning = ""  # what progress says as long as it holds

    def run(self) -> LoopResult:
        try:
            return self._run()
        finally:
            self.engine.destroy()

    def _run(self) -> LoopResult:
        latest = self.context.latest(partial(wanted_ranges, self.engine))
        if latest is not None:
            self._resume(latest)
        else:
            self.state.metrics_before = self._evaluate()
        self._report(Activity.TRAINING)
        while self.state.step < self.program.total_steps:
            self._train_one()
            if self._evaluation_is_due():
                self._evaluate_and_keep()
            if self._save_is_due() and self.saved_step != self.state.step:
                self._save()
            if self.state.step == self.program.total_steps:
                break
            if self.stop_pending and self.program.can_checkpoint(self.state.step):
                return self._suspend()
        return self._complete()

    # -- one step

    def _train_one(self) -> None:
        step = self.state.step
        started = time.monotonic()
        reseed(self.seed, _TRAINING, step, self.context.rank)
        batches = self.program.step_batches(step)
        loaded = time.monotonic()
        result = self.engine.train_step(batches, self.schedule.rate(step), self._flags(step + 1), step=step)
        stop, save = result.flags
        self.stop_pending = self.stop_pending or stop > 0
        self.save_pending = self.save_pending or save > 0
        self.state.step += 1
        self.state.samples += batches.samples
        self.state.tokens += batches.tokens
        self.state.epoch = batches.epoch
        self.engine.guard.check(self.state.step, self.saved_step)
        if self.watch is not None:
            self.watch.observe(result.loss, self.state.step, self.saved_step)
        finished = time.monotonic()
        self.meter.step(batches.tokens, finished - started, loaded - started)
        self._log(batches, result)

    def _flags(self, step: int) -> tuple[float, float]:
        """Stop and checkpoint wishes. Only rank 0 has any; the step's all-reduce tells the others."""
        if self.context.rank != 0:
            return 0.0, 0.0
        cadence = self.settings.checkpoints
        if cadence.every_steps is not None:
            save = step % cadence.every_steps == 0
        else:
            save = time.monotonic() - self.saved_at >= cadence.every_seconds
        return float(self.context.stop_requested()), float(save)

    def _log(self, batches: StepBatches, result: StepResult) -> None:
        if self.context.rank != 0:
            return
        state, guard = self.state, self.engine.guard
        if batches.metrics:
            # A rollout happens once in several steps: each is told, whatever the cadence.
            self._rollout = dict(batches.metrics)
            self.context.log(batches.metrics_kind, state.step, dict(batches.metrics), epoch=state.epoch)
        if result.guard is not None and result.guard.spike:
            spike = {"grad_norm": result.gradient_norm, "loss": result.loss}
            if result.guard.median is not None:
                spike["median_grad_norm"] = result.guard.median
            self.context.log("spike", state.step, spike, epoch=state.epoch)
            if result.guard.at_floor:
                self.warning = (
                    f"gradient spikes follow each other: updates are held at {guard.loss_factor:g} of their "
                    f"size and {guard.learning_rate_factor:g} of the learning rate (step {state.step}); "
                    "lower learningRate, or look at the data"
                )
                logger.warning("%s", self.warning)
        if state.step % self.settings.logging.every_steps and state.step != self.program.total_steps:
            return
        values = {
            "loss": result.loss,
            **result.sums,
            "grad_norm": result.gradient_norm,
            "learning_rate": result.learning_rate,
            **self.meter.values(),
            "guard_loss_factor": guard.loss_factor,
            "guard_learning_rate_factor": guard.learning_rate_factor,
        }
        if batches.over_budget:
            values["samples_over_budget"] = float(batches.over_budget)
        if self.engine.settings.precision == "fp16":
            values["loss_scale"] = result.loss_scale
        self.context.log("train", state.step, values, epoch=state.epoch)
        self._report(Activity.TRAINING, metrics={**self._rollout, **values})

    def _report(self, activity: Activity, **fields: Any) -> None:
        if self.context.rank != 0:
            return
        state = self.state
        known: dict[str, Any] = {
            "step": state.step,
            "total_steps": self.program.total_steps,
            "epoch": state.epoch,
            "samples": state.samples,
            "tokens": state.tokens,
            "tokens_per_second": self.meter.tokens_per_second,
            "eta_seconds": self.meter.eta_seconds(state.step),
            "best_step": state.best_step or None,
            "spikes": self.engine.guard.spikes,
            "message": self.warning,
        }
        self.context.report(activity, **{**known, **fields})

    # -- evaluation

    def _evaluation_is_due(self) -> bool:
        """Whether an evaluation falls between the latest one and now; only where a checkpoint may follow."""
        step, total = self.state.step, self.program.total_steps
        if step == total:
            return self.state.evaluated < total
        if not self.program.can_checkpoint(step):
            return False
        count = min(self.settings.evaluations, total)
        return step * count // total > self.state.evaluated * count // total

    def _evaluate(self) -> dict[str, float]:
        self._report(Activity.EVALUATING)
        started = time.monotonic()
        reseed(self.seed, _EVALUATION, self.state.step, self.context.rank)
        self.program.module.eval()
        metrics = self.program.evaluate()
        self.program.module.train()
        self.state.evaluated = self.state.step
        self.meter.evaluation(time.monotonic() - started)
        if self.context.rank == 0:
            self.context.log("validation", self.state.step, metrics, epoch=self.state.epoch)
        # What is measured before the first step is no candidate.
        best = metrics if self.state.step and self._is_better(metrics) else self.state.metrics
        told = {
            "validation": metrics,
            "validation_step": self.state.step,
            "warnings": self.program.warnings(best),
        }
        self._report(Activity.TRAINING, **told)
        return metrics

    def _is_better(self, metrics: dict[str, float]) -> bool:
        """Whether these are better than the best; always where nothing can be compared.

        Without held-out data the latest weights are the result.
        """
        value, best = metrics.get(self.program.best_metric), self.state.best_value
        if value is None or best is None:
            return True
        return value < best if self.program.best_is_lower else value > best

    def _evaluate_and_keep(self) -> None:
        program_before = self.program.state_dict()
        metrics = self._evaluate()
        state = self.state
        value = metrics.get(self.program.best_metric)
        if value is not None and not math.isfinite(value):
            raise exploded(f"the held-out {self.program.best_metric} is {value}", state.step, self.saved_step)
        if not self._is_better(metrics):
            return
        before = state.best_step, state.best_value, state.metrics
        state.best_step, state.best_value, state.metrics = state.step, value, metrics
        if not self._save(best=True):
            # What cannot be gone back to is no best; the next evaluation is compared with the one before.
            state.best_step, state.best_value, state.metrics = before
            self.program.load_state_dict(program_before)

    # -- checkpoints

    def _save(self, *, best: bool = False) -> bool:
        """Takes a checkpoint.

        A full disk may have room again later, and is no reason to lose what was learnt: the run goes on and
        tries again when the next checkpoint is due. Only the one that the result or a stop stands on must be.

        Returns:
            Whether it was taken; the same on all ranks.

        Raises:
            StorageError: it was not and is needed now, or for another reason than a full disk.
        """
        self._report(Activity.SAVING)
        extra = {
            "place": asdict(self.state),
            "program": self.program.state_dict(),
            "watch": None if self.watch is None else self.watch.state_dict(),
            "seed": self.seed,
        }
        full: StorageError | None = None
        try:
            self.context.save(
                self.state.step,
                lambda folder: write_state(self.engine, folder, extra, self.buffer),
                best=best,
            )
        except StorageError as error:
            if error.code is not codes.DISK_FULL:
                raise
            full = error
        self.saved_at = time.monotonic()
        self.save_pending = False
        if full is None:
            self.warning = ""
            self.saved_step = self.engine.last_checkpoint = self.state.step
        elif self.stop_pending or (best and self.state.step == self.program.total_steps):
            raise full
        else:
            kept = (
                "none was taken yet"
                if self.saved_step is None
                else f"the latest is of step {self.saved_step}"
            )
            self.warning = f"the disk is full, so no checkpoint of step {self.state.step} ({kept})"
            if self.context.rank == 0:
                logger.warning("%s; training goes on: %s", self.warning, full)
        self._report(Activity.TRAINING)
        return full is None

    def _save_is_due(self) -> bool:
        if not self.program.can_checkpoint(self.state.step):
            return False
        if self.program.checkpoint_whenever_possible:
            return True
        # After the last step only the best checkpoint counts.
        wanted = self.save_pending or self.stop_pending
        return wanted and self.state.step < self.program.total_steps

    def _resume(self, folder: Path) -> None:
        content = read_state(self.engine, folder)
        if content["seed"] != self.seed:
            raise TrainingError(
                f"the checkpoint was made with seed {content['seed']}, not {self.seed}",
                code=codes.DAMAGED_CHECKPOINT,
                where=str(folder),
            )
        self.state = TrainState(**content["place"])
        self.program.load_state_dict(content["program"])
        if self.watch is not None and content["watch"] is not None:
            self.watch.load_state_dict(content["watch"])
        self.saved_step = self.engine.last_checkpoint = self.state.step

    def _suspend(self) -> LoopResult:
        self.context.wait_saved()
        self._report(Activity.SUSPENDED)
        return self._result(suspended=True)

    def _complete(self) -> LoopResult:
        self._report(Activity.SAVING)
        self.context.wait_saved()
        if self.state.best_step not in (0, self.state.step):
            wanted = partial(wanted_ranges, self.engine, moments=False)
            read_state(self.engine, self.context.checkpoint(self.state.best_step, wanted), moments=False)
        return self._result(suspended=False)

    def _result(self, *, suspended: bool) -> LoopResult:
        state = self.state
        return LoopResult(
            steps=state.step,
            best_step=state.best_step,
            metrics_before=state.metrics_before,
            metrics=state.metrics,
            spikes=self.engine.guard.spikes,
            tokens=state.tokens,
            samples=state.samples,
            suspended=suspended,
        )
