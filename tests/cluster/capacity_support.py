"""A release as the chart lays it out, of pause containers: real pods that cost nothing.

Ray is not needed to see whether pods are scaled, stuck or replaced; what runs in them does not matter.
"""

from __future__ import annotations

import json
from typing import Any, TypeVar

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.provision import COMPONENT as DESCRIBES
from zhongjing.backends.kubernetes.provision import KEY, provision
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, STATEFUL_SETS, Object
from zhongjing.backends.kubernetes.workloads import COMPONENT, GROUP, INSTANCE
from zhongjing.config.release import RayRelease, ReleaseConfig, StorageRelease, WorkerGroup

PAUSE = "localhost/pause:1"
RELEASE = "zj"
FULLNAME = "zj-zhongjing"


def group(name: str = "gpu", *, least: int = 0, most: int = 2, **fields: Any) -> WorkerGroup:
    given = {"cpus": 2.0, "gpus": 0, "memory": "4Gi"} | fields
    return WorkerGroup(
        name=name, workload=f"{FULLNAME}-ray-{name}", min_replicas=least, max_replicas=most, **given
    )


def release(api: KubeApi, *groups: WorkerGroup, **ray: Any) -> ReleaseConfig:
    kuberay = ray.pop("provisioner", "static") == "kuberay"
    if kuberay:
        groups = tuple(each.model_copy(update={"workload": each.name}) for each in groups)
    given = {
        "cluster": FULLNAME,
        "service": f"{FULLNAME}-head-svc" if kuberay else f"{FULLNAME}-ray-head",
        "token_secret": f"{FULLNAME}-ray-token",
        "token_managed": True,
        "scaling": "controller",
        "idle_seconds": 600.0,
    } | ray
    return ReleaseConfig(
        release=RELEASE,
        fullname=FULLNAME,
        namespace=api.namespace,
        chart_version="0.1.0",
        image="zhongjing:0.1.0",
        provisioner="kuberay" if kuberay else "static",
        ray=RayRelease(groups=list(groups), **given),
        storage=StorageRelease(
            bundled=True, uri="s3://zhongjing", secret=f"{FULLNAME}-s3", secret_managed=True
        ),
    )


def labels(component: str, **more: str) -> dict[str, str]:
    return {INSTANCE: RELEASE, "app.kubernetes.io/name": "zhongjing", COMPONENT: component} | more


def container(**fields: Any) -> Object:
    return {"name": "ray", "image": PAUSE, "imagePullPolicy": "IfNotPresent"} | fields


def stateful_set(
    name: str, component: str, *, replicas: int | None = None, group: str = "", **pod: Any
) -> Object:
    """A StatefulSet of the chart; ``pod`` are fields of its pods' spec, ``containers`` among them."""
    marks = labels(component, **({GROUP: group} if group else {}))
    spec: Object = {
        "serviceName": name,
        "podManagementPolicy": "Parallel",
        "selector": {"matchLabels": marks},
        "template": {
            "metadata": {"labels": marks},
            "spec": {"terminationGracePeriodSeconds": 1, "containers": [container()]} | pod,
        },
    }
    if replicas is not None:
        spec["replicas"] = replicas
    return {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": {"name": name, "labels": labels(component)},
        "spec": spec,
    }


def install_head(api: KubeApi, **pod: Any) -> None:
    api.create(STATEFUL_SETS, stateful_set(f"{FULLNAME}-ray-head", "ray-head", replicas=1, **pod))


def deployment(name: str, group: str, **pod: Any) -> Object:
    """The Deployment of a worker group, as the chart describes it: without replicas."""
    made = stateful_set(name, "ray-worker", group=group, **pod)
    del made["spec"]["serviceName"], made["spec"]["podManagementPolicy"]
    made["spec"]["strategy"] = {"type": "Recreate"}
    return made | {"kind": "Deployment"}


def describe_workload(api: KubeApi, thing: Object) -> str:
    """What the chart installs of a workload: its description in a ConfigMap, of that name."""
    name = str(thing["metadata"]["name"])
    metadata = {"name": name, "labels": labels(DESCRIBES)}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {KEY: json.dumps(thing)}}
    api.patch(CONFIG_MAPS, name, body, kind="apply", force=True)
    return name


def install_workers(api: KubeApi, name: str = "gpu", replicas: int | None = None, **pod: Any) -> str:
    """A worker group as the chart has it; where replicas are named, made with so many pods already."""
    workload = describe_workload(api, deployment(f"{FULLNAME}-ray-{name}", name, **pod))
    if replicas is not None:
        provision(api, release(api, group(name)), {name: replicas})
    return workload


T = TypeVar("T")
