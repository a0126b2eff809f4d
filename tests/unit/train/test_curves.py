from __future__ import annotations

import random
from pathlib import Path

import pytest

from zhongjing.storage.progress import MetricPoint
from zhongjing.train.job.curves import _panel_of, render_curves, smooth

PNG = b"\x89PNG\r\n\x1a\n"


def point(kind: str, step: int, **values: float) -> MetricPoint:
    return MetricPoint.model_validate({"kind": kind, "step": step, "time": "", "values": values})


def training(steps: int) -> list[MetricPoint]:
    noise = random.Random(0)
    points = [
        point("train", step, loss=8.0 - step / 20 + noise.random(), grad_norm=1.0, learning_rate=1e-4)
        for step in range(steps)
    ]
    return [*points, point("validation", 0, loss=8.2), point("validation", steps, loss=5.0)]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of a training of 30 steps; drawing takes a second."""
    return render_curves(training(30), tmp_path_factory.mktemp("plain") / "curves")


def test_every_panel_has_its_file_and_the_overview_comes_first(plain: list[Path]) -> None:
    names = [file.name for file in plain]
    assert names == ["curves.png", "loss.png", "optimizer.png", "schedule.png"]
    for file in plain:
        assert file.read_bytes().startswith(PNG)
    assert sorted(path.name for path in plain[0].parent.iterdir()) == sorted(names)


def test_ppo_has_reward_and_kl(tmp_path: Path) -> None:
    points = [
        point("rollout", step, reward=0.1 * step, kl=0.01, entropy=3.0, response_length=20.0, eos_share=0.5)
        for step in range(5)
    ]
    names = {file.name for file in render_curves(points, tmp_path)}
    assert names == {"curves.png", "reward.png", "kl.png", "entropy.png", "length.png", "ends.png"}


@pytest.mark.parametrize(("factor", "drawn"), [(1.0, False), (0.5, True)])
def test_the_guard_is_drawn_when_it_acted(tmp_path: Path, factor: float, drawn: bool) -> None:
    points = [point("train", step, loss=2.0, guard_loss_factor=factor) for step in range(3)]
    names = [file.name for file in render_curves(points, tmp_path)]
    assert ("guard.png" in names) is drawn
    assert "loss.png" in names


@pytest.mark.parametrize(
    ("name", "panel"),
    [
        ("loss", "loss"),
        ("value_loss", "value_loss"),
        ("policy_loss", "policy_loss"),
        ("pair_accuracy", "accuracy"),
        ("objective", "reward"),
        ("reward", "reward"),
        ("score", "score"),
        ("reward_mean", "score"),  # the reward model's own, before PPO normalises it
        ("reward_std", None),
        ("accuracy_low", None),
        ("kl", "kl"),
        ("update_kl", "update_kl"),
        ("kl_coef", None),
        ("weekly", None),
        ("clip_fraction", "clipped"),
        ("value_clip_fraction", "clipped"),
        ("explained_variance", "critic"),
        ("guard_loss_factor", "guard"),
        ("response_length", "length"),
        ("eos_share", "ends"),
        ("learning_rate", "schedule"),
        ("rollout/kl", "kl"),
        ("tokens", None),
    ],
)
def test_a_metric_goes_where_its_name_says(name: str, panel: str | None) -> None:
    assert _panel_of(name) == panel


def test_nothing_to_draw_writes_nothing(tmp_path: Path) -> None:
    assert render_curves([point("train", 1, tokens=5.0)], tmp_path / "curves") == []
    assert not (tmp_path / "curves").exists()


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    points = [point("train", 0, loss=float("nan")), point("train", 1, loss=float("inf"))]
    assert render_curves(points, tmp_path) == []
    assert render_curves([*points, point("train", 2, loss=1.0)], tmp_path)


def test_spikes_change_the_picture(plain: list[Path], tmp_path: Path) -> None:
    marked = render_curves([*training(30), point("spike", 12, gradient_norm=99.0)], tmp_path)[0]
    assert plain[0].read_bytes() != marked.read_bytes()


def test_the_same_points_give_the_same_file(plain: list[Path], tmp_path: Path) -> None:
    assert render_curves(list(reversed(training(30))), tmp_path)[0].read_bytes() == plain[0].read_bytes()


def test_every_curve_of_an_axis_has_the_same_unit() -> None:
    """The metrics of the four stages (docs/metrics.md) by their units: two units never share a panel."""
    units = {
        "reward": ("objective", "reward"),
        "score": ("score", "reward_mean"),
        "nats a response": ("kl",),
        "nats a token, of an update": ("update_kl",),
        "nats a token": ("entropy",),
        "share of tokens": ("clip_fraction", "value_clip_fraction"),
        "share of variance": ("explained_variance",),
        "share of pairs": ("accuracy", "longer_accuracy"),
        "share of responses": ("eos_share",),
        "tokens": ("response_length",),
        "squared reward": ("value_loss",),
        "advantage": ("policy_loss",),
        "nats": ("loss",),
    }
    panels = [{_panel_of(name) for name in names} for names in units.values()]
    assert all(len(panel) == 1 and None not in panel for panel in panels)
    assert len(set.union(*panels)) == len(units)


def test_smoothing_shows_nothing_before_it_happens() -> None:
    """A mean of the past: a guard that acts at a spike never seems to have acted before it."""
    assert smooth([]) == []
    assert smooth([2.0] * 30) == pytest.approx([2.0] * 30)
    assert smooth([0.0, 9.0, 0.0, 0.0], window=3) == pytest.approx([0.0, 4.5, 3.0, 3.0])
    for at in (0, 20, 59):
        spike = [1.0] * at + [50.0] + [1.0] * (59 - at)
        smoothed = smooth(spike)
        assert smoothed[:at] == pytest.approx([1.0] * at)
        assert smoothed[at] > 1.0
