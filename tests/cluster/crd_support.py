"""The CRD on the test cluster, and a namespace to make TrainingPipelines in."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tools import crd
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.resources import PIPELINES, Resource

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
    conditions = (definition.get("status") or {}).get("conditions") or []
    return {each["type"]: each["status"] for each in conditions}


@contextmanager
def with_crd(namespace: str) -> Iterator[KubeApi]:
    """The API in a namespace, on a cluster that has the CRD of this checkout.

    Where there was none it goes again: a release of the chart that finds one of nobody's refuses to take it.
    """
    api = connect(namespace=namespace)
    name = crd.crd()["metadata"]["name"]
    was_there = api.get(CRDS, name) is not None
    try:
        apply_crd(api)
        yield api
    finally:
        if not was_there:
            api.delete(CRDS, name)
            deadline = time.monotonic() + 60
            while api.get(CRDS, name) is not None:
                assert time.monotonic() < deadline, "the CRD does not go"
                time.sleep(0.2)
        api.close()
