"""The objects that make the Ray pods of a release: a StatefulSet and Deployments (static), or one RayCluster.

What differs between the two stands here: where the number of worker pods is, and how it is changed.
Pods carry the same labels in both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from zhongjing.backends.kubernetes.api import KubeApi, PatchKind
from zhongjing.backends.kubernetes.resources import (
    DEPLOYMENTS,
    PODS,
    RAY_CLUSTERS,
    STATEFUL_SETS,
    Object,
    Resource,
)
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import ObjectConflictError

HEAD = "ray-head"
WORKER = "ray-worker"
COMPONENT = "app.kubernetes.io/component"
INSTANCE = "app.kubernetes.io/instance"
GROUP = f"{API_GROUP}/group"

FIELD_MANAGER = "zhongjing-controller"

Changes = Mapping[str, str | None]
"""Annotations to set, or to remove (None)."""


@dataclass(frozen=True)
class Workload:
    """One object that makes Ray pods."""

    resource: Resource  # its kind
    object: Object  # as it was read
    # The worker groups whose pods it makes; a list index where they stand in one object.
    groups: Mapping[str, int]

    @property
    def name(self) -> str:
        """Name of the object."""
        return str(self.object["metadata"]["name"])

    @property
    def annotations(self) -> dict[str, str]:
        """Its annotations, which hold what the controller remembers of it."""
        return dict(self.object["metadata"].get("annotations") or {})

    @property
    def is_cluster(self) -> bool:
        """Whether it is a RayCluster: head and all groups in one."""
        return self.resource == RAY_CLUSTERS

    @property
    def replicas(self) -> dict[str, int]:
        """Pods that are asked for, by worker group."""
        spec = self.object["spec"]
        if not self.is_cluster:
            return {group: int(spec.get("replicas", 1)) for group in self.groups}
        specs = spec.get("workerGroupSpecs") or []
        return {group: int(specs[index].get("replicas") or 0) for group, index in self.groups.items()}

    def change(
        self, replicas: Mapping[str, int], annotations: Changes
    ) -> tuple[Object | list[Object], PatchKind]:
        """The patch that makes these changes in one write; groups that are not named stay."""
        if not self.is_cluster:
            patch: Object = {"metadata": {"annotations": dict(annotations)}} if annotations else {}
            if replicas:
                patch["spec"] = {"replicas": next(iter(replicas.values()))}
            return patch, "merge"
        # A merge patch would replace the whole list of groups. The tests hold that it is still the one read.
        steps: list[Object] = []
        for group, number in replicas.items():
            place = f"/spec/workerGroupSpecs/{self.groups[group]}"
            steps.append({"op": "test", "path": f"{place}/groupName", "value": group})
            steps.append({"op": "add", "path": f"{place}/replicas", "value": number})
        return steps + _annotate(self.annotations, annotations), "json"


def pod_labels(release: ReleaseConfig, *components: str) -> str:
    """Label selector of the release's pods of some components."""
    return f"{INSTANCE}={release.release},{COMPONENT} in ({','.join(components)})"


def read_workloads(api: KubeApi, release: ReleaseConfig, *, head: bool = False) -> list[Workload]:
    """The objects that make the release's Ray pods, as they are now; missing ones are left out.

    The head's StatefulSet is among them only with ``head``; a RayCluster has the head in it.

    Raises:
        BackendError: the API does not answer, refuses, or does not serve RayClusters.
    """
    if release.provisioner == "kuberay":
        cluster = api.get(RAY_CLUSTERS, release.ray.cluster)
        return [] if cluster is None else [_workload(RAY_CLUSTERS, cluster, release)]
    found = api.find(DEPLOYMENTS, labels=pod_labels(release, WORKER)).items
    workloads = [_workload(DEPLOYMENTS, each, release) for each in found]
    workloads = [workload for workload in workloads if workload.groups]
    if head:
        heads = api.find(STATEFUL_SETS, labels=pod_labels(release, HEAD)).items
        workloads += [Workload(STATEFUL_SETS, each, {}) for each in heads]
    return workloads


def groups_of(resource: Resource, thing: Object, release: ReleaseConfig) -> dict[str, int]:
    """The worker groups of the release that an object has; a list index where they stand in one object."""
    groups = {group.workload: group.name for group in release.ray.groups}
    if resource == RAY_CLUSTERS:
        specs = thing["spec"].get("workerGroupSpecs") or []
        names = {groups.get(spec["groupName"]): index for index, spec in enumerate(specs)}
        return {group: index for group, index in names.items() if group is not None}
    name = str(thing["metadata"]["name"])
    return {groups[name]: 0} if name in groups else {}


def _workload(resource: Resource, thing: Object, release: ReleaseConfig) -> Workload:
    return Workload(resource, thing, groups_of(resource, thing, release))


def write(
    api: KubeApi,
    workload: Workload,
    *,
    replicas: Mapping[str, int] | None = None,
    annotations: Changes | None = None,
) -> None:
    """Makes changes, all in one request; none where there is nothing to change.

    Raises:
        ObjectNotFoundError: the object is gone.
    """
    patch, kind = workload.change(replicas or {}, annotations or {})
    if patch:
        api.patch(workload.resource, workload.name, patch, kind=kind, field_manager=FIELD_MANAGER)


def is_ready(pod: Object) -> bool:
    """Whether a pod serves: Ready, and not on its way out."""
    if pod["metadata"].get("deletionTimestamp"):
        return False
    conditions = pod.get("status", {}).get("conditions") or []
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def label(pod: Object, name: str) -> str:
    """A label, empty where it is missing."""
    return str((pod["metadata"].get("labels") or {}).get(name, ""))


def of_component(pods: Iterable[Object], component: str) -> list[Object]:
    """The pods of one component."""
    return [pod for pod in pods if label(pod, COMPONENT) == component]


def end_pod(api: KubeApi, pod: Object, seconds: int) -> bool:
    """Ends just this pod within ``seconds``; False where another has its name by now, or it is gone."""
    metadata = pod["metadata"]
    try:
        return api.delete(PODS, metadata["name"], uid=metadata["uid"], grace_seconds=seconds)
    except ObjectConflictError:
        return False


def _annotate(there: Mapping[str, str], changes: Changes) -> list[Object]:
    """The steps of a JSON patch that change annotations."""
    if not there:
        value = {name: text for name, text in changes.items() if text is not None}
        return [{"op": "add", "path": "/metadata/annotations", "value": value}] if value else []
    steps: list[Object] = []
    for name, text in changes.items():
        path = f"/metadata/annotations/{name.replace('~', '~0').replace('/', '~1')}"
        if text is not None:
            steps.append({"op": "add", "path": path, "value": text})
        elif name in there:
            steps.append({"op": "remove", "path": path})
    return steps
