"""What memory the workers of a release can have: of a GPU, by the labels of the nodes, and of a pod.

GPU feature discovery labels each node with ``nvidia.com/gpu.memory``: the memory of one of its GPUs, in MiB;
where all GPUs of a node are cut into equal slices (MIG strategy ``single``), of one slice. With the strategy
``mixed`` slices are resources of their own, ``nvidia.com/mig-3g.20gb``, whose labels likewise begin with the
resource's name. Source: NVIDIA/k8s-device-plugin, docs/gpu-feature-discovery/README.md and internal/lm. A
node with GPUs and without the label tells nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.demand import Demand, workers_per_pod
from zhongjing.backends.kubernetes.resources import NODES, Object
from zhongjing.config.quantity import to_bytes
from zhongjing.config.release import ReleaseConfig, WorkerGroup
from zhongjing.config.stages import AnySettings
from zhongjing.errors import ZhongjingError
from zhongjing.planning.hardware import GIB, gpus_of
from zhongjing.planning.stage_plan import Terms

logger = logging.getLogger(__name__)

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
