"""Worker pods for the stage that shall run, and none for long when no stage does.

A submission asks for room. Worker groups are scaled up to what the stage takes; the job is submitted when so
many worker pods are Ready, because Ray would otherwise hold it in a queue that says nothing. When nothing has
run for ``idleSeconds`` the groups go back to ``minReplicas``. Pods that only a smaller stage leaves over stay
until then: a StatefulSet would take away its last pods, whatever runs in them.

What is remembered stands on the workloads, so that a restart of the controller changes nothing::

    training.zhongjing.dev/idle-since   since when no stage has run; removed when one asks for room
    training.zhongjing.dev/scaled-by    the controller that sets the replicas

A group that no controller has scaled yet (fresh from ``helm install``, which names no replicas) is set to
``minReplicas`` at first sight. While nothing changes nothing is written.

Needs of the API: list and patch on ``statefulsets`` or get and patch on ``rayclusters``, list on ``pods``,
and what :mod:`zhongjing.backends.kubernetes.explain` reads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.demand import Demand, pods_needed
from zhongjing.backends.kubernetes.resources import PODS, Object
from zhongjing.backends.kubernetes.workloads import (
    GROUP,
    HEAD,
    WORKER,
    Workload,
    is_ready,
    label,
    of_component,
    pod_labels,
    read_workloads,
    write,
)
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig
from zhongjing.pipeline.state import seconds, stamp

logger = logging.getLogger(__name__)

IDLE_SINCE = f"{API_GROUP}/idle-since"
SCALED_BY = f"{API_GROUP}/scaled-by"


@dataclass(frozen=True)
class Room:
    """Whether a stage finds its workers now.

    Attributes:
        ready: whether its job may be submitted.
        needed: worker pods that it takes, by group.
        message: why not, one sentence.
        pods: the Ray pods, as they were just seen.
    """

    ready: bool
    needed: Mapping[str, int]
    message: str = ""
    pods: Sequence[Object] = field(default=(), repr=False)


class Capacity:
    """Sets the number of worker pods of a release.

    Args:
        api: the cluster.
        release: the release.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        api: KubeApi,
        release: ReleaseConfig,
        *,
        clock: Callable[[], float] = time.time,
        in_use: Callable[[], bool] = lambda: False,
    ) -> None:
        self._in_use = in_use
        self._api = api
        self._release = release
        self._clock = clock
        self._groups = {group.name: group for group in release.ray.groups}

    def room_for(self, demand: Demand) -> Room:
        """Asks for the worker pods of a stage, and says whether they are there.

        Raises:
            ImpossibleJobError: the release can never hold the stage's workers.
            BackendError: the API does not answer or refuses.
        """
        needed = pods_needed(self._release.ray.groups, demand)
        missing: list[str] = []
        if self._release.ray.scaling == "controller":
            missing = self._scale_up(needed)
        pods = self._api.find(PODS, labels=pod_labels(self._release, HEAD, WORKER)).items
        lacking = [f"there is no workload of the worker group {group}" for group in missing]
        if not any(is_ready(pod) for pod in of_component(pods, HEAD)):
            lacking.append("the Ray head is not ready")
        if self._release.ray.scaling != "ray":
            lacking += _short(needed, of_component(pods, WORKER))
        return Room(not lacking, needed, "; ".join(lacking), pods)

    def rest(self) -> None:
        """Says that no stage runs or wants to: what is idle for long enough goes.

        Raises:
            BackendError: the API does not answer or refuses.
        """
        if self._release.ray.scaling != "controller":
            return
        now = self._clock()
        for workload in read_workloads(self._api, self._release):
            self._rest(workload, now)

    def _scale_up(self, needed: Mapping[str, int]) -> list[str]:
        """Sees to the pods; returns groups that have no workload."""
        missing = set(needed)
        for workload in read_workloads(self._api, self._release):
            missing -= set(workload.groups)
            ours = SCALED_BY in workload.annotations
            wanted: dict[str, int] = {}
            for group, replicas in workload.replicas.items():
                floor = max(self._groups[group].min_replicas, needed.get(group, 0))
                wanted[group] = max(replicas, floor) if ours else floor
            annotations: dict[str, str | None] = {} if ours else {SCALED_BY: self._name}
            if IDLE_SINCE in workload.annotations:
                annotations[IDLE_SINCE] = None
            self._set(workload, wanted, annotations)
        return sorted(missing)

    def _rest(self, workload: Workload, now: float) -> None:
        floor = {group: self._groups[group].min_replicas for group in workload.groups}
        if SCALED_BY not in workload.annotations:
            self._set(workload, floor, {SCALED_BY: self._name})
            return
        surplus = any(number > floor[group] for group, number in workload.replicas.items())
        # Values may have raised the floor since.
        raised = {group: max(number, floor[group]) for group, number in workload.replicas.items()}
        since = workload.annotations.get(IDLE_SINCE)
        if not surplus:
            self._set(workload, raised, {IDLE_SINCE: None} if since is not None else {})
            return
        idle = now - _time(since) if since is not None else -1.0
        if idle < 0:  # first seen idle, or the clock was set back
            self._set(workload, raised, {IDLE_SINCE: stamp(now)})
        elif idle >= self._release.ray.idle_seconds:
            if self._in_use():
                self._set(workload, raised, {IDLE_SINCE: stamp(now)})
            else:
                self._set(workload, floor, {IDLE_SINCE: None})

    def _set(
        self, workload: Workload, wanted: Mapping[str, int], annotations: Mapping[str, str | None]
    ) -> None:
        current = workload.replicas
        changed = {group: number for group, number in wanted.items() if number != current[group]}
        for group, number in changed.items():
            logger.info("worker group %s: %d pods instead of %d", group, number, current[group])
        write(self._api, workload, replicas=changed, annotations=annotations)

    @property
    def _name(self) -> str:
        return f"{self._release.fullname}-controller"


def _short(needed: Mapping[str, int], workers: Sequence[Object]) -> list[str]:
    lacking = []
    for group, number in needed.items():
        ready = sum(is_ready(pod) for pod in workers if label(pod, GROUP) == group)
        if ready < number:
            lacking.append(f"{ready} of {number} worker pods of group {group} are ready")
    return lacking


def _time(text: str) -> float:
    """A stamp that anybody may have edited; what cannot be read counts as now."""
    try:
        return seconds(text)
    except ValueError:
        return float("inf")
