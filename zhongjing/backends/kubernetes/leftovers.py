"""Processes of an attempt that is over, in worker pods: they are seen through Ray's dashboard.

Ray ends the workers of a job that is stopped, also those that do not heed it (SIGKILL after five seconds).
What is left after that is stuck in a driver, or its node is: the next attempt must not share GPUs with it,
and it must never wake up and write. On one machine such processes can be killed; in a pod only its end is
certain.

Ray's agents look at processes every five seconds, so a list may be as old as that. After a job that ended in
order nothing is left, and nothing is asked for: the next stage starts at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.workloads import is_ready
from zhongjing.pipeline.state import seconds

PATIENCE_SECONDS = 20.0
JOINING_SECONDS = 60.0  # a pod that has run so long and is no node of Ray will not become one

# What Ray itself runs beside the workers of jobs.
_RAYS_OWN = ("ray::IDLE", "ray::DashboardAgent", "ray::RuntimeEnvAgent")
_DISORDERLY = ("FAILED", "STOPPED")


class Leftovers:
    """Finds worker pods that the next attempt should not use.

    Args:
        query: asks Ray's dashboard, :meth:`RayJobsBackend.query`.
        now: a clock in seconds.
    """

    def __init__(self, query: Callable[[str], Any], now: Callable[[], float] = time.monotonic) -> None:
        self._query = query
        self._now = now
        self._since: float | None = None

    def look(self, workers: Sequence[Object], wall: float) -> tuple[list[Object], bool]:
        """Looks for what is left of the last attempt.

        Args:
            workers: the worker pods.
            wall: seconds since the epoch.

        Returns:
            Pods that hold such processes or that Ray has lost, and whether they have had time enough to end.

        Raises:
            BackendError: Ray does not answer, or refuses.
        """
        pods = self._holding(workers, wall) if ended_badly(self._query("/api/jobs/")) else []
        if not pods:
            self._since = None
            return [], False
        if self._since is None:
            self._since = self._now()
        return pods, self._now() - self._since >= PATIENCE_SECONDS

    def _holding(self, workers: Sequence[Object], wall: float) -> list[Object]:
        summary = self._query("/nodes?view=summary")["data"]["summary"]
        alive = {
            node["raylet"]["nodeManagerAddress"]: node["raylet"]["nodeId"]
            for node in summary
            if node.get("raylet", {}).get("state") == "ALIVE" and not node["raylet"].get("isHeadNode")
        }
        pods = []
        for pod in workers:
            node = alive.get((pod.get("status") or {}).get("podIP"))
            if node is None:
                lost = is_ready(pod) and wall - started(pod) > JOINING_SECONDS
            else:
                lost = holds_workers(self._query(f"/nodes/{node}")["data"]["detail"].get("workers") or [])
            if lost:
                pods.append(pod)
        return pods


def ended_badly(jobs: Iterable[Object]) -> bool:
    """Whether no job is alive, and the last one that ended did not end in order."""
    listed = [job for job in jobs if job.get("submission_id")]
    if any(job.get("status") in ("PENDING", "RUNNING") for job in listed):
        return False
    last = max(listed, key=lambda job: job.get("end_time") or 0, default=None)
    return last is not None and last.get("status") in _DISORDERLY


def holds_workers(processes: Iterable[Object]) -> bool:
    """Whether there are Ray workers that are not idle, among the processes of a node."""
    for process in processes:
        words = process.get("cmdline") or [""]
        if str(words[0]).startswith("ray::") and not str(words[0]).startswith(_RAYS_OWN):
            return True
    return False


def started(pod: Object) -> float:
    """When the last container of a pod started, seconds since the epoch; 0 where none runs."""
    times = [
        seconds(each["state"]["running"]["startedAt"])
        for each in (pod.get("status") or {}).get("containerStatuses") or []
        if (each.get("state") or {}).get("running")
    ]
    return max(times, default=0.0)
