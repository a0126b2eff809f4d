"""How many worker pods a stage needs, group by group. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from zhongjing.codes.pods import NO_ROOM
from zhongjing.config.quantity import from_bytes, to_bytes
from zhongjing.config.release import WorkerGroup
from zhongjing.config.stages import Resources
from zhongjing.pipeline.backend import ImpossibleJobError

_ROUNDING = 1e-6  # Ray counts resources in ten-thousandths


@dataclass(frozen=True)
class Demand:
    """What a stage asks of the cluster."""

    stage: str
    workers: int
    resources: Resources  # of one worker

    def __str__(self) -> str:
        each = [f"{self.resources.cpus:g} CPUs"]
        if self.resources.gpus:
            each.insert(0, f"{self.resources.gpus} GPU{'s' if self.resources.gpus > 1 else ''}")
        if self.resources.memory is not None:
            each.append(f"{self.resources.memory} of memory")
        return f"{self.workers} worker{'s' if self.workers > 1 else ''} of {', '.join(each)}"


def workers_per_pod(group: WorkerGroup, resources: Resources) -> int:
    """How many workers fit into one pod of the group: what is scarcest decides."""
    fits = [math.floor(group.cpus / resources.cpus + _ROUNDING)]
    if resources.gpus:
        fits.append(group.gpus // resources.gpus)
    if resources.memory is not None:
        fits.append(to_bytes(group.memory) // max(to_bytes(resources.memory), 1))
    return min(fits)


def pods_needed(groups: Sequence[WorkerGroup], demand: Demand) -> dict[str, int]:
    """Pods of each group that the workers take; groups that are not used are left out.

    Groups are filled in the release's order. Workers with a GPU go to groups that have some; workers without
    one go there only when the other groups are full.

    Raises:
        ImpossibleJobError: the release can never hold them all; says how many it can, and what to change.
    """
    gpu = demand.resources.gpus > 0
    candidates = [group for group in groups if bool(group.gpus) is gpu]
    if not gpu:
        candidates += [group for group in groups if group.gpus]
    needed: dict[str, int] = {}
    left = demand.workers
    for group in candidates:
        each = workers_per_pod(group, demand.resources)
        pods = min(math.ceil(left / each), group.max_replicas) if each else 0
        if pods:
            needed[group.name] = pods
            left -= min(left, pods * each)
    if left:
        raise _no_room(candidates, demand, demand.workers - left)
    return needed


def _no_room(candidates: Sequence[WorkerGroup], demand: Demand, held: int) -> ImpossibleJobError:
    fitting = [group for group in candidates if workers_per_pod(group, demand.resources)]
    field = f"spec.stages.{demand.stage}"
    if not candidates:
        kind = " with gpus" if demand.resources.gpus else ""
        message = f"{demand} are asked for, and the release has no worker group{kind}"
        where = f"{field}.resources.gpus" if demand.resources.gpus else field
        remedy = f"add a group{kind} to workers.groups of the chart's values"
        if demand.resources.gpus:
            remedy += f", or set {field}.resources.gpus: 0"
    elif not fitting:
        sizes = "; ".join(f"a pod of {group.name} has {_size(group)}" for group in candidates)
        message, where = f"not one worker fits into a pod: {demand} are asked for, {sizes}", field
        remedy = f"lower {field}.resources, or enlarge the pods (workers.groups of the chart's values)"
    else:
        group = fitting[-1]
        each = workers_per_pod(group, demand.resources)
        more = group.max_replicas + math.ceil((demand.workers - held) / each)
        holds = "; ".join(
            f"group {group.name}: {group.max_replicas} x {workers_per_pod(group, demand.resources)}"
            for group in fitting
        )
        message = f"{demand} are asked for, and the release holds {held} at most ({holds})"
        where = f"{field}.workers"
        remedy = f"raise workers.groups.{group.name}.maxReplicas of the chart's values to {more}"
        if held:
            remedy += f", or set {field}.workers to at most {held}"
    return ImpossibleJobError(message, code=NO_ROOM, where=where, remedy=remedy)


def _size(group: WorkerGroup) -> str:
    gpus = f"{group.gpus} GPUs, " if group.gpus else ""
    return f"{gpus}{group.cpus:g} CPUs and {from_bytes(to_bytes(group.memory))} of memory"
