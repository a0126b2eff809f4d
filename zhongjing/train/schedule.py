"""Learning rates as pure functions of the step, so that nothing has to be kept to resume."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Schedule:
    """Warm-up, then decay from ``peak`` to ``peak * minimum_fraction``.

    Args:
        kind: shape of the decay.
        peak: learning rate after the warm-up; 0 trains nothing.
        total_steps: optimizer steps of the stage.
        warmup_fraction: part of them in which the rate rises linearly.
        minimum_fraction: where the decay ends, relative to the peak.
    """

    kind: Literal["cosine", "linear", "constant"]
    peak: float
    total_steps: int
    warmup_fraction: float = 0.0
    minimum_fraction: float = 0.0

    @property
    def warmup_steps(self) -> int:
        """Optimizer steps of the warm-up."""
        return min(math.ceil(self.warmup_fraction * self.total_steps), self.total_steps)

    def factor(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0) relative to the peak.

        The first step of a warm-up already learns (1 / (warm-up + 1)), and the last step of the stage is not
        wasted on a rate of 0: a decay from step w to n reaches its end at step n, one after the last.
        """
        warmup = self.warmup_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.kind == "constant":
            return 1.0
        progress = min((step - warmup) / max(self.total_steps - warmup, 1), 1.0)
        shape = 0.5 * (1 + math.cos(math.pi * progress)) if self.kind == "cosine" else 1 - progress
        return self.minimum_fraction + (1 - self.minimum_fraction) * shape

    def rate(self, step: int) -> float:
        """Learning rate of optimizer step ``step`` (from 0)."""
        return self.peak * self.factor(step)
