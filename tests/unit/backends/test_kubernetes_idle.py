"""Since when workers are idle, over stages that follow each other."""

from __future__ import annotations

from typing import Any, cast

from tests.releases import release_config
from zhongjing.backends.kubernetes.api import Listing
from zhongjing.backends.kubernetes.capacity import IDLE_SINCE, Capacity
from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.resources import DEPLOYMENTS, Object, Resource
from zhongjing.config.release import WorkerGroup
from zhongjing.config.stages import Resources

GROUP = WorkerGroup(
    name="gpu", workload="zj-ray-gpu", cpus=4, gpus=1, memory="8Gi", min_replicas=0, max_replicas=2
)
DEMAND = Demand("sft", 2, Resources(cpus=1, gpus=1))


class Api:
    """A namespace with one Deployment of workers."""

    def __init__(self) -> None:
        self.deployment: Object = {
            "metadata": {"name": "zj-ray-gpu", "annotations": {}},
            "spec": {"replicas": 0},
        }
        self.writes = 0

    def find(self, resource: Resource, **options: Any) -> Listing:
        return Listing([self.deployment] if resource == DEPLOYMENTS else [], "1")

    def patch(self, resource: Resource, name: str, patch: Object, **options: Any) -> Object:
        self.writes += 1
        annotations = self.deployment["metadata"]["annotations"]
        for key, value in patch.get("metadata", {}).get("annotations", {}).items():
            annotations.pop(key, None)
            if value is not None:
                annotations[key] = value
        self.deployment["spec"] |= patch.get("spec", {})
        return self.deployment


def test_workers_that_a_stage_has_used_are_idle_from_its_end_on() -> None:
    """What was noted while it prepared does not count: the next stage's workers would go as it begins."""
    now = [1_800_000_000.0]
    api = Api()
    release = release_config(GROUP, ray={"idle_seconds": 600})
    capacity = Capacity(cast(Any, api), release, clock=lambda: now[0])
    capacity.ensure_workers(DEMAND)
    capacity.scale_down("job")  # a look at all workloads that knew it as preparing still
    assert IDLE_SINCE in api.deployment["metadata"]["annotations"]
    for _ in range(100):
        now[0] += 60
        capacity.restore()
    writes = api.writes
    assert writes <= 3, "while nothing changes nothing is written"
    capacity.scale_down("next")
    assert api.deployment["spec"]["replicas"] == 2, "warm for the next stage"
    now[0] += 599
    capacity.scale_down("next")
    assert api.deployment["spec"]["replicas"] == 2
    now[0] += 2
    capacity.scale_down("next")
    assert api.deployment["spec"]["replicas"] == 0
