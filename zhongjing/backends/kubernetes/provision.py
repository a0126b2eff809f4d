"""Makes Ray's workloads as the chart describes them: the workers' Deployments, or KubeRay's RayCluster.

The number of worker pods changes with every stage, and stands in the object that has their template. Where
the chart writes that object as well, the two writers undo each other:

- ``workerGroupSpecs`` of a RayCluster is one atomic list (no ``x-kubernetes-list-type`` in the CRD of KubeRay
  1.7), and ``replicas`` in it defaults to 0. Helm 3 sends the change of a custom resource as a JSON merge
  patch between the old manifest and the new one (pkg/kube/client.go, ``createPatch``), and a merge patch
  replaces lists (RFC 7386): an upgrade that changes ``maxReplicas`` sets ``replicas`` to 0, and the operator
  ends the pods at once (raycluster_controller.go, ``reconcilePods``, ``diff < 0``).
- Server-side apply owns an atomic list as a whole (Kubernetes documentation, "Server-Side Apply", merge
  strategy): another writer causes a conflict, and a forced apply takes the others' values away.
  Helm 4 and Argo CD apply so; kuberay #1120 and #4149 are reports of it.
- A Deployment without ``replicas`` begins with one pod: a node of GPUs is ordered for no stage.

So the chart renders what is to be made into a ConfigMap, and the controller is the one writer of the object:
it applies template and number together. What it applied last is known by a hash in an annotation, so that
nothing is written while nothing changes, and what others set beside (Kueue's ``suspend``) stays. The
ConfigMap owns what was made of it: both go with the release.

Needs of the API: list on ``configmaps``; create and patch on ``rayclusters`` or ``deployments``, and what
reads them.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import cast

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import CONFIG_MAPS, DEPLOYMENTS, RAY_CLUSTERS, Object
from zhongjing.backends.kubernetes.workloads import (
    FIELD_MANAGER,
    Workload,
    groups_of,
    pod_labels,
    read_workloads,
)
from zhongjing.config.pipeline import API_GROUP
from zhongjing.config.release import ReleaseConfig

logger = logging.getLogger(__name__)

COMPONENT = "ray-workload"
"""Component of the ConfigMaps that describe workloads."""

KEY = "workload"
"""Their key."""

APPLIED = f"{API_GROUP}/applied"
"""Annotation of a workload: hash of the description that was applied last."""

_RESOURCES = {"Deployment": DEPLOYMENTS, "RayCluster": RAY_CLUSTERS}


def provision(api: KubeApi, release: ReleaseConfig, replicas: Mapping[str, int]) -> list[Workload]:
    """Makes what is missing and brings up to date what the chart has changed; the workloads as they are now.

    Raises:
        BackendError: the API does not answer or refuses; says what is wrong with an object.
    """
    there = {workload.name: workload for workload in read_workloads(api, release)}
    for config, text in _descriptions(api, release):
        manifest = cast(Object, json.loads(text))
        resource = _RESOURCES[manifest["kind"]]
        if resource == DEPLOYMENTS and not groups_of(resource, manifest, release):
            continue  # of a group that only the next controller, of a newer release, knows a number for
        name = str(manifest["metadata"]["name"])
        known, mark = there.get(name), hashlib.sha256(text.encode()).hexdigest()[:16]
        if known is not None and known.annotations.get(APPLIED) == mark:
            continue
        logger.info("%s %s is %s", manifest["kind"], name, "made" if known is None else "brought up to date")
        body = _filled(manifest, known, release, replicas)
        body["metadata"].setdefault("annotations", {})[APPLIED] = mark
        owner = {"apiVersion": "v1", "kind": "ConfigMap", "name": config["metadata"]["name"]}
        body["metadata"]["ownerReferences"] = [owner | {"uid": config["metadata"]["uid"]}]
        made = api.patch(resource, name, body, kind="apply", force=True, field_manager=FIELD_MANAGER)
        there[name] = Workload(resource, made, groups_of(resource, made, release))
    return list(there.values())


def worker_pods(api: KubeApi, release: ReleaseConfig) -> dict[str, Object]:
    """The ``spec`` of a worker pod as the chart describes it, by worker group."""
    found: dict[str, Object] = {}
    for _, text in _descriptions(api, release):
        manifest = json.loads(text)
        spec = manifest["spec"]
        for group, index in groups_of(_RESOURCES[manifest["kind"]], manifest, release).items():
            place = spec["workerGroupSpecs"][index] if "workerGroupSpecs" in spec else spec
            found[group] = place["template"]["spec"]
    return found


def _descriptions(api: KubeApi, release: ReleaseConfig) -> Iterator[tuple[Object, str]]:
    """The ConfigMaps that describe workloads, each with its description as JSON."""
    for config in api.find(CONFIG_MAPS, labels=pod_labels(release, COMPONENT)).items:
        text = str((config.get("data") or {}).get(KEY) or "{}")
        if json.loads(text).get("kind") in _RESOURCES:
            yield config, text


def _filled(
    manifest: Object, known: Workload | None, release: ReleaseConfig, replicas: Mapping[str, int]
) -> Object:
    """The object to apply: the number of pods stays as it is, whatever else has changed."""
    body = deepcopy(manifest)
    if release.ray.scaling == "none":
        return body
    groups = groups_of(_RESOURCES[manifest["kind"]], body, release)
    now = known.replicas if known is not None else {}
    specs = body["spec"].get("workerGroupSpecs")
    for group, index in groups.items():
        place = body["spec"] if specs is None else specs[index]
        place["replicas"] = now.get(group, replicas.get(group, 0))
    if specs is not None and known is not None:
        # Ray's autoscaler names there which pods it gives up.
        strategies = {
            spec["groupName"]: spec["scaleStrategy"]
            for spec in known.object["spec"].get("workerGroupSpecs") or []
            if spec.get("scaleStrategy")
        }
        for spec in specs:
            if spec["groupName"] in strategies:
                spec.setdefault("scaleStrategy", strategies[spec["groupName"]])
    return body
