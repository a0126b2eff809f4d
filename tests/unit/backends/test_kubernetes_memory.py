"""Memory of GPUs as nodes are labelled by GPU feature discovery, and of workers that share a pod."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import user_document
from zhongjing.backends.kubernetes.demand import REMEMBER_SECONDS, WorkerMemory
from zhongjing.backends.kubernetes.resources import NODES, Object
from zhongjing.codes.cluster import FORBIDDEN
from zhongjing.config.release import WorkerGroup
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import BackendError
from zhongjing.planning.hardware import USABLE

MIB, GIB = 2**20, 2**30


def node(resource: str | None = "nvidia.com/gpu", **labels: str) -> Object:
    capacity = {"cpu": "64"} | ({resource: "8"} if resource else {})
    names = {key.replace("_", "-"): value for key, value in labels.items()}
    return {"metadata": {"labels": names}, "status": {"capacity": capacity}}


def labelled(memory: object, **labels: str) -> Object:
    found = node(**labels)
    found["metadata"]["labels"]["nvidia.com/gpu.memory"] = str(memory)
    return found


class Nodes:
    """An API with nodes only."""

    def __init__(self, *nodes: Object, forbidden: bool = False) -> None:
        self.nodes = nodes
        self.forbidden = forbidden
        self.asked: list[str | None] = []

    def find(self, resource: Any, *, labels: str | None = None) -> Any:
        assert resource is NODES
        self.asked.append(labels)
        if self.forbidden:
            raise BackendError("nodes is forbidden", code=FORBIDDEN)
        wanted = dict(pair.split("=") for pair in labels.split(",")) if labels else {}
        return SimpleNamespace(
            items=[each for each in self.nodes if wanted.items() <= each["metadata"]["labels"].items()]
        )


def group(name: str = "gpu", **fields: Any) -> WorkerGroup:
    given = {"workload": name, "cpus": 32, "gpus": 4, "memory": "480Gi", "min_replicas": 0, "max_replicas": 2}
    return WorkerGroup(name=name, **(given | fields))


def settings(**resources: Any) -> AnySettings:
    user = user_document(stages=("sft",), sft={"workers": 4, "resources": {"cpus": 8, **resources}})
    found = resolve(user).spec.stages.get(Stage.SFT)
    assert found is not None
    return found


def memory_of(api: Nodes, *groups: WorkerGroup, **more: Any) -> WorkerMemory:
    release = SimpleNamespace(ray=SimpleNamespace(groups=groups))
    return WorkerMemory(cast(Any, api), cast(Any, release), **more)


def usable(api: Nodes, *groups: WorkerGroup) -> int | None:
    gpus = memory_of(api, *groups).terms(settings(gpus=1)).gpus
    return gpus.usable if gpus is not None else None


@pytest.mark.parametrize(
    ("nodes", "mib"),
    [
        ([labelled(81920)], 81920),  # A100-SXM4-80GB
        ([labelled(23028), labelled(81559)], 81559),  # it may land on the larger one
        ([labelled(5120, mig_strategy="single")], 5120),
        ([labelled(81920), node(None)], 81920),  # a node without GPUs matters not
        ([labelled(81920), node()], None),  # a GPU of which nothing is said
        ([labelled("24Gi")], None),
        ([labelled(0)], None),
        ([node(None)], None),
        ([], None),  # a pool that is scaled to zero
    ],
)
def test_the_label_of_gpu_feature_discovery(nodes: list[Object], mib: int | None) -> None:
    expected = int(mib * MIB * USABLE) if mib is not None else None
    assert usable(Nodes(*nodes), group()) == expected


def test_only_nodes_that_the_group_can_land_on_count() -> None:
    api = Nodes(labelled(23028, pool="small"), labelled(81920, pool="large"))
    assert usable(api, group(node_selector={"pool": "small"})) == int(23028 * MIB * USABLE)
    assert api.asked == ["pool=small"]


def test_slices_of_a_mixed_node_are_their_own_resource() -> None:
    slices = node("nvidia.com/mig-3g.20gb", **{"nvidia.com/mig-3g.20gb.memory": "19968"})
    slices["metadata"]["labels"] = {
        "nvidia.com/mig-3g.20gb.memory": "19968",
        "nvidia.com/gpu.memory": "40960",
    }
    assert usable(Nodes(slices), group(gpu_resource="nvidia.com/mig-3g.20gb")) == int(19968 * MIB * USABLE)


def test_the_charts_value_counts_more_than_labels() -> None:
    api = Nodes(labelled(23028))
    assert usable(api, group(gpu_memory_gib=80)) == int(80 * GIB * USABLE)
    assert api.asked == []


def test_who_may_not_list_nodes_knows_nothing() -> None:
    assert usable(Nodes(labelled(81920), forbidden=True), group()) is None


def test_one_group_that_is_not_known_leaves_all_open() -> None:
    api = Nodes(labelled(23028, pool="a"))
    known, open_ = group("a", node_selector={"pool": "a"}), group("b", node_selector={"pool": "b"})
    assert usable(api, known, open_) is None
    assert usable(api, known, group("c", gpus=0)) == int(23028 * MIB * USABLE)


def test_nodes_are_asked_for_now_and_then() -> None:
    now, api = [0.0], Nodes(labelled(23028))
    memory = memory_of(api, group(), clock=lambda: now[0])
    for _ in range(3):
        memory.terms(settings(gpus=1))
    assert len(api.asked) == 1
    api.nodes = (labelled(81920),)
    now[0] += REMEMBER_SECONDS
    gpus = memory.terms(settings(gpus=1)).gpus
    assert gpus is not None
    assert gpus.usable == int(81920 * MIB * USABLE)


@pytest.mark.parametrize(
    ("resources", "pods", "gib"),
    [
        ({}, {"cpus": 32, "memory": "480Gi"}, 120),  # four workers in a pod
        ({}, {"cpus": 8, "memory": "48Gi"}, 48),  # one
        ({"memory": "100Gi"}, {"cpus": 32, "memory": "120Gi"}, 120),
        ({"memory": "100Gi"}, {"cpus": 32, "memory": "64Gi"}, None),  # none: pods_needed says so
    ],
)
def test_workers_without_a_gpu_share_their_pod(
    resources: dict[str, Any], pods: dict[str, Any], gib: int | None
) -> None:
    terms = memory_of(Nodes(), group(gpus=0, **pods)).terms(settings(**resources))
    assert terms.host == (gib * GIB if gib is not None else None)
