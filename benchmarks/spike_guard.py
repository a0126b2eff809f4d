"""Does the spike guard save a run? Poisoned batches, a learning rate x 20, and both runs without them.

::

    python -m benchmarks.spike_guard --seeds 3

A small Llama reads the example textbook. Poisoned steps, one in ten of the middle third, are batches of
random tokens whose loss is multiplied by 1,000; the learning rate is 20 times as high from the first
poisoned step to the last. Printed are held-out losses of the latest weights, and their ratio to the
undisturbed run of the same seed: what the guard is for is a ratio near 1.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.local_context import LocalContext
from zhongjing.config.sources import TinyBase
from zhongjing.config.stages import PretrainSettings
from zhongjing.data.example.generate import generate
from zhongjing.data.samples import MicroBatch, Sample, SampleSet, Segment
from zhongjing.data.templates import CHATML_TEMPLATE
from zhongjing.errors import TrainingError
from zhongjing.model.base import make_tiny_base
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.train.distributed import ensure_process_group
from zhongjing.train.engine import Engine
from zhongjing.train.loop import run_loop
from zhongjing.train.stages.causal import PretrainProgram
from zhongjing.train.stages.inputs import StageInputs
from zhongjing.train.stages.program import MicroLoss, StepBatches

_LENGTH = 64
_CPU = torch.device("cpu")


class Windows:
    """A sample set in memory: windows of one text."""

    def __init__(self, ids: Sequence[int]) -> None:
        arrays = [np.asarray(ids[at : at + _LENGTH], np.int32) for at in range(0, len(ids) - 1, _LENGTH)]
        self._samples = []
        for index, array in enumerate(arrays):
            target = np.ones(len(array), np.bool_)
            target[0] = False
            self._samples.append(Sample(index, (Segment(array, target),)))
        self.tokens = np.array([sample.tokens for sample in self._samples], np.int64)
        self.targets = np.array([sample.targets for sample in self._samples], np.int64)
        self.groups = np.zeros(len(arrays), np.int32)
        self.group_names = ["textbook"]

    def __len__(self) -> int:
        return len(self._samples)

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        """Samples by index."""
        return [self._samples[index] for index in indices]


@dataclass
class Poison:
    """Which steps are spoilt, and how."""

    first: int
    last: int
    every: int = 10
    loss_factor: float = 1000.0
    rate_factor: float = 20.0

    def covers(self, step: int) -> bool:
        """Whether the learning rate is too high at ``step``."""
        return self.first <= step <= self.last

    def hits(self, step: int) -> bool:
        """Whether the batch of ``step`` is poisoned."""
        return self.covers(step) and (step - self.first) % self.every == 0


class PoisonedProgram(PretrainProgram):
    """Pretraining some of whose steps are spoilt."""

    poison: Poison | None = None
    hot = False

    def step_batches(self, step: int) -> StepBatches:
        """The step's plan; random tokens where it is poisoned."""
        plan = super().step_batches(step)
        self.hot = self.poison is not None and self.poison.hits(step)
        if self.hot:
            random = torch.Generator().manual_seed(step)
            for batch in plan.micro_batches:
                ids = batch.row.input_ids
                ids.copy_(torch.randint(3, 300, ids.shape, generator=random))
        return plan


def spoil(program: PoisonedProgram) -> None:
    """Multiplies the loss of poisoned batches."""
    objective: Any = program.module
    forward = objective.forward

    def exploding(batch: MicroBatch) -> MicroLoss:
        loss: MicroLoss = forward(batch)
        factor = program.poison.loss_factor if program.hot and program.poison is not None else 1.0
        return MicroLoss(loss.total * factor, loss.sums)

    objective.forward = exploding


def held_out_loss(
    base: Path, train: SampleSet, held_out: SampleSet, *, seed: int, poison: Poison | None, guard: bool
) -> tuple[float, int]:
    """Held-out loss of the latest weights, and the number of spikes; infinite where the run ended early."""
    settings = PretrainSettings.model_validate(
        {
            "data": [{"source": "textbook"}],
            "precision": "fp32",
            "dropout": 0.0,
            "learningRate": 2e-3,
            "globalBatchSize": 8,
            "microBatchSize": 8,
            "maxLength": _LENGTH,
            "maxSteps": 300,
            "epochs": 100,
            "evaluations": 1,
            "guard": {"enabled": guard},
        }
    )
    inputs = StageInputs(
        base=base,
        base_reference="base",
        tokenizer=base,
        train=train,
        validation=held_out,
        rank=0,
        world_size=1,
        device=_CPU,
        seed=seed,
    )
    program = PoisonedProgram(settings, inputs)
    program.poison = poison
    spoil(program)
    original = Engine.train_step

    def too_fast(self: Engine, plan: StepBatches, rate: float, *args: Any, **kwargs: Any) -> Any:
        covered = poison is not None and poison.covers(kwargs["step"])
        return original(
            self, plan, rate * (poison.rate_factor if covered and poison else 1.0), *args, **kwargs
        )

    Engine.train_step = too_fast  # type: ignore[assignment, method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder:
            result = run_loop(program, settings, LocalContext(Path(folder)), seed=seed)
    except TrainingError as error:
        print(f"    ended: {error}")
        return float("inf"), -1
    finally:
        Engine.train_step = original  # type: ignore[method-assign]
    return result.metrics["loss"], result.spikes


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description="The spike guard against poisoned batches.")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rate-factor", type=float, default=20.0)
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    ensure_process_group(_CPU)
    data = generate(0)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        tiny = TinyBase(
            hidden_size=96, intermediate_size=256, layers=2, vocabulary_size=1024, max_positions=128
        )
        make_tiny_base(base, tiny, [data.textbook], 0, CHATML_TEMPLATE)
        ids = load_tokenizer(base)(data.textbook, add_special_tokens=False)["input_ids"]
        cut = len(ids) * 9 // 10
        train, held_out = Windows(ids[:cut]), Windows(ids[cut:])
        poison = Poison(100, 200, rate_factor=arguments.rate_factor)
        print(
            f"{'seed':<5} {'clean':>8} {'guard':>8} {'none':>8} {'guard/clean':>12} {'none/clean':>11} spikes"
        )
        ratios: list[tuple[float, float]] = []
        for seed in range(arguments.seeds):
            clean, _ = held_out_loss(base, train, held_out, seed=seed, poison=None, guard=True)
            guarded, spikes = held_out_loss(base, train, held_out, seed=seed, poison=poison, guard=True)
            bare, _ = held_out_loss(base, train, held_out, seed=seed, poison=poison, guard=False)
            ratios.append((guarded / clean, bare / clean))
            print(
                f"{seed:<5} {clean:>8.4f} {guarded:>8.4f} {bare:>8.4f} {ratios[-1][0]:>12.3f}"
                f" {ratios[-1][1]:>11.3f} {spikes:>6}"
            )
        means = [statistics.mean(column) for column in zip(*ratios, strict=True)]
        print(f"mean  {'':>26} {means[0]:>12.3f} {means[1]:>11.3f}")


if __name__ == "__main__":
    main()
