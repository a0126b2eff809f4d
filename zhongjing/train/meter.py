"""Speed and time to go."""

from __future__ import annotations

from collections import deque

_WINDOW = 20  # steps
_RECENT = 60.0  # seconds


class Meter:
    """Measures steps and evaluations.

    Args:
        total_steps: optimizer steps of the stage.
        evaluations: evaluations of the stage, the one before the first step left out.
    """

    def __init__(self, total_steps: int, evaluations: int) -> None:
        self._total_steps = total_steps
        self._evaluations = min(evaluations, total_steps)
        self._steps: deque[tuple[int, float, float]] = deque(maxlen=_WINDOW)
        self._evaluation_seconds: float | None = None

    def step(self, tokens: int, seconds: float, waited: float) -> None:
        """Takes one optimizer step: its tokens, how long it took, and how long of that for its data."""
        self._steps.append((tokens, seconds, waited))

    def evaluation(self, seconds: float) -> None:
        """Takes the duration of one evaluation."""
        self._evaluation_seconds = seconds

    @property
    def tokens_per_second(self) -> float | None:
        """Training tokens a second over the latest steps, all ranks; None before the first."""
        seconds = sum(took for _, took, _ in self._steps)
        return sum(tokens for tokens, _, _ in self._steps) / seconds if seconds > 0 else None

    def eta_seconds(self, step: int) -> float | None:
        """Seconds until the last step, evaluations included; None before the first step."""
        if not self._steps:
            return None
        left = self._total_steps - step
        each = sum(took for _, took, _ in self._steps) / len(self._steps)
        share = left / self._total_steps if self._total_steps else 0.0
        return left * each + share * self._evaluations * (self._evaluation_seconds or 0.0)

    def values(self) -> dict[str, float]:
        """The latest step's figures, to log."""
        tokens, seconds, waited = self._steps[-1]
        return {
            "tokens_per_second": tokens / seconds if seconds > 0 else 0.0,
            "step_seconds": seconds,
            "data_seconds": waited,
        }


class TimeLeft:
    """Seconds that a job's preparation takes yet, by how its fraction grew in the last minute.

    Not since the beginning: a resumed build passes what is there in no time.
    """

    def __init__(self) -> None:
        self._told: deque[tuple[float, float]] = deque()

    def seconds(self, fraction: float, now: float) -> float | None:
        """Takes the fraction that is done; None while nothing can be told of the rest.

        Args:
            fraction: 0 to 1; one that is smaller than before belongs to another activity.
            now: a clock, in seconds.
        """
        if self._told and fraction < self._told[-1][1]:
            self._told.clear()
        self._told.append((now, fraction))
        while len(self._told) > 2 and self._told[1][0] <= now - _RECENT:
            self._told.popleft()
        since, before = self._told[0]
        return (now - since) * (1 - fraction) / (fraction - before) if fraction > before else None
