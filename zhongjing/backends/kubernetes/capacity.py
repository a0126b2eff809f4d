"""Worker pods for the stage that trains, and none for long when none does.

A job is submitted as soon as the head is there: it prepares on the head, and holds no worker meanwhile. Once
it is prepared, or while there is no head, so that nodes for both are made at the same time, its workers are
asked for: groups are scaled up to what the stage takes. When pods were not used for ``idleSeconds``, because
nothing runs or a stage prepares for so long, groups go back to ``minReplicas``. Pods that a smaller stage
does not need stay until then: a Deployment that shrinks may end any of its pods, whatever runs in it.

What is remembered stands on the workloads, so that a restart of the controller changes nothing::

    training.zhongjing.dev/idle-since   since when no stage has run; removed when one needs workers
    training.zhongjing.dev/replicas     pods by group, as the controller set them last

While a stage runs, groups that were made smaller (``kubectl scale``, an edit, an applied manifest) get their
pods back. The workloads themselves are made by :mod:`zhongjing.backends.kubernetes.provision`, with
``minReplicas`` pods. While nothing changes nothing is written.

Needs of the API: those of ``provision``, patch on what it makes, list on ``pods``, and what
:mod:`zhongjing.backends.kubernetes.diagnosis` reads.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.demand import Demand, pods_needed
from zhongjing.backends.kubernetes.provision import provision
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
    write,
)
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig
from zhongjing.pipeline.state import seconds, stamp

logger = logging.getLogger(__name__)

IDLE_SINCE = f"{API_GROUP}/idle-since"
REPLICAS = f"{API_GROUP}/replicas"


@dataclass(frozen=True)
class Availability:
    """Whether a stage finds now what it needs."""

    ready: bool  # whether it may go on
    needed: Mapping[str, int]  # worker pods that it takes, by group
    message: str = ""  # why not, one sentence
    pods: Sequence[Object] = field(default=(), repr=False)  # the Ray pods, as they were just seen


class Capacity:
    """Sets the number of worker pods of a release.

    Args:
        clock: seconds since the epoch.
        in_use: whether anybody uses workers, apart from the driver of the job that prepares (its id).
    """

    def __init__(
        self,
        api: KubeApi,
        release: ReleaseConfig,
        *,
        clock: Callable[[], float] = time.time,
        in_use: Callable[[str | None], bool] = lambda preparing: False,
    ) -> None:
        self._in_use = in_use
        self._api = api
        self._release = release
        self._clock = clock
        self._called: str | None = None  # the job that workers were asked for while there was no head
        self.asked: dict[str, int] = {}
        """Worker pods that groups were last seen or told to have; a deleted workload is made with them."""
        self._groups = {group.name: group for group in release.ray.groups}

    def ensure_workers(self, demand: Demand) -> Availability:
        """Asks for the worker pods of a stage, and says whether they are there.

        Raises:
            ImpossibleJobError: the release can never hold the stage's workers.
        """
        return self._ensure(demand)

    def ensure_head(self, demand: Demand, job: str) -> Availability:
        """Whether a stage's driver may start: the head is there, and what would make its workers.

        While there is no head the workers are asked for too: once, so that a head that never comes does not
        hold them for longer than ``idleSeconds``.

        Raises:
            ImpossibleJobError: the release can never hold the stage's workers.
        """
        return self._ensure(demand, preparing=job)

    def _ensure(self, demand: Demand, *, preparing: str | None = None) -> Availability:
        needed = pods_needed(self._release.ray.groups, demand)
        missing: list[str] = []
        pods = self._api.find(PODS, labels=pod_labels(self._release, HEAD, WORKER)).items
        has_head = any(is_ready(pod) for pod in of_component(pods, HEAD))
        workers = preparing is None or not (has_head or preparing == self._called)
        if self._release.ray.scaling == "controller":
            workloads = self._workloads()
            missing = sorted(set(needed).difference(*(each.groups for each in workloads)))
            if workers:
                self._scale_up(workloads, needed)
        if not missing:
            self._called = None if has_head else preparing
        lacking = [f"there is no workload of the worker group {group}" for group in missing]
        if not has_head:
            lacking.append("the Ray head is not ready")
        if preparing is None and self._release.ray.scaling != "ray":
            lacking += _short(needed, of_component(pods, WORKER))
        return Availability(not lacking, needed, "; ".join(lacking), pods)

    def short(self) -> str:
        """What is missing of the worker pods that groups were told to have; empty where nothing is."""
        asked = {group: number for group, number in self.asked.items() if number}
        if not asked or self._release.ray.scaling == "ray":
            return ""
        pods = self._api.find(PODS, labels=pod_labels(self._release, WORKER)).items
        return "; ".join(_short(asked, pods))

    def restore(self) -> None:
        """While a stage uses the workloads: asks again for pods that were taken away."""
        for workload in self._workloads():
            taken: dict[str, int] = {}
            if self._release.ray.scaling == "controller":
                for group, number in _set_last(workload).items():
                    if workload.replicas.get(group, number) < number:
                        taken[group] = number
                        logger.warning("worker group %s was made smaller while a stage runs", group)
            # Noted while it prepared: they would be idle for long the moment that it ends.
            self._set(workload, {**workload.replicas, **taken} if taken else {}, _not_idle(workload))

    def scale_down(self, preparing: str | None = None) -> None:
        """While no stage needs workers: removes those that have been idle for long enough.

        Args:
            preparing: id of the job that will, and whose driver is no reason to keep them.
        """
        now = self._clock()
        for workload in self._workloads():
            if self._release.ray.scaling == "controller":
                self._scale_down(workload, now, preparing)

    def _workloads(self) -> list[Workload]:
        first = {name: max(each.min_replicas, self.asked.get(name, 0)) for name, each in self._groups.items()}
        return provision(self._api, self._release, first)

    def _scale_up(self, workloads: Sequence[Workload], needed: Mapping[str, int]) -> None:
        for workload in workloads:
            wanted = {
                group: max(replicas, self._groups[group].min_replicas, needed.get(group, 0))
                for group, replicas in workload.replicas.items()
            }
            self._set(workload, wanted, _not_idle(workload))

    def _scale_down(self, workload: Workload, now: float, preparing: str | None) -> None:
        floor = {group: self._groups[group].min_replicas for group in workload.groups}
        # Values may have raised the floor since.
        raised = {group: max(number, floor[group]) for group, number in workload.replicas.items()}
        since = workload.annotations.get(IDLE_SINCE)
        idle = now - _time(since) if since is not None else -1.0
        over = idle >= self._release.ray.idle_seconds
        if raised == floor:
            self._set(workload, floor, _not_idle(workload))
        elif idle < 0 or (over and self._in_use(preparing)):  # first seen idle, or the clock was set back
            self._set(workload, raised, {IDLE_SINCE: stamp(now)})
        elif over:
            self._set(workload, floor, {IDLE_SINCE: None})

    def _set(
        self, workload: Workload, wanted: Mapping[str, int], annotations: Mapping[str, str | None]
    ) -> None:
        current = workload.replicas
        changed = {group: number for group, number in wanted.items() if number != current[group]}
        self.asked |= {**current, **changed}
        for group, number in changed.items():
            logger.info("worker group %s: %d pods instead of %d", group, number, current[group])
        if wanted and _set_last(workload) != wanted:
            annotations = {**annotations, REPLICAS: json.dumps(wanted, sort_keys=True)}
        write(self._api, workload, replicas=changed, annotations=annotations)


def _short(needed: Mapping[str, int], workers: Sequence[Object]) -> list[str]:
    lacking = []
    for group, number in needed.items():
        ready = sum(is_ready(pod) for pod in workers if label(pod, GROUP) == group)
        if ready < number:
            lacking.append(f"{ready} of {number} worker pods of group {group} are ready")
    return lacking


def _not_idle(workload: Workload) -> dict[str, str | None]:
    return {IDLE_SINCE: None} if IDLE_SINCE in workload.annotations else {}


def _set_last(workload: Workload) -> dict[str, int]:
    """Pods by group, as the controller set them last; none where the annotation is unreadable."""
    try:
        found = json.loads(workload.annotations.get(REPLICAS, "{}"))
        return {str(group): int(number) for group, number in found.items() if str(group) in workload.groups}
    except (ValueError, TypeError, AttributeError):
        return {}


def _time(text: str) -> float:
    """A stamp that anybody may have edited; what cannot be read counts as now."""
    try:
        return seconds(text)
    except ValueError:
        return float("inf")
