"""Worker pods that the next attempt must not use: those that an attempt hung in, and those that hold remains.

A process that hangs in a GPU or network driver may outlive its Ray worker: Ray sends SIGKILL and forgets it.
That cannot be seen from outside, and the next attempt would find the GPU taken, or hang as well. So after an
attempt that hung and had to be ended by force all worker pods are replaced (:class:`Hangs`). What is noted
stands on the workloads, so that a restart of the controller in between loses nothing::

    training.zhongjing.dev/hung    <submission id>, and " killed" after it once the job was ended by force

Remains are found through Ray's dashboard (:class:`Leftovers`):

- Processes of an attempt that is over, as far as Ray knows them. It ends the workers of a job that it stops,
  also those that do not heed it (SIGKILL after five seconds), and the next attempt should not begin beside
  them. After a job that ended in order nothing is left, and no node is asked: the next stage starts at once.
- Pods whose Ray node has died or is frozen (SIGSTOP), perhaps with processes in them that wake up later and
  write. On one machine such processes can be killed; in a pod only its end is certain.
- Nodes of a head that is gone. They serve it for a minute before they give up, and count as ready all the
  while. With Ray's state in a Redis they join the new head instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.workloads import (
    GROUP,
    Workload,
    end_pod,
    is_ready,
    label,
    read_workloads,
    write,
)
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.state import seconds

HUNG = f"{API_GROUP}/hung"
END_SECONDS = 5  # so long the processes of a pod that is replaced have to end
PATIENCE_SECONDS = 20.0  # for processes that are ending
REJOIN_SECONDS = 15.0  # with its state in a Redis, a new head has its nodes within seconds
SILENT_SECONDS = 90.0  # Ray finds out within 50 s that a node has died
JOINING_SECONDS = 60.0  # a pod that has run so long and is no node of Ray will not become one

# What Ray itself runs beside the workers of jobs.
_RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::PlacementGroupCleaner")
_KILLED = " killed"
_DISORDERLY = ("FAILED", "STOPPED")


class Hangs:
    """Remembers attempts that hung, and replaces their pods."""

    def __init__(self, api: KubeApi, release: ReleaseConfig) -> None:
        self._api = api
        self._release = release

    def note(self, submission_id: str) -> None:
        """Says that an attempt hangs."""
        for workload in self._workloads():
            if not _noted(workload).startswith(submission_id):
                write(self._api, workload, annotations={HUNG: submission_id})

    def killed(self, submission_id: str) -> None:
        """Says that an attempt was ended by force; means nothing for one that did not hang."""
        for workload in self._workloads():
            if _noted(workload) == submission_id:
                write(self._api, workload, annotations={HUNG: submission_id + _KILLED})

    def clear(self, workers: Sequence[Object]) -> list[Object]:
        """Replaces the pods that an attempt hung in; returns them."""
        ended: list[Object] = []
        for workload in self._workloads():
            noted = _noted(workload)
            if noted.endswith(_KILLED):
                pods = [pod for pod in workers if label(pod, GROUP) in workload.groups]
                ended += [pod for pod in pods if end_pod(self._api, pod, END_SECONDS)]
            if noted:
                # Only now: broken off before, it would be done again.
                write(self._api, workload, annotations={HUNG: None})
        return ended

    def _workloads(self) -> list[Workload]:
        return read_workloads(self._api, self._release)


def _noted(workload: Workload) -> str:
    return workload.annotations.get(HUNG, "")


class Leftovers:
    """Finds worker pods that the next attempt should not use; asks Ray's dashboard.

    Args:
        query: :meth:`RayJobsBackend.query`.
        now: a clock in seconds.
    """

    def __init__(self, query: Callable[[str], Any], now: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._now = now
        self._stuck_since: float | None = None
        self._silent_since: float | None = None

    def look(self, head: Object, workers: Sequence[Object], wall: float) -> tuple[list[Object], list[Object]]:
        """Looks for what is left of earlier attempts; ``wall`` is in seconds since the epoch.

        Returns:
            Pods that may yet come right by themselves, and pods to replace.
        """
        born = started(head)
        older = [pod for pod in workers if is_ready(pod) and started(pod) < born]
        disorder = ended_badly(self._query("/api/jobs/"))
        if not older and not disorder:
            self._stuck_since = self._silent_since = None
            return [], []
        nodes = self._nodes()
        left = [pod for pod in older if _address(pod) not in nodes]
        coming, going = (left, []) if wall - born < REJOIN_SECONDS else ([], left)
        rest = [pod for pod in workers if disorder and pod not in left]
        stuck = [pod for pod in rest if self._is_stuck(pod, nodes.get(_address(pod)), wall)]
        if disorder and self._is_silent():
            coming = coming + [pod for pod in workers if _address(pod) in nodes and pod not in stuck]
        self._stuck_since = self._since(self._stuck_since) if stuck else None
        if self._stuck_since is not None and self._now() - self._stuck_since >= PATIENCE_SECONDS:
            return coming, going + stuck
        return coming + stuck, going

    def tasks_on_workers(self) -> bool:
        """Whether tasks of any job run on worker nodes now."""
        path = "/api/v0/tasks?detail=1&filter_keys=state&filter_predicates=%3D&filter_values=RUNNING"
        tasks = self._state(path)["result"]
        nodes = set(self._nodes().values()) if tasks else set()
        return any(task.get("node_id") in nodes for task in tasks)

    def _nodes(self) -> dict[str, str]:
        """Ids of the nodes that Ray has, the head aside, by their addresses."""
        # The list of the state API, not of the dashboard: that one may lag behind by minutes.
        listed = self._state("/api/v0/nodes?limit=10000")["result"]
        return {
            node["node_ip"]: node["node_id"]
            for node in listed
            if node.get("state") == "ALIVE" and not node.get("is_head_node")
        }

    def _state(self, path: str) -> Object:
        """What Ray's state API answers: ``result`` is a list.

        Raises:
            BackendError: Ray does not answer, refuses, or has nothing to say, as while it starts.
        """
        answer = self._query(path)
        try:
            state: Object = answer["data"]["result"]
            if isinstance(state["result"], list):
                return state
        except (LookupError, TypeError):
            pass
        raise BackendUnavailableError("Ray says nothing of its state yet", code=RAY_UNREACHABLE, where=path)

    def _since(self, before: float | None) -> float:
        return before if before is not None else self._now()

    def _is_silent(self) -> bool:
        """Whether some node does not answer. Ray does not say which until it knows that the node is dead."""
        answer = self._state("/api/v0/objects?limit=1&timeout=3")
        silent = bool(answer.get("partial_failure_warning"))
        self._silent_since = self._since(self._silent_since) if silent else None
        return self._silent_since is not None and self._now() - self._silent_since < SILENT_SECONDS

    def _is_stuck(self, pod: Object, node: str | None, wall: float) -> bool:
        """Whether a pod has processes of the last attempt, or is no node though it had time to become one."""
        if node is None:
            return fell_silent(pod) or (is_ready(pod) and wall - started(pod) > JOINING_SECONDS)
        detail = (self._query(f"/nodes/{node}").get("data") or {}).get("detail") or {}
        return holds_workers(detail.get("workers") or [])


def ended_badly(jobs: Iterable[Object]) -> bool:
    """Whether no job is alive, and the last one that ended did not end in order."""
    listed = [job for job in jobs if job.get("submission_id")]
    if any(job.get("status") in ("PENDING", "RUNNING") for job in listed):
        return False
    last = max(listed, key=lambda job: job.get("end_time") or 0, default=None)
    return last is not None and last.get("status") in _DISORDERLY


def holds_workers(processes: Iterable[Object]) -> bool:
    """Whether there are Ray workers that are not idle, among the processes of a node."""
    titles = [str((process.get("cmdline") or [""])[0]) for process in processes]
    return any(title.startswith("ray::") and not title.startswith(_RAYS_OWN) for title in titles)


def started(pod: Object) -> float:
    """When the Ray container of a pod started, seconds since the epoch; 0 where it does not run."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    ours = [each for each in statuses if str(each.get("name", "")).startswith("ray")] or statuses
    running = [(each.get("state") or {}).get("running") for each in ours]
    return max((seconds(each["startedAt"]) for each in running if each), default=0.0)


def fell_silent(pod: Object) -> bool:
    """Whether a pod served and does not any more, though its Ray container still runs."""
    born = started(pod)
    if not born or pod["metadata"].get("deletionTimestamp"):
        return False
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition["type"] == "Ready" and condition["status"] != "True":
            # One that never served is unready since before its container began.
            return seconds(condition["lastTransitionTime"]) > born
    return False


def never_ran(pod: Object) -> bool:
    """Whether no container of a pod runs, nor can have been left running on a node that is cut off."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return all("running" not in (each.get("state") or {}) for each in statuses)


def _address(pod: Object) -> str:
    return str((pod.get("status") or {}).get("podIP") or "")
