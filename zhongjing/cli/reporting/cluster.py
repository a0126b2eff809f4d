"""What a cluster says of a run: the release, the TrainingPipeline, its events, and what keeps the pods."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zhongjing.cli.reporting.bundle import Bundle
from zhongjing.errors import ZhongjingError

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession

_NOISE = ("managedFields",)
_POD_STATUS = ("phase", "reason", "message", "conditions", "containerStatuses")


def lent_secrets(session: KubernetesSession) -> dict[str, str]:
    """Secrets of the release that this command uses, as an environment: what must not be in a report.

    What may not be read cannot be packed either.
    """
    from zhongjing.backends.kubernetes.outside import ray_token

    found: dict[str, str] = {}
    with contextlib.suppress(ZhongjingError):
        _ = session.store
        found |= {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    with contextlib.suppress(ZhongjingError):
        found["RAY_AUTH_TOKEN"] = ray_token(session.api, session.release)
    return found


def collect_cluster(bundle: Bundle, session: KubernetesSession, name: str | None) -> None:
    """Packs what the Kubernetes API tells.

    Args:
        bundle: what is filled.
        session: the release.
        name: the pipeline, if there is one.
    """
    from zhongjing.backends.kubernetes.resources import EVENTS, NODES, PIPELINES, PODS

    api = session.api
    bundle.json("cluster/release.json", session.release.model_dump(mode="json", by_alias=True))
    _pack(bundle, "cluster/obstacles.json", session.obstacles)
    if name is not None:
        _pack(bundle, "cluster/pipeline.json", lambda: _plain(api.get(PIPELINES, name)))
        about = f"regarding.name={name}"
        _pack(
            bundle,
            "cluster/events.json",
            lambda: [_plain(event) for event in api.find(EVENTS, fields=about).items],
        )
    pods = f"app.kubernetes.io/part-of=zhongjing,app.kubernetes.io/instance={session.release.release}"
    _pack(bundle, "cluster/pods.json", lambda: [_pod(pod) for pod in api.find(PODS, labels=pods).items])
    _pack(bundle, "cluster/nodes.json", lambda: [_node(node) for node in api.find(NODES).items])


def _pack(bundle: Bundle, name: str, read: Callable[[], Any]) -> None:
    try:
        bundle.json(name, read())
    except ZhongjingError as error:
        bundle.gap(name, error)


def _plain(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """An object without the API server's bookkeeping."""
    if value is None:
        return None
    metadata = {key: each for key, each in value.get("metadata", {}).items() if key not in _NOISE}
    return {**value, "metadata": metadata}


def _pod(pod: dict[str, Any]) -> dict[str, Any]:
    """What a report needs of a pod: where it is, what it asks for, how its containers are. No environment."""
    spec, status = pod.get("spec") or {}, pod.get("status") or {}
    return {
        "name": pod["metadata"]["name"],
        "labels": pod["metadata"].get("labels"),
        "created": pod["metadata"].get("creationTimestamp"),
        "node": spec.get("nodeName"),
        "containers": [
            {key: container.get(key) for key in ("name", "image", "resources")}
            for container in spec.get("containers") or []
        ],
        "status": {key: status.get(key) for key in _POD_STATUS},
    }


def _node(node: dict[str, Any]) -> dict[str, Any]:
    """What a report needs of a node."""
    status = node.get("status") or {}
    return {
        "name": node["metadata"]["name"],
        "capacity": status.get("capacity"),
        "allocatable": status.get("allocatable"),
        "conditions": status.get("conditions"),
        "info": status.get("nodeInfo"),
        "taints": (node.get("spec") or {}).get("taints"),
    }
