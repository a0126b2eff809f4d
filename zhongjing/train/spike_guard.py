"""What is done when training explodes (paper, section 4: "halve loss ... and decay learning rate").

:class:`SpikeGuard` looks at the gradient norm of every optimizer step before the step is taken. A norm that
is not finite, or far above the running median, is a spike: the update of this step and of those that follow
is weakened, and recovers slowly. :class:`DivergenceWatch` looks at the loss: with a far too large learning
rate the norms may stay alike while the loss climbs, and then the stage has to end, not to be slowed down.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from zhongjing.codes import training as codes
from zhongjing.config.stages import SpikeGuard as SpikeGuardSettings
from zhongjing.errors import TrainingError

# A norm within so many deviations of the recent ones (of their logarithms, by the median absolute deviation)
# is no spike, however far above the median: norms of small batches are heavy-tailed, and a guard that takes
# every twelfth step for an explosion holds the learning rate down for good.
_DEVIATIONS = 6.0
# Deviation of a normal distribution whose median absolute deviation is 1.
_MAD_TO_DEVIATION = 1.4826


@dataclass(frozen=True, slots=True)
class GuardDecision:
    """What to do with one optimizer step."""

    spike: bool
    loss_factor: float  # on the clipped gradient
    learning_rate_factor: float
    median: float | None  # what the norm was compared with
    at_floor: bool = False  # a spike that could not weaken the update any further


class SpikeGuard:
    """Weakens updates at gradient spikes.

    Spikes stay out of the median, so that a run of them does not become the new normal. With the guard
    disabled nothing is weakened, but norms that are not finite are still counted: no update can be made of
    them, and a run of them ends the stage.

    Args:
        settings: the document's ``guard``.
    """

    def __init__(self, settings: SpikeGuardSettings) -> None:
        self.settings = settings
        self.spikes = 0
        self.consecutive = 0
        self._norms: deque[float] = deque(maxlen=settings.window)
        self._loss_floor = 1.0
        self._rate_floor = 1.0
        self._calm_steps = settings.recovery_steps

    def _recovered(self, floor: float) -> float:
        return floor + (1 - floor) * min(self._calm_steps / self.settings.recovery_steps, 1.0)

    @property
    def loss_factor(self) -> float:
        """Current factor on the clipped gradient."""
        return self._recovered(self._loss_floor)

    @property
    def learning_rate_factor(self) -> float:
        """Current factor on the learning rate."""
        return self._recovered(self._rate_floor)

    def observe(self, norm: float) -> GuardDecision:
        """Judges the global gradient norm (before clipping) of the step that is about to be taken.

        Overflows of the fp16 loss scaler must not be shown to the guard: they are its way of searching.
        """
        settings = self.settings
        trusted = len(self._norms) >= min(settings.warmup_steps, settings.window)
        median = statistics.median(self._norms) if trusted else None
        far_above = median is not None and median > 0 and norm > self._limit(median)
        spike = not math.isfinite(norm) or (settings.enabled and far_above)
        at_floor = False
        if spike:
            self.spikes += 1
            self.consecutive += 1
            if settings.enabled:
                loss = self.loss_factor * settings.loss_factor
                rate = self.learning_rate_factor * settings.learning_rate_factor
                at_floor = min(loss, rate) < settings.min_factor
                self._loss_floor = max(loss, settings.min_factor)
                self._rate_floor = max(rate, settings.min_factor)
                self._calm_steps = 0
        else:
            self.consecutive = 0
            self._norms.append(norm)
            self._calm_steps = min(self._calm_steps + 1, settings.recovery_steps)
        return GuardDecision(spike, self.loss_factor, self.learning_rate_factor, median, at_floor)

    def _limit(self, median: float) -> float:
        """Norms above this are spikes."""
        spread = statistics.median(abs(math.log(norm / median)) for norm in self._norms if norm > 0)
        # Where norms hardly vary the threshold decides; beyond 1e6 medians nothing is ordinary.
        usual = math.exp(min(_DEVIATIONS * _MAD_TO_DEVIATION * spread, math.log(1e6)))
        return median * max(self.settings.threshold, usual)

    def check(self, step: int, last_checkpoint: int | None) -> None:
        """Ends the stage when spikes do not stop.

        Raises:
            TrainingError: ``max_consecutive`` spikes in a row.
        """
        if self.consecutive >= self.settings.max_consecutive:
            raise exploded(
                f"the gradient exploded in {self.consecutive} optimizer steps in a row", step, last_checkpoint
            )

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain JSON values."""
        return {
            "spikes": self.spikes,
            "consecutive": self.consecutive,
            "norms": list(self._norms),
            "lossFloor": self._loss_floor,
            "rateFloor": self._rate_floor,
            "calmSteps": self._calm_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self.spikes = int(state["spikes"])
        self.consecutive = int(state["consecutive"])
        self._norms = deque((float(norm) for norm in state["norms"]), maxlen=self.settings.window)
        self._loss_floor = float(state["lossFloor"])
        self._rate_floor = float(state["rateFloor"])
        self._calm_steps = int(state["calmSteps"])


class DivergenceWatch:
    """Ends a stage whose loss has climbed out of reach.

    Compares the median loss of the latest steps with that of the first ones. Only for losses that are
    log-likelihoods or like them: positive, and falling when things go well.

    Args:
        window: optimizer steps in each of the two medians.
        factor: the loss has diverged above so many times its first median,
        margin: and at least so far (nats) above it: near 0 a factor alone would be too easy to reach.
    """

    def __init__(self, window: int = 8, factor: float = 3.0, margin: float = 2.0) -> None:
        self.window = window
        self.factor = factor
        self.margin = margin
        self._first: list[float] = []
        self._latest: deque[float] = deque(maxlen=window)

    def observe(self, loss: float, step: int, last_checkpoint: int | None) -> None:
        """Takes the loss of a step.

        Raises:
            TrainingError: the loss has diverged.
        """
        if not math.isfinite(loss):
            return  # the gradient is not finite either: the spike guard's matter
        if len(self._first) < self.window // 2:
            self._first.append(loss)
        self._latest.append(loss)
        if len(self._latest) < self.window:
            return
        # The lower of the first losses: a rate that explodes has spoilt the later ones already.
        start, now = min(self._first), statistics.median(self._latest)
        if now > max(self.factor * start, start + self.margin):
            raise exploded(
                f"the loss diverged: {now:.4g} (median of {self.window} steps), {start:.4g} at the start",
                step,
                last_checkpoint,
            )

    def state_dict(self) -> dict[str, Any]:
        """The state, as plain JSON values."""
        return {"first": self._first, "latest": list(self._latest)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
        self._first = [float(loss) for loss in state["first"]]
        self._latest = deque((float(loss) for loss in state["latest"]), maxlen=self.window)


def exploded(message: str, step: int, last_checkpoint: int | None) -> TrainingError:
    """The error that ends an exploding stage: names the step and the last good checkpoint."""
    kept = f"step {last_checkpoint}" if last_checkpoint is not None else "none was made yet"
    return TrainingError(
        f"{message} (last good checkpoint: {kept})",
        code=codes.DIVERGED,
        where=f"step {step}",
    )
