"""The CRD on the test cluster, and a namespace to make TrainingPipelines in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.capacity_support import namespace
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES, Resource
from zhongjing.config import crd

ROOT = Path(__file__).parents[2]
CRDS = Resource("apiextensions.k8s.io", "v1", "customresourcedefinitions", namespaced=False)


def apply_crd(api: KubeApi) -> dict[str, Any]:
    """Applies the chart's CRD server-side and waits until it is served; returns it."""
    definition = yaml.safe_load((ROOT / crd.CRD_FILE).read_text(encoding="utf-8"))
    name = definition["metadata"]["name"]
    api.patch(CRDS, name, definition, kind="apply", force=True, field_manager="zhongjing-tests")
    deadline = time.monotonic() + 30
    while True:
        found = api.get(CRDS, name)
        assert found is not None
        conditions = conditions_of(found)
        if conditions.get("Established") == "True" and api.serves(PIPELINES):
            return found
        assert time.monotonic() < deadline, conditions
        time.sleep(0.1)


def conditions_of(definition: dict[str, Any]) -> dict[str, str]:
    """Conditions of an object by type."""
    return {each["type"]: each["status"] for each in definition.get("status", {}).get("conditions", [])}


@contextmanager
def crd_namespace(part: str) -> Iterator[KubeApi]:
    """A namespace of its own on a cluster that has the CRD."""
    with namespace(part) as api:
        apply_crd(api)
        yield api
