"""What a stage asks of a release: worker pods, group by group, and the memory that its workers can have."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import NODES, Object
from zhongjing.codes.pods import NO_ROOM
from zhongjing.config.quantity import from_bytes, to_bytes
from zhongjing.config.release import ReleaseConfig, WorkerGroup
from zhongjing.config.stages import AnySettings, Resources
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.backend import ImpossibleJobError
from zhongjing.planning.hardware import GIB, gpus_of
from zhongjing.planning.stage_plan import Terms

logger = logging.getLogger(__name__)

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


# Memory: GPU feature discovery labels each node with `nvidia.com/gpu.memory`, the memory of one of its GPUs
# in MiB; where all GPUs of a node are cut into equal slices (MIG strategy `single`), of one slice. With the
# strategy `mixed` slices are resources of their own, `nvidia.com/mig-3g.20gb`, whose labels likewise begin
# with the resource's name. Source: NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery/README.md and
# internal/lm. A node with GPUs and without the label tells nothing.

REMEMBER_SECONDS = 60.0  # nodes come and go


class WorkerMemory:
    """Memory of the workers of a release, as far as it is known.

    Args:
        api: the cluster. Who may not list its nodes knows nothing of their GPUs.
        clock: seconds, of any origin.
    """

    def __init__(
        self, api: KubeApi, release: ReleaseConfig, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._groups = release.ray.groups
        self._clock = clock
        self._known: dict[str, tuple[float, int | None]] = {}

    def terms(self, settings: AnySettings) -> Terms:
        """The most that a worker of a stage can have in any group that takes it.

        Nothing is known where one group's is not. Workers without a GPU share the memory of their pod.
        """
        gpu = settings.resources.gpus > 0
        demand = Demand("", settings.workers, settings.resources)
        fitting = [
            (group, each)
            for group in self._groups
            if (group.gpus or not gpu) and (each := workers_per_pod(group, demand.resources))
        ]
        if not gpu:
            shares = [to_bytes(group.memory) // min(each, settings.workers) for group, each in fitting]
            return Terms(host=max(shares, default=None))
        sizes = [self._gpu_memory(group) for group, _ in fitting]
        known = [size for size in sizes if size is not None]
        if not known or len(known) < len(sizes):
            return Terms()
        return Terms(gpus=gpus_of(settings.workers, max(known)))

    def _gpu_memory(self, group: WorkerGroup) -> int | None:
        """Bytes of the largest GPU that a pod of the group may land on."""
        if group.gpu_memory_gib is not None:
            return round(group.gpu_memory_gib * GIB)
        now = self._clock()
        at, size = self._known.get(group.name, (float("-inf"), None))
        if now - at >= REMEMBER_SECONDS:
            size = self._ask(group)
            self._known[group.name] = (now, size)
        return size

    def _ask(self, group: WorkerGroup) -> int | None:
        selector = ",".join(f"{key}={value}" for key, value in sorted(group.node_selector.items()))
        try:
            nodes = self._api.find(NODES, labels=selector or None).items
        except ZhongjingError as error:
            logger.info("the memory of GPUs is not known, nodes cannot be listed: %s", error.message)
            return None
        labels = [_label(node, group.gpu_resource) for node in nodes if _has(node, group.gpu_resource)]
        known = [size for size in labels if size is not None]
        return max(known) * 2**20 if known and len(known) == len(labels) else None


def _has(node: Object, resource: str) -> bool:
    return str(((node.get("status") or {}).get("capacity") or {}).get(resource, "0")) != "0"


def _label(node: Object, resource: str) -> int | None:
    """MiB of one GPU, as the node's label says."""
    text = str((node["metadata"].get("labels") or {}).get(f"{resource}.memory") or "")
    return int(text) if text.isdecimal() and int(text) > 0 else None
