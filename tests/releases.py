"""What a chart tells its controller, for tests to which most of it is all the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zhongjing.config.release import RayRelease, ReleaseConfig, StorageRelease, WorkerGroup


def release_config(
    *groups: WorkerGroup,
    ray: Mapping[str, Any] | None = None,
    storage: StorageRelease | None = None,
    **changes: Any,
) -> ReleaseConfig:
    """A static release in the namespace ``ns`` with these worker groups.

    Args:
        groups: the worker groups.
        ray: fields of its Ray that are to be others.
        storage: its store; none: the bundled one.
        changes: fields of its own that are to be others.
    """
    of_ray: dict[str, Any] = {"cluster": "zj", "service": "zj", "token_secret": "t", "token_managed": True}
    of_ray |= {"groups": list(groups), "scaling": "controller", **(ray or {})}
    fields: dict[str, Any] = {"release": "zj", "fullname": "zj", "namespace": "ns", "chart_version": "0"}
    fields |= {"image": "zhongjing:0", "provisioner": "static", **changes}
    kept = storage or StorageRelease(bundled=True, uri="s3://zhongjing")
    return ReleaseConfig(ray=RayRelease(**of_ray), storage=kept, **fields)
