"""Namespaces of a test's own, over the client that the project itself uses."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.resources import NAMESPACES, PODS, Resource

SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts")

T = TypeVar("T")


def wait_for(look: Callable[[], T | None], what: str, seconds: float = 180.0) -> T:
    """Looks until there is something to see.

    Raises:
        AssertionError: there is nothing in time.
    """
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"no {what} within {seconds:g} s"
        time.sleep(0.2)
    return seen


@contextmanager
def own_namespace(part: str, **labels: str) -> Iterator[KubeApi]:
    """A client of a new namespace, which goes, with all that is in it, when the tests are over."""
    name = f"{part}-{uuid.uuid4().hex[:6]}"
    api = connect(namespace=name)
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}
    api.create(NAMESPACES, body)
    try:
        # A moment after the namespace; without it no pod is taken.
        wait_for(lambda: api.get(SERVICE_ACCOUNTS, "default"), "service account")
        yield api
    finally:
        # Pods whose container never started need no time to end.
        for pod in api.find(PODS).items:
            api.delete(PODS, pod["metadata"]["name"], grace_seconds=0)
        api.delete(NAMESPACES, name)
        api.close()
