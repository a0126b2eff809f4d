"""Curves of a stage as PNG files: loss, reward, KL and what else its metric points hold.

Drawn from :class:`zhongjing.storage.progress.MetricPoint` and nothing else, so a stage's job and a laptop
that downloaded ``metrics.jsonl`` draw the same picture. Text in the figures is ASCII: no font has
to be there. matplotlib is imported when something is drawn.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.storage.progress import MetricPoint

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OVERVIEW = "curves.png"
"""The picture with all panels."""

# Panel, its title, and words one of which the last part of a metric's name must contain; the longest match
# wins. One unit a panel: what PPO earns is normalised, the reward model's score is not; the KL to the
# reference is of a response, that of an update of a token. In the order in which people look at them.
_PANELS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("loss", "Loss", ("loss", "nll", "cross_entropy")),
    ("accuracy", "Accuracy", ("accuracy",)),
    ("reward", "Reward (normalised)", ("objective", "reward")),
    ("score", "Score of the reward model", ("score", "reward_mean")),
    ("kl", "KL to the reference (nats a response)", ("kl",)),
    ("length", "Length of responses (tokens)", ("length",)),
    ("ends", "Share of responses with an end", ("eos",)),
    ("entropy", "Entropy (nats a token)", ("entropy",)),
    ("policy_loss", "Policy loss", ("policy_loss",)),
    ("value_loss", "Value loss (squared reward)", ("value_loss",)),
    ("update_kl", "KL of the update (nats a token)", ("update_kl",)),
    ("clipped", "Share of tokens clipped", ("clip_fraction",)),
    ("critic", "Variance that the critic explains", ("explained_variance",)),
    ("optimizer", "Gradient norm", ("grad_norm",)),
    ("schedule", "Learning rate", ("learning_rate",)),
    ("guard", "Spike guard's factors", ("guard_loss_factor", "guard_learning_rate_factor")),
)
# What the reader of a curve does not ask for: spreads, bounds of intervals, coefficients.
_NO_CURVES = {"std", "coef", "low", "high"}
_SMOOTH_FROM = 24  # points; below, the raw curve is readable
_EXACT = ("learning_rate", "guard")  # set, not measured: a mean would only come late
_MAX_SERIES = 8


@dataclass
class _Series:
    """One line of a panel: x are optimizer steps, y finite values."""

    x: list[float] = field(default_factory=list)
    y: list[float] = field(default_factory=list)


def render_curves(points: Sequence[MetricPoint], folder: Path) -> list[Path]:
    """Draws the curves of one stage.

    Args:
        points: metric points in any order; points of kind ``sample`` and values that are not finite are
            left out, points of kind ``spike`` become vertical marks.
        folder: where the files are written; made if absent.

    Returns:
        The files, the overview ``curves.png`` first, then one file a panel; empty when nothing can be drawn.
    """
    panels = _panels(points)
    if not panels:
        return []
    spikes = sorted({float(point.step) for point in points if point.kind == "spike"})
    folder.mkdir(parents=True, exist_ok=True)
    titles = {name: title for name, title, _ in _PANELS}
    files = [_draw(folder / OVERVIEW, [(titles[name], series) for name, series in panels.items()], spikes)]
    files.extend(
        _draw(folder / f"{name}.png", [(titles[name], series)], spikes) for name, series in panels.items()
    )
    return files


def _panels(points: Sequence[MetricPoint]) -> dict[str, dict[str, _Series]]:
    """Series by panel (in the order of ``_PANELS``) and label."""
    found: dict[str, dict[str, _Series]] = defaultdict(lambda: defaultdict(_Series))
    for point in sorted(points, key=lambda point: point.step):
        if point.kind in ("sample", "spike"):
            continue
        for name, value in point.values.items():
            panel = _panel_of(name)
            if panel is None or not math.isfinite(value):
                continue
            label = _ascii(name if point.kind == "train" else f"{point.kind} {name}")
            series = found[panel][label]
            series.x.append(float(point.step))
            series.y.append(float(value))
    if all(value == 1.0 for series in found["guard"].values() for value in series.y):
        del found["guard"]  # it never acted
    order = [name for name, _, _ in _PANELS if name in found]
    # By label, training first: the same points give the same picture, in whatever order they come.
    return {
        name: dict(sorted(found[name].items(), key=lambda entry: (" " in entry[0], entry[0]))[:_MAX_SERIES])
        for name in order
    }


def _panel_of(name: str) -> str | None:
    last = name.lower().rpartition("/")[2]
    if _NO_CURVES & set(last.split("_")):
        return None
    # Whole words: "kl" is not in "weekly".
    matches = [(len(w), panel) for panel, _, words in _PANELS for w in words if f"_{w}_" in f"_{last}_"]
    return max(matches)[1] if matches else None


def _draw(path: Path, panels: list[tuple[str, dict[str, _Series]]], spikes: list[float]) -> Path:
    """Writes one figure with the given panels, atomically."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4.8 * columns, 3.2 * rows), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)  # takes the figure; no window system, no state shared with pyplot
    axes = figure.subplots(rows, columns, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index < len(panels):
            _panel(axis, *panels[index], spikes)
        else:
            axis.set_visible(False)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        figure.savefig(file, format="png")
    partial.replace(path)
    return path


def _panel(axis: Axes, title: str, series: dict[str, _Series], spikes: list[float]) -> None:
    """One panel: training faint with its smoothed line over it, held-out values with markers."""
    for label, line in series.items():
        if label.startswith("validation "):
            axis.plot(line.x, line.y, marker="o", markersize=4, linewidth=1.6, label=label)
        elif len(line.x) >= _SMOOTH_FROM and not label.startswith(_EXACT):
            (smoothed,) = axis.plot(line.x, smooth(line.y), linewidth=1.6, label=label)
            axis.plot(line.x, line.y, linewidth=0.7, alpha=0.3, color=smoothed.get_color())
        else:
            axis.plot(line.x, line.y, linewidth=1.3, marker="." if len(line.x) < 3 else None, label=label)
    for step in spikes:
        axis.axvline(step, color="tab:red", linewidth=0.6, alpha=0.4)
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=8)
    axis.tick_params(labelsize=8)
    axis.grid(visible=True, linewidth=0.4, alpha=0.4)
    axis.legend(fontsize=7, frameon=False)


def smooth(values: Sequence[float], *, window: int | None = None) -> list[float]:
    """Trailing running mean: a point shows what has been, so nothing seems to happen before its cause.

    Args:
        values: finite values, one a step.
        window: width in points; none: a tenth of the curve, at least 5.

    Returns:
        As many values as were given; the first are means of what there is.
    """
    width = window or max(5, len(values) // 10)
    sums = [0.0, *itertools.accumulate(values)]
    return [
        (sums[end] - sums[begin]) / (end - begin)
        for end in range(1, len(sums))
        for begin in [max(0, end - width)]
    ]


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")
