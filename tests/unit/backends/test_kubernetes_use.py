"""Whether somebody uses the workers of a release: then idle pods stay."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.releases import release_config
from zhongjing.backends.kubernetes.api import Listing
from zhongjing.backends.kubernetes.ray_backend import ClusterBackend
from zhongjing.backends.kubernetes.resources import PODS, Resource
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.errors import BackendUnavailableError

OURS, THEIRS = (
    {"submission_id": "ours", "status": "RUNNING"},
    {"submission_id": "theirs", "status": "PENDING"},
)
BY_HAND = {"submission_id": None, "type": "DRIVER", "status": "RUNNING"}
ENDED = {"submission_id": "ended", "status": "SUCCEEDED"}


class Jobs:
    """Ray's dashboard."""

    def __init__(self, jobs: list[dict[str, Any]], *tasks: str) -> None:
        self.answers: dict[str, Any] = {
            "jobs": jobs,
            "tasks": _result([{"node_id": node} for node in tasks]),
            "nodes": _result([{"node_ip": "w", "node_id": "worker", "state": "ALIVE"}]),
        }

    def query(self, path: str) -> Any:
        kind = path.removeprefix("/api/").removeprefix("v0/").rstrip("/").partition("?")[0]
        if kind not in self.answers:
            raise BackendUnavailableError("no answer", code=RAY_UNREACHABLE)
        return self.answers[kind]


class Head:
    """The API of a namespace with a head that runs."""

    def find(self, resource: Resource, **options: Any) -> Listing:
        if resource != PODS:
            return Listing([], "1")
        labels = {"app.kubernetes.io/component": "ray-head"}
        status: dict[str, Any] = {"containerStatuses": [{"state": {"running": {}}}]}
        return Listing([{"metadata": {"name": "head", "labels": labels}, "status": status}], "1")


def _result(listed: list[dict[str, Any]]) -> dict[str, Any]:
    return {"data": {"result": {"result": listed}}}


def in_use(jobs: Jobs, preparing: str | None, monkeypatch: pytest.MonkeyPatch) -> bool:
    release = release_config()
    backend = ClusterBackend(cast(Any, Head()), release)
    monkeypatch.setattr(backend, "_jobs", lambda: cast(RayJobsBackend, jobs))
    return backend._is_in_use(preparing)


@pytest.mark.parametrize(
    ("jobs", "preparing", "used"),
    [
        (Jobs([]), None, False),
        (Jobs([ENDED]), None, False),
        (Jobs([OURS]), None, True),
        (Jobs([BY_HAND]), None, True),
        (Jobs([OURS, ENDED]), "ours", False),  # its driver prepares on the head
        (Jobs([OURS], "head"), "ours", False),
        (Jobs([OURS], "head", "worker"), "ours", True),  # ... and has workers help
        (Jobs([OURS, THEIRS]), "ours", True),
        (Jobs([OURS, BY_HAND]), "ours", True),
        (Jobs([]), "ours", False),  # not submitted yet
    ],
)
def test_who_uses_workers(
    jobs: Jobs, preparing: str | None, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert in_use(jobs, preparing, monkeypatch) is used


@pytest.mark.parametrize("kind", ["jobs", "tasks"])
def test_where_nobody_can_tell_they_are_in_use(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = Jobs([OURS])
    del jobs.answers[kind]
    assert in_use(jobs, "ours", monkeypatch)
