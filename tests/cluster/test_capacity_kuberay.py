"""Worker groups of a RayCluster, kept by an API server with KubeRay's own definition; nobody acts on it."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.capacity_support import (
    FULLNAME,
    container,
    describe_workload,
    group,
    install_head,
    labels,
    release,
)
from tests.cluster.own_namespace import own_namespace
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.capacity import IDLE_SINCE, Capacity
from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.diagnosis import Explainer
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, RAY_CLUSTERS, SECRETS, Object
from zhongjing.backends.kubernetes.secrets import TOKEN_HASH, Rollout, prepare_secrets
from zhongjing.backends.kubernetes.workloads import GROUP, read_workloads, write
from zhongjing.codes import pods as codes
from zhongjing.config.release import ReleaseConfig
from zhongjing.config.stages import Resources
from zhongjing.errors import BackendError, ObjectConflictError

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("kuberay_crd")]

GPUS = Demand("ppo", 6, Resources(cpus=1.0, gpus=1))  # two pods of four GPUs


def ray_group(name: str, most: int) -> Object:
    pod = {
        "metadata": {"labels": labels("ray-worker", **{GROUP: name})},
        "spec": {"containers": [container()]},
    }
    return {
        "groupName": name,
        "minReplicas": 0,
        "maxReplicas": most,
        "rayStartParams": {},
        "template": pod,
    }


def ray_cluster(*groups: Object, **metadata: Any) -> Object:
    head = {"metadata": {"labels": labels("ray-head")}, "spec": {"containers": [container()]}}
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": FULLNAME} | metadata,
        "spec": {
            # Nobody else's: an operator that happens to run leaves it alone.
            "managedBy": "kueue.x-k8s.io/multikueue",
            "headGroupSpec": {"rayStartParams": {}, "template": head},
            "workerGroupSpecs": list(groups),
        },
    }


@pytest.fixture
def api(kuberay_crd: None) -> Iterator[KubeApi]:
    with own_namespace("kuberay") as api:
        describe_workload(api, ray_cluster(ray_group("cpu", 3), ray_group("gpu", 2)))
        Capacity(api, config(api)).scale_down()
        yield api
        api.delete(CONFIG_MAPS, FULLNAME)
        api.delete(RAY_CLUSTERS, FULLNAME)


def config(api: KubeApi, **ray: Any) -> ReleaseConfig:
    cpu, gpu = group("cpu", most=3), group("gpu", gpus=4, cpus=32.0)
    return release(api, cpu, gpu, provisioner="kuberay", **ray)


def seen(api: KubeApi) -> tuple[dict[str, int | None], dict[str, str], int]:
    found = api.get(RAY_CLUSTERS, FULLNAME)
    assert found is not None
    groups = {each["groupName"]: each.get("replicas") for each in found["spec"]["workerGroupSpecs"]}
    metadata = found["metadata"]
    return groups, metadata.get("annotations") or {}, metadata["generation"]


def test_groups_come_for_a_stage_and_go_when_idle(api: KubeApi) -> None:
    clock = [1_800_000_000.0]
    capacity = Capacity(api, config(api), clock=lambda: clock[0])
    capacity.scale_down()
    groups, annotations, _ = seen(api)
    assert groups == {"cpu": 0, "gpu": 0}
    assert IDLE_SINCE not in annotations
    room = capacity.ensure_workers(GPUS)
    assert not room.ready
    assert "the Ray head is not ready; 0 of 2 worker pods of group gpu are ready" in room.message
    groups, annotations, generation = seen(api)
    assert (groups["gpu"], groups["cpu"] or 0) == (2, 0)
    capacity.ensure_workers(GPUS)
    assert seen(api)[2] == generation
    capacity.scale_down()
    groups, annotations, _ = seen(api)
    assert (groups["gpu"], IDLE_SINCE in annotations) == (2, True)
    clock[0] += 601
    capacity.scale_down()
    groups, annotations, generation = seen(api)
    assert groups["gpu"] == 0
    assert IDLE_SINCE not in annotations
    capacity.scale_down()
    assert seen(api)[2] == generation


def test_other_annotations_and_the_rest_of_the_groups_stay(api: KubeApi) -> None:
    api.patch(RAY_CLUSTERS, FULLNAME, {"metadata": {"annotations": {"team/owner": "lab"}}})
    before = api.get(RAY_CLUSTERS, FULLNAME)
    assert before is not None
    Capacity(api, config(api)).ensure_workers(GPUS)
    after = api.get(RAY_CLUSTERS, FULLNAME)
    assert after is not None
    assert after["metadata"]["annotations"]["team/owner"] == "lab"
    for each in after["spec"]["workerGroupSpecs"]:
        each.pop("replicas", None)
    for each in before["spec"]["workerGroupSpecs"]:
        each.pop("replicas", None)
    assert after["spec"] == before["spec"]


def test_groups_that_changed_places_in_between_are_not_mixed_up(api: KubeApi) -> None:
    [read] = read_workloads(api, config(api))
    swapped = [ray_group("gpu", 2), ray_group("cpu", 3)]
    api.patch(RAY_CLUSTERS, FULLNAME, {"spec": {"workerGroupSpecs": swapped}})
    with pytest.raises(BackendError):
        write(api, read, replicas={"gpu": 2})
    assert {number or 0 for number in seen(api)[0].values()} == {0}
    Capacity(api, config(api)).ensure_workers(GPUS)
    assert seen(api)[0]["gpu"] == 2


def test_an_apply_of_the_list_in_the_middle_of_a_stage_is_made_good(api: KubeApi) -> None:
    """As a chart that renders the list does it: the number of pods is not in it, and becomes 0."""
    Capacity(api, config(api)).ensure_workers(GPUS)
    other = ray_cluster(ray_group("cpu", 3), ray_group("gpu", 2))
    with pytest.raises(ObjectConflictError, match="workerGroupSpecs"):
        api.patch(RAY_CLUSTERS, FULLNAME, other, kind="apply", field_manager="argocd")
    api.patch(RAY_CLUSTERS, FULLNAME, other, kind="apply", field_manager="argocd", force=True)
    assert seen(api)[0]["gpu"] == 0
    Capacity(api, config(api)).restore()
    assert seen(api)[0] == {"cpu": 0, "gpu": 2}


def test_what_rays_autoscaler_wrote_stays_when_the_chart_changes(api: KubeApi) -> None:
    """It patches replicas and scaleStrategy.workersToDelete into the list (ray, kuberay/node_provider.py)."""
    group = "/spec/workerGroupSpecs/1"
    written: list[Object] = [
        {"op": "add", "path": f"{group}/replicas", "value": 1},
        {"op": "add", "path": f"{group}/scaleStrategy", "value": {"workersToDelete": ["one"]}},
    ]
    api.patch(RAY_CLUSTERS, FULLNAME, written, kind="json")
    describe_workload(api, ray_cluster(ray_group("cpu", 5), ray_group("gpu", 2)))
    Capacity(api, config(api, scaling="ray")).restore()
    found = api.get(RAY_CLUSTERS, FULLNAME)
    assert found is not None
    cpu, gpu = found["spec"]["workerGroupSpecs"]
    assert (cpu["maxReplicas"], gpu["replicas"]) == (5, 1)
    assert gpu["scaleStrategy"] == {"workersToDelete": ["one"]}


def test_a_changed_token_is_noted_on_the_cluster(api: KubeApi) -> None:
    prepare_secrets(api, config(api))
    assert not Rollout(api, config(api)).follow_token()
    first = seen(api)[1][TOKEN_HASH]
    api.patch(*_secret(api, "another"))
    assert Rollout(api, config(api)).follow_token()
    assert seen(api)[1][TOKEN_HASH] != first


def _secret(api: KubeApi, token: str) -> tuple[Any, str, Object]:
    data = {"auth_token": base64.b64encode(token.encode()).decode()}
    return SECRETS, config(api).ray.token_secret, {"data": data}


def test_an_operator_that_does_not_run_is_told_and_not_waited_for_in_silence(api: KubeApi) -> None:
    def look(later: float) -> list[tuple[object, bool]]:
        explainer = Explainer(
            api, config(api), components=("ray-head", "ray-worker"), clock=lambda: time.time() + later
        )
        return [(finding.code, finding.fatal) for finding in explainer.findings()]

    assert look(0) == [(codes.POD_STARTING, False)]
    assert look(120) == [(codes.KUBERAY_NOT_RUNNING, True)]


def test_a_cluster_that_is_missing_and_stateful_sets_that_are_left(api: KubeApi) -> None:
    install_head(api)
    api.delete(CONFIG_MAPS, FULLNAME)
    api.delete(RAY_CLUSTERS, FULLNAME)
    findings = Explainer(api, config(api), components=("ray-head", "ray-worker")).findings()
    told = {each.code: each.place for each in findings if each.code is not codes.POD_STARTING}
    assert told == {
        codes.WORKLOAD_MISSING: f"raycluster/{FULLNAME}",
        codes.PROVISIONER_MISMATCH: f"statefulset/{FULLNAME}-ray-head",
    }
    room = Capacity(api, config(api)).ensure_workers(GPUS)
    assert "there is no workload of the worker group gpu" in room.message
