"""The backend of a release whose Ray does not answer, by the pods that there are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes.api import Listing
from zhongjing.backends.kubernetes.ray_backend import ClusterBackend
from zhongjing.backends.kubernetes.resources import (
    DEPLOYMENTS,
    PODS,
    SECRETS,
    STATEFUL_SETS,
    Object,
    Resource,
)
from zhongjing.backends.local.processes import free_ports
from zhongjing.codes.cluster import API_UNREACHABLE
from zhongjing.codes.pods import NO_FITTING_NODE
from zhongjing.config.release import WorkerGroup
from zhongjing.config.stages import Resources, Stage
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.backend import JobRequest, JobState

RUNS: Object = {"phase": "Running", "containerStatuses": [{"name": "ray", "state": {"running": {}}}]}
NEVER = (
    "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector. preemption: 0/1 nodes are "
    "available: 1 Preemption is not helpful for scheduling."
)
PENDING: Object = {
    "phase": "Pending",
    "conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": NEVER}],
}
JOB = JobRequest(
    submission_id="demo-0123abcd-sft-a1",
    stage=Stage.SFT,
    request_uri="s3://b/r.json",
    metadata={},
    workers=2,
    resources=Resources(cpus=1.0),
)


def pod(component: str, status: Object, **metadata: Any) -> Object:
    labels = {"app.kubernetes.io/component": component, "training.zhongjing.dev/group": "cpu"}
    marks = {"name": f"zj-{component}-0", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z"}
    return {"metadata": {**marks, "labels": labels, **metadata}, "spec": {}, "status": status}


class Api:
    """What a namespace has, and the replicas that are asked for."""

    def __init__(self, *pods: Object) -> None:
        self.pods = list(pods)
        self.asked: list[int] = []
        self.error: BackendUnavailableError | None = None
        self.replicas = 0

    def get(self, resource: Resource, name: str) -> Object | None:
        return {"data": {"auth_token": "dA=="}} if resource == SECRETS else None

    def find(self, resource: Resource, **selectors: Any) -> Listing:
        if self.error is not None:
            raise self.error
        if resource == PODS:
            return Listing(self.pods, "1")
        there = {STATEFUL_SETS: ("zj-ray-head", 1), DEPLOYMENTS: ("zj-ray-cpu", self.replicas)}
        if resource not in there:
            return Listing([], "1")
        name, number = there[resource]
        metadata = {"name": name, "creationTimestamp": "2026-01-01T00:00:00Z"}
        spec, status = {"replicas": number}, {"replicas": number}
        return Listing([{"metadata": metadata, "spec": spec, "status": status}], "1")

    def patch(self, resource: Resource, name: str, patch: Mapping[str, Any], **options: Any) -> None:
        self.replicas = patch["spec"]["replicas"]
        self.asked.append(self.replicas)


@pytest.fixture
def backend() -> ClusterBackend:
    (port,) = free_ports(1)
    group = {"name": "cpu", "workload": "zj-ray-cpu", "cpus": 1, "gpus": 0, "memory": "4Gi"}
    release = release_config(WorkerGroup.model_validate({**group, "min_replicas": 0, "max_replicas": 4}))
    # Nobody listens there.
    return ClusterBackend(cast(Any, Api()), release, address=f"http://127.0.0.1:{port}")


def on(backend: ClusterBackend, *pods: Object) -> Api:
    api = cast(Api, backend._api)
    api.pods = list(pods)
    return api


@pytest.mark.parametrize(
    ("pods", "lost"),
    [
        ([], True),
        ([pod("ray-head", PENDING)], True),
        ([pod("ray-head", PENDING), pod("ray-worker", PENDING)], True),
        ([pod("ray-head", PENDING), pod("ray-worker", RUNS)], False),  # of the head that was there before
    ],
    ids=["none", "pending", "both-pending", "worker-left"],
)
def test_without_a_head_no_job_is_known_and_none_is_listed(
    backend: ClusterBackend, pods: list[Object], lost: bool
) -> None:
    on(backend, *pods)
    job = backend.describe("demo-0123abcd-sft-a1")
    assert (job.state, job.lost) == (JobState.UNKNOWN, lost)
    assert backend.jobs() == []
    assert backend._is_in_use() is False
    backend.stop("demo-0123abcd-sft-a1")


@pytest.mark.parametrize(
    "head",
    [pod("ray-head", RUNS), pod("ray-head", PENDING, deletionTimestamp="2026-01-01T00:00:00Z")],
    ids=["running", "ending"],
)
def test_of_a_head_that_may_run_nothing_is_concluded(backend: ClusterBackend, head: Object) -> None:
    on(backend, head)
    for ask in (lambda: backend.describe("x"), backend.jobs, lambda: backend.stop("x")):
        with pytest.raises(BackendUnavailableError, match=r"Ray does not answer: .*; pod/zj-ray-head-0: "):
            ask()
    assert backend._is_in_use()


def test_where_pods_cannot_be_seen_nothing_is_concluded(backend: ClusterBackend) -> None:
    on(backend).error = BackendUnavailableError("no answer", code=API_UNREACHABLE)
    for ask in (lambda: backend.describe("x"), backend.jobs):
        with pytest.raises(BackendUnavailableError, match="Ray does not answer"):
            ask()


def test_a_head_that_is_missing_is_explained_and_workers_are_asked_for_once(backend: ClusterBackend) -> None:
    api = on(backend, pod("ray-head", PENDING))
    for _ in range(3):
        with pytest.raises(BackendUnavailableError) as missing:
            backend.submit(JOB)
        assert missing.value.code is NO_FITTING_NODE
        assert "the Ray head is not ready; pod/zj-ray-head-0: no node of the cluster can ever" in str(
            missing.value
        )
    assert api.asked == [2]
    # Idle for too long they are given back, and not asked for again before there is a head.
    api.replicas = 0
    with pytest.raises(BackendUnavailableError):
        backend.submit(JOB)
    assert api.asked == [2]
