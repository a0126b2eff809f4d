"""Compares what a disturbed run left with what the undisturbed run of the same document left."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.observe import STAGES, Result
from zhongjing.config.stages import Stage
from zhongjing.storage.progress import MetricPoint

# The number of workers is the same, so a resumed run is expected to be equal to the last bit. What rounding
# may cost before it counts as a failure:
TOLERANCE = 1e-6
# Of metric points: how fast it went is no result.
_CLOCKS = frozenset({"tokens_per_second", "step_seconds", "data_seconds"})

Results = Mapping[Stage, Result]


@dataclass
class Comparison:
    """One stage of both runs."""

    stage: Stage
    undisturbed: dict[str, float]
    disturbed: dict[str, float]
    attempts: int
    same_weights: bool  # every file of the result, by sha256
    problems: list[str] = field(default_factory=list)


def compare(undisturbed: Results, disturbed: Results) -> list[Comparison]:
    """Every stage's figures, weights and metric points."""
    return [_compare(stage, undisturbed[stage], disturbed[stage]) for stage in STAGES]


def _compare(stage: Stage, one: Result, other: Result) -> Comparison:
    a, b = one.manifest, other.manifest
    assert a.model is not None
    assert b.model is not None
    compared = Comparison(
        stage,
        a.metrics,
        b.metrics,
        b.attempt,
        {file.name: file.sha256 for file in a.model.files} == {f.name: f.sha256 for f in b.model.files},
    )
    for name, before, after in (
        ("held-out metrics before the first step", a.metrics_before, b.metrics_before),
        ("held-out metrics", a.metrics, b.metrics),
    ):
        compared.problems += [f"{stage}: {name}: {text}" for text in _differences(before, after)]
    for name in ("steps", "best_step", "samples", "tokens", "spikes"):
        if getattr(a, name) != getattr(b, name):
            compared.problems.append(f"{stage}: {name}: {getattr(a, name)} became {getattr(b, name)}")
    compared.problems += [f"{stage}: {text}" for text in _point_differences(one.points, other.points)]
    return compared


def _differences(one: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    if one.keys() != other.keys():
        return [f"{sorted(one)} became {sorted(other)}"]
    return [
        f"{name} {one[name]!r} became {other[name]!r}"
        for name in one
        if not math.isclose(one[name], other[name], rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    ]


def _point_differences(one: Sequence[MetricPoint], other: Sequence[MetricPoint]) -> list[str]:
    """Every point of the undisturbed run exactly once and in order, with the same values."""
    places, found = [_place(point) for point in one], [_place(point) for point in other]
    if places != found:
        twice = sorted({place for place in found if found.count(place) > 1})
        missing = [place for place in places if place not in found]
        extra = [place for place in found if place not in places]
        return [
            f"metric points: twice {twice[:5]}, missing {missing[:5]}, extra {extra[:5]}, or out of order"
        ]
    problems = []
    for before, after in zip(one, other, strict=True):
        values = [{n: v for n, v in p.values.items() if n not in _CLOCKS} for p in (before, after)]
        problems += [f"point {_place(before)}: {text}" for text in _differences(*values)]
    return problems[:5]


def _place(point: MetricPoint) -> tuple[str, int]:
    return point.kind, point.step


def rollouts(points: Sequence[MetricPoint]) -> list[int]:
    """Steps of the rollout points, in the order in which they stand."""
    return [point.step for point in points if point.kind == "rollout"]


def rollout_problems(points: Sequence[MetricPoint], steps: int, steps_per_iteration: int) -> list[str]:
    """PPO loses no finished iteration and counts none twice: one rollout an iteration, in order."""
    expected = list(range(1, steps + 1, steps_per_iteration))
    found = rollouts(points)
    return [] if found == expected else [f"ppo: rollouts at steps {found}, not {expected}"]
