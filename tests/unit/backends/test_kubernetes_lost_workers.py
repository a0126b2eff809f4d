"""A running job is told with the workers that it has lost, as their pods say."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes.api import Listing
from zhongjing.backends.kubernetes.ray_backend import EXPLAIN_SECONDS, ClusterBackend
from zhongjing.backends.kubernetes.resources import (
    CORE_EVENTS,
    DEPLOYMENTS,
    PODS,
    STATEFUL_SETS,
    Object,
    Resource,
)
from zhongjing.backends.kubernetes.workloads import COMPONENT, GROUP, WORKER
from zhongjing.codes.pods import POD_LOST
from zhongjing.config.release import WorkerGroup
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.pipeline.state import stamp

RELEASE = release_config(
    WorkerGroup(name="gpu", workload="zj-gpu", cpus=8, gpus=1, memory="8Gi", min_replicas=0, max_replicas=2)
)


class Namespace:
    """The part of the API that says what pods do; one of two workers is on a node that is silent.

    The node controller marks such a node's pods as not ready, and tells it of each in an event (Kubernetes:
    pkg/controller/nodelifecycle and pkg/controller/util/node, ``MarkPodsNotReady``).
    """

    def __init__(self) -> None:
        self.asked = 0

    def find(self, resource: Resource, **selectors: Any) -> Listing:
        self.asked += 1
        if resource == PODS:
            return Listing([worker("a", ready=True), worker("b", ready=False)], "1")
        if resource in (STATEFUL_SETS, DEPLOYMENTS):
            name = "zj-ray-head" if resource == STATEFUL_SETS else "zj-gpu"
            made = {"name": name, "creationTimestamp": stamp(1.7e9)}
            number = {"replicas": 1 if resource == STATEFUL_SETS else 2}
            return Listing([{"metadata": made, "spec": number, "status": number}], "1")
        about = {"kind": "Pod", "name": "b", "uid": "uid-b"}
        event = {
            "reason": "NodeNotReady",
            "message": "Node is not ready",
            "lastTimestamp": stamp(time.time()),
            "metadata": {},
            "involvedObject": about,
        }
        return Listing([event] if resource == CORE_EVENTS else [], "1")


def worker(name: str, *, ready: bool) -> Object:
    labels = {COMPONENT: WORKER, GROUP: "gpu"}
    conditions = [{"type": "Ready", "status": str(ready)}]
    metadata = {"name": name, "uid": f"uid-{name}", "labels": labels, "creationTimestamp": stamp(1.7e9)}
    running = {"name": "ray-worker", "state": {"running": {"startedAt": stamp(1.7e9)}}}
    status = {"phase": "Running", "conditions": conditions, "containerStatuses": [running]}
    return {"metadata": metadata, "spec": {"nodeName": "n", "containers": []}, "status": status}


def test_a_lost_worker_is_seen_from_the_pods_within_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    api, clock = Namespace(), [1000.0]
    backend = ClusterBackend(cast(Any, api), RELEASE)
    jobs = SimpleNamespace(describe=lambda name: JobDescription(submission_id=name, state=JobState.RUNNING))
    monkeypatch.setattr(backend, "_jobs", lambda: jobs)
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    assert not backend.describe("x").lacks, "nobody has asked for workers yet"

    backend.capacity.asked = {"gpu": 2}
    clock[0] += EXPLAIN_SECONDS
    job = backend.describe("x")
    assert job.lacks.startswith("1 of 2 worker pods of group gpu are ready")
    assert "pod/b: its node does not answer" in job.lacks
    assert job.remedy == POD_LOST.remedy
    # Not looked at in every pass of two seconds.
    asked = api.asked
    clock[0] += 2
    assert (backend.describe("x").lacks, api.asked) == (job.lacks, asked)
