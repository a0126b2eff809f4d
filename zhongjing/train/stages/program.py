"""What a stage is, to the loop: a module with a loss, a plan for every optimizer step, an evaluation.

The four stages implement :class:`StageProgram`; the loop (``train/loop.py``) does everything else: ZeRO-2
engine, schedule, spike guard, checkpoints, resume, cooperative stop, best checkpoint, progress.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from zhongjing.data.samples import SampleSet


@dataclass(slots=True)
class MicroLoss:
    """Result of one forward pass.

    ``total`` is a *sum* (over target tokens, pairs, ...), scalar fp32 with grad; the loop divides it by the
    step's denominator, so micro-batches and ranks of unequal size weigh what they should. ``sums`` are
    detached fp32 scalars, summed over micro-batches and ranks and divided likewise.
    """

    total: torch.Tensor
    sums: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(slots=True)
class StepBatches:
    """One optimizer step of this rank. All ranks have as many micro-batches, dummies included."""

    micro_batches: Sequence[Any]
    denominator: float  # global, over all ranks: target tokens (or pairs, ...) of the step
    denominators: Mapping[str, float] = field(default_factory=dict)  # of MicroLoss.sums, where another
    samples: int = 0  # global
    tokens: int = 0  # global
    over_budget: int = 0  # global: samples that alone are longer than a micro-batch may be
    epoch: float = 0.0
    metrics: Mapping[str, float] = field(default_factory=dict)  # host values to log with the step (PPO)
    metrics_kind: str = "train"


class StageProgram(Protocol):
    """A stage. ``module.forward(micro_batch)`` returns a :class:`MicroLoss`.

    Sampling is a pure function of (seed, step), so that resuming at a step needs no more than the step's
    number and ``state_dict()``. ``best_metric`` is a key of what ``evaluate`` returns. With
    ``checkpoint_whenever_possible`` each chance is taken, whatever the settings' cadence (PPO: what an
    iteration costs is not lost twice).
    """

    total_steps: int
    best_metric: str
    best_is_lower: bool
    checkpoint_whenever_possible: bool

    @property
    def module(self) -> torch.nn.Module:
        """What is trained, with everything frozen around it."""
        ...

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW groups of the trainable parameters.

        A group may set ``lr_scale`` (relative to the schedule) and ``weight_decay``.
        """
        ...

    def step_batches(self, step: int) -> StepBatches:
        """Micro-batches of optimizer step ``step`` (from 0). Called in order; PPO makes rollouts here."""
        ...

    def can_checkpoint(self, step: int) -> bool:
        """Whether a checkpoint may be taken after ``step`` steps (PPO: only between rollouts)."""
        ...

    def evaluate(self, samples: SampleSet | None = None) -> dict[str, float]:
        """Metrics of the held-out split, or of ``samples``: the same on all ranks, empty without any.

        Called with the module in evaluation mode.
        """
        ...

    def warnings(self, best: Mapping[str, float]) -> list[str]:
        """What is doubtful about what was learnt, a sentence each; asked after every evaluation.

        Args:
            best: metrics of the best checkpoint so far; empty before the first.
        """
        ...

    def finish(self, folder: Path, best: Mapping[str, float]) -> dict[str, Any]:
        """Rank 0, with the best checkpoint loaded: writes the model folder; returns manifest extras."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """JSON state beyond the parameters (PPO: KL coefficient, ...)."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        ...
