"""Gauges: what dashboards and alerts are built on stands in docs/metrics.md, by its very name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from zhongjing.config.stages import Stage
from zhongjing.storage.progress import Activity, MetricPoint, Progress
from zhongjing.train.job.prometheus import POINTS, PROGRESS, PrometheusGauges

ROOT = Path(__file__).parents[3]


def test_the_documentation_lists_every_gauge_and_no_other() -> None:
    listed = re.findall(
        r"^\| `ray_zhongjing_(\w+)` \| (.*) \|$", (ROOT / "docs/metrics.md").read_text(), re.M
    )
    assert dict(listed) == {**PROGRESS, **POINTS}


def test_dashboards_and_alerts_use_only_what_is_documented() -> None:
    used: set[str] = set()
    for file in [*ROOT.glob("helm/dashboards/*.json"), *ROOT.glob("helm/templates/monitoring/*")]:
        used |= set(re.findall(r"ray_zhongjing_(\w+)", file.read_text(encoding="utf-8")))
    assert used <= {*PROGRESS, *POINTS}


@pytest.fixture
def values(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """What was set, by name; Ray's own part is tested with Ray, in test_train_pods."""
    found: dict[str, float] = {}

    def record(_: PrometheusGauges, name: str, value: float, description: str) -> None:
        assert description
        found[name] = value

    monkeypatch.setattr(PrometheusGauges, "_set", record)
    return found


def test_what_a_death_would_cost(values: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("zhongjing.train.job.prometheus.time.time", lambda: now[0])
    watched = PrometheusGauges("sft", "x")

    def report(**fields: Any) -> None:
        progress = Progress(stage=Stage.SFT, key="k", attempt=2, activity=Activity.TRAINING, **fields)
        watched.progress(progress)

    report(step=10, total_steps=100)
    assert values["checkpoint_step"] == 0
    assert values["checkpoint_lag_steps"] == 10
    assert values["checkpoint_timestamp_seconds"] == 1000
    assert "eta_seconds" not in values
    now[0] = 1050
    report(step=20, total_steps=100, checkpoint_step=15, eta_seconds=60.0)
    now[0] = 1060
    report(step=22, total_steps=100, checkpoint_step=15, eta_seconds=58.0)
    assert values["checkpoint_lag_steps"] == 7
    assert values["checkpoint_timestamp_seconds"] == 1050
    assert values["updated_timestamp_seconds"] == 1060
    assert values["eta_seconds"] == 58
    assert set(values) == set(PROGRESS)


def test_a_value_that_nobody_knew_is_a_gauge_all_the_same(values: dict[str, float]) -> None:
    PrometheusGauges("sft", "x")(
        MetricPoint(kind="train", step=1, time="", values={"loss": 2.0, "novel": 3.0})
    )
    assert values == {"train_loss": 2.0, "train_novel": 3.0}
