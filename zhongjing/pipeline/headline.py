"""Progress in a few words: numbers, time spans, and the metrics that tell most. Every display uses these."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from zhongjing.config.stages import Stage

# What tells most about a stage: words of a metric's name, best first.
_HEADLINES: dict[Stage, tuple[str, ...]] = {
    Stage.PRETRAIN: ("loss",),
    Stage.SFT: ("loss",),
    Stage.RM: ("accuracy", "loss"),
    Stage.PPO: ("objective", "reward", "kl"),
}
_SECONDARY = ("update", "std", "min", "max", "low", "high", "coef", "value", "policy", "critic")


def number(value: float) -> str:
    """A metric in four significant digits: ``2.134``, ``0.0312``, ``1.2e-05``."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    text = f"{value:.4g}"
    return f"{value:.1e}" if "e" in text else text


def duration(seconds: float) -> str:
    """A time span: ``8s``, ``1m20s``, ``2h05m``, ``3d04h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def describe(stage: Stage, metrics: Mapping[str, float], *, limit: int = 3) -> str:
    """The metrics that tell most about ``stage``, as text."""
    names = main_metrics(stage, metrics, limit=limit)
    return " ".join(f"{name} {number(metrics[name])}{_sureness(name, metrics)}" for name in names)


def _sureness(name: str, metrics: Mapping[str, float]) -> str:
    """How sure a metric is, where its interval was measured: `` (n 21, 95% 0.28-0.68)``."""
    found = interval(name, metrics)
    return f" (n {found.n:.0f}, 95% {found})" if found is not None else ""


class Interval(NamedTuple):
    """The 95 % interval of a metric, and of how many pairs or prompts it is."""

    low: float
    high: float
    n: float

    def __str__(self) -> str:
        dash = " to " if self.low < 0 else "-"
        return f"{self.low:.2f}{dash}{self.high:.2f}"


def interval(name: str, metrics: Mapping[str, float]) -> Interval | None:
    """The interval of the metric ``name``, where it was measured."""
    n = metrics.get("pairs", metrics.get("prompts"))
    if n is None or f"{name}_low" not in metrics:
        return None
    return Interval(metrics[f"{name}_low"], metrics[f"{name}_high"], n)


def main_metrics(stage: Stage, names: Mapping[str, float] | Sequence[str], *, limit: int = 3) -> list[str]:
    """Names of the metrics that tell most about ``stage``, most telling first; at most ``limit``."""
    chosen: list[str] = []
    for word in _HEADLINES.get(stage, ("loss",)):
        exact = [name for name in names if name.split("/")[-1] == word]
        near = [
            name for name in names if word in name.split("_") and not any(part in name for part in _SECONDARY)
        ]
        for name in [*exact, *near][:1]:
            if name not in chosen:
                chosen.append(name)
    return (chosen or list(names))[:limit]
