"""What ``/metrics`` tells of the controller."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.pipeline.state import QUEUED, seconds

_PASS_BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class _ReadCounter(Collector):
    """A counter whose value is kept elsewhere and read when it is scraped."""

    def __init__(self, name: str, text: str) -> None:
        self._name, self._text = name, text
        self.read: Callable[[], int] = lambda: 0

    def collect(self) -> Iterator[CounterMetricFamily]:
        """The counter as it is now."""
        yield CounterMetricFamily(self._name, self._text, value=float(self.read()))


class Metrics:
    """Metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"zhongjing_{name}", text, labels, registry=self.registry)

        self._passes = Histogram(
            "zhongjing_controller_pass_seconds",
            "Passes over all pipelines.",
            registry=self.registry,
            buckets=_PASS_BUCKETS,
        )
        self._failures = Counter(
            "zhongjing_controller_failures",
            "Passes that the Kubernetes API or a defect broke off.",
            registry=self.registry,
        )
        self._pipelines = gauge("controller_pipelines", "Pipelines of this release by state.", "state")
        self._queue = gauge("controller_queue_length", "Pipelines that wait for the cluster.")
        self._busy = gauge("controller_cluster_busy", "1 while a pipeline has the cluster.")
        self._pods = gauge("controller_worker_pods", "Worker pods that are asked for.", "group")
        stage = ("pipeline", "stage")
        self._progress = gauge("stage_progress_percent", "Progress of the active stage.", *stage)
        self._updated = gauge(
            "stage_updated_timestamp_seconds",
            "Unix time at which the running attempt last did something: steps, or heartbeats of long work.",
            *stage,
        )
        self._attempts = gauge("stage_attempts", "Attempts of the stages of unfinished pipelines.", *stage)
        self._leader = gauge("controller_leader", "1 while this process leads.")
        self._requests = _ReadCounter("zhongjing_controller_api_requests", "Requests to the Kubernetes API.")
        self.registry.register(self._requests)

    def observe(self, is_leader: Callable[[], bool], requests: Callable[[], int]) -> None:
        """Sets where the values come from that are read when they are scraped."""
        self._leader.set_function(lambda: float(is_leader()))
        self._requests.read = requests

    def passed(self, seconds: float) -> None:
        """Counts a pass."""
        self._passes.observe(seconds)

    def fail(self) -> None:
        """Counts a pass that was broken off."""
        self._failures.inc()

    def count(self, pipelines: Iterable[Pipeline], busy: bool, pods: Mapping[str, int]) -> None:
        """Takes stock of the pipelines of this release, and of its worker pods by group."""
        for group, number in pods.items():
            self._pods.labels(group).set(number)
        states: Tally[str] = Tally()
        self._progress.clear()
        self._updated.clear()
        self._attempts.clear()
        for pipeline in pipelines:
            condition = pipeline.condition() or {}
            progressing = condition.get("type") == "Progressing"
            states[str(condition.get("reason" if progressing else "type") or "Pending")] += 1
            if pipeline.is_settled:
                continue
            for stage, entry in (pipeline.status.get("stages") or {}).items():
                self._attempts.labels(pipeline.name, stage).set(entry.get("attempt") or 0)
                if entry.get("state") == "Running":
                    progress = entry.get("progress") or {}
                    self._progress.labels(pipeline.name, stage).set(progress.get("percent") or 0)
                    with suppress(ValueError):  # nothing in a status is trusted to be valid
                        told = seconds(str(progress.get("updatedAt")))
                        self._updated.labels(pipeline.name, stage).set(told)
        self._pipelines.clear()
        for state, number in states.items():
            self._pipelines.labels(state).set(number)
        self._queue.set(states[QUEUED])
        self._busy.set(float(busy))
