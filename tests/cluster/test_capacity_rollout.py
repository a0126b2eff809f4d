"""Ray's pods are made again when their token was changed, and only then."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

from tests.cluster.capacity_support import FULLNAME, group, install_head, install_workers, release
from tests.cluster.own_namespace import own_namespace, wait_for
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import DEPLOYMENTS, PODS, SECRETS, STATEFUL_SETS
from zhongjing.backends.kubernetes.secrets import TOKEN_HASH, Rollout, prepare_secrets
from zhongjing.backends.kubernetes.workloads import is_ready, read_workloads

pytestmark = pytest.mark.cluster

TOKEN = f"{FULLNAME}-ray-token"
PODS_OF_RAY = 4


@pytest.fixture(scope="module")
def pods() -> Iterator[KubeApi]:
    with own_namespace("rollout") as api:
        install_head(api)
        install_workers(api, "gpu", replicas=2)
        install_workers(api, "cpu", replicas=1)
        yield api


@pytest.fixture
def api(pods: KubeApi) -> KubeApi:
    """Pods that serve, a token, and nothing noted of it."""
    prepare_secrets(pods, release(pods))
    forgotten = {"metadata": {"annotations": {TOKEN_HASH: None}}}
    for kind in (STATEFUL_SETS, DEPLOYMENTS):
        for each in pods.find(kind).items:
            pods.patch(kind, each["metadata"]["name"], forgotten)
    wait_for(lambda: len(ready(pods)) == PODS_OF_RAY, "pods")
    return pods


def ready(api: KubeApi) -> dict[str, str]:
    """Names of the pods that serve, by uid."""
    pods = api.find(PODS).items
    return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods if is_ready(pod)}


def serves_anew(api: KubeApi, before: dict[str, str]) -> bool:
    """Whether all pods serve, and none of those before."""
    now = ready(api)
    return len(now) == PODS_OF_RAY and not now.keys() & before.keys()


def rollout(api: KubeApi) -> Rollout:
    return Rollout(api, release(api, group("gpu"), group("cpu")))


def hashes(api: KubeApi) -> set[str | None]:
    config = release(api, group("gpu"), group("cpu"))
    workloads = read_workloads(api, config, head=True)
    assert len(workloads) == 3
    return {each.annotations.get(TOKEN_HASH) for each in workloads}


def change_token(api: KubeApi, token: str) -> None:
    api.patch(SECRETS, TOKEN, {"data": {"auth_token": base64.b64encode(token.encode()).decode()}})


def test_a_changed_token_replaces_head_and_workers_once(api: KubeApi) -> None:
    before = ready(api)
    assert not rollout(api).follow_token()  # first sight
    [first] = hashes(api)
    assert first is not None
    asked = api.requests
    assert not rollout(api).follow_token()
    assert api.requests - asked == 3
    assert ready(api) == before

    change_token(api, "another")
    assert rollout(api).follow_token()
    [second] = hashes(api)
    assert second not in (None, first, "another")

    wait_for(lambda: serves_anew(api, before), "new pods")
    after = ready(api)
    assert not rollout(api).follow_token()
    # The pods are of the same template: nothing goes on replacing them.
    [head] = api.find(STATEFUL_SETS).items
    assert head["status"]["currentRevision"] == head["status"]["updateRevision"]
    assert ready(api) == after

    # What stands in the Secret counts, not how it is written there.
    change_token(api, "another\n")
    assert not rollout(api).follow_token()


def test_what_broke_off_half_way_is_done_by_the_next_call(api: KubeApi) -> None:
    rollout(api).follow_token()
    change_token(api, "a third")
    before = ready(api)
    [old] = hashes(api)
    # As if the process had died after the pods and one of three annotations.
    rollout(api).follow_token()
    [new] = hashes(api)
    head = f"{FULLNAME}-ray-head"
    api.patch(STATEFUL_SETS, head, {"metadata": {"annotations": {TOKEN_HASH: old}}})
    assert rollout(api).follow_token()
    assert hashes(api) == {new}
    # Those that end serve a little longer.
    wait_for(lambda: serves_anew(api, before), "pods in the place of those before")


def test_a_group_that_is_new_is_only_noted(api: KubeApi) -> None:
    rollout(api).follow_token()
    [known] = hashes(api)
    workload = f"{FULLNAME}-ray-cpu"
    api.patch(DEPLOYMENTS, workload, {"metadata": {"annotations": {TOKEN_HASH: None}}})
    before = ready(api)
    assert not rollout(api).follow_token()
    assert hashes(api) == {known}
    assert ready(api) == before


def test_without_a_secret_nothing_happens(api: KubeApi) -> None:
    rollout(api).follow_token()
    before, noted = ready(api), hashes(api)
    api.delete(SECRETS, TOKEN)
    assert not rollout(api).follow_token()
    assert (ready(api), hashes(api)) == (before, noted)
