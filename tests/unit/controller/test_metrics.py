"""The controller's metrics of stages."""

from __future__ import annotations

from typing import Any

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.controller.metrics import Metrics


def sample(metrics: Metrics, name: str) -> float | None:
    return metrics.registry.get_sample_value(name, {"pipeline": "demo", "stage": "sft"})


def pipeline(**progress: Any) -> Pipeline:
    entry = {"state": "Running", "attempt": 1, "progress": {"percent": 12.5, **progress}}
    return Pipeline({"metadata": {"name": "demo", "namespace": "n"}, "status": {"stages": {"sft": entry}}})


def test_a_stage_that_does_something_is_seen_though_its_percent_stands() -> None:
    """updatedAt moves with the heartbeat (ProgressWriter): a merge of an hour is no hang."""
    metrics, name = Metrics(), "zhongjing_stage_updated_timestamp_seconds"
    metrics.count([pipeline(updatedAt="2026-01-01T00:00:10.500Z")], busy=True, pods={})
    assert sample(metrics, name) == 1767225610.5
    metrics.count([pipeline(updatedAt="2026-01-01T00:01:10.500Z")], busy=True, pods={})
    assert sample(metrics, name) == 1767225670.5
    assert sample(metrics, "zhongjing_stage_progress_percent") == 12.5
    metrics.count([pipeline()], busy=True, pods={})
    assert sample(metrics, name) is None
    metrics.count([], busy=False, pods={})
    assert sample(metrics, "zhongjing_stage_progress_percent") is None


def test_api_requests_total_is_a_counter_as_all_that_only_grows() -> None:
    """By the name: Prometheus' conventions give _total to counters alone, and rate() of a gauge is wrong."""
    metrics = Metrics()
    metrics.observe(lambda: True, lambda: 17)
    assert "# TYPE zhongjing_controller_api_requests_total counter" in metrics.text().decode()
    assert metrics.registry.get_sample_value("zhongjing_controller_api_requests_total") == 17.0
    for family in metrics.registry.collect():
        names = {each.name for each in family.samples}
        assert (family.type == "counter") == any(name.endswith("_total") for name in names), family.name
