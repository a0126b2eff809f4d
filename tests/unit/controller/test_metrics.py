"""The controller's metrics of stages, and how they and its health are served."""

from __future__ import annotations

import urllib.error
import urllib.request
from typing import Any

from prometheus_client import generate_latest

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.controller.metrics import Metrics
from zhongjing.controller.server import HealthServer


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
    text = generate_latest(metrics.registry).decode()
    assert "# TYPE zhongjing_controller_api_requests_total counter" in text
    assert metrics.registry.get_sample_value("zhongjing_controller_api_requests_total") == 17.0
    for family in metrics.registry.collect():
        names = {each.name for each in family.samples}
        assert (family.type == "counter") == any(name.endswith("_total") for name in names), family.name


def test_health_and_metrics_are_served() -> None:
    metrics = Metrics()
    metrics.observe(lambda: True, lambda: 17)
    server = HealthServer(0, healthy=lambda: None, ready=lambda: "ending", metrics=metrics.registry)

    def get(path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    server.start()
    try:
        assert get("/healthz?verbose") == (200, "ok\n")
        assert get("/readyz") == (503, "ending\n")
        status, text = get("/metrics")
        assert (status, "zhongjing_controller_api_requests_total 17.0" in text) == (200, True)
        assert get("/")[0] == 404
    finally:
        server.close()
