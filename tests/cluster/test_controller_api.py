"""What the one place that speaks to Kubernetes makes of real answers; who may lead, with a real Lease."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.crd_support import CRDS as DEFINITIONS
from tests.cluster.crd_support import apply_crd, with_crd
from tests.cluster.own_namespace import own_namespace
from zhongjing.backends.kubernetes.api import KubeApi, connect
from zhongjing.backends.kubernetes.events import Note, Recorder
from zhongjing.backends.kubernetes.lease import Election
from zhongjing.backends.kubernetes.resources import (
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    PIPELINES,
    PODS,
    SECRETS,
    Object,
    Request,
    Resource,
)
from zhongjing.backends.kubernetes.trainingpipeline import FINALIZER, Pipeline, Pipelines
from zhongjing.backends.local.processes import free_ports, wait_until
from zhongjing.codes import cluster as codes
from zhongjing.codes.ray import NO_CLUSTER
from zhongjing.errors import (
    BackendError,
    BackendUnavailableError,
    ConflictError,
    ObjectConflictError,
    ObjectNotFoundError,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(120)]

ACCOUNTS = Resource("", "v1", "serviceaccounts")


@pytest.fixture(scope="module")
def crd() -> Iterator[None]:
    with with_crd("default"):
        yield


@pytest.fixture(scope="module")
def api(crd: None) -> Iterator[KubeApi]:
    with own_namespace("api") as made:
        yield made


def config_map(name: str, **data: str) -> Object:
    metadata = {"name": name, "labels": {"of": name.partition("-")[0]}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def pipeline(name: str) -> Object:
    return {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": name},
        "spec": {
            "base": {"uri": "s3://b/base"},
            "sources": [{"name": "texts", "kind": "text", "uri": "s3://b/texts"}],
            "stages": {"pretrain": {"data": [{"source": "texts"}]}},
        },
    }


# Objects


def test_objects_are_made_read_changed_and_deleted(api: KubeApi) -> None:
    made = api.create(CONFIG_MAPS, config_map("one", a="1"))
    assert api.get(CONFIG_MAPS, "one") == made
    with pytest.raises(ObjectConflictError, match="already exists"):
        api.create(CONFIG_MAPS, config_map("one"))
    changed = api.patch(CONFIG_MAPS, "one", {"data": {"b": "2"}})
    assert changed["data"] == {"a": "1", "b": "2"}
    with pytest.raises(ObjectConflictError, match="modified"):
        api.replace(CONFIG_MAPS, made)
    changed["data"] = {"c": "3"}
    assert api.replace(CONFIG_MAPS, changed)["data"] == {"c": "3"}
    steps = [{"op": "test", "path": "/data/c", "value": "4"}, {"op": "remove", "path": "/data/c"}]
    with pytest.raises(BackendError) as refused:
        api.patch(CONFIG_MAPS, "one", steps, kind="json")
    assert refused.value.code is codes.OBJECT_REFUSED
    with pytest.raises(ObjectConflictError):
        api.delete(CONFIG_MAPS, "one", uid="another")
    assert api.delete(CONFIG_MAPS, "one") is True
    assert api.delete(CONFIG_MAPS, "one") is False
    assert api.get(CONFIG_MAPS, "one") is None
    with pytest.raises(ObjectNotFoundError):
        api.patch(CONFIG_MAPS, "one", {"data": {}})


def test_a_dry_run_changes_nothing(api: KubeApi) -> None:
    assert api.create(CONFIG_MAPS, config_map("dry"), dry_run=True)["metadata"]["uid"]
    assert api.get(CONFIG_MAPS, "dry") is None


def test_unknown_fields_are_refused(api: KubeApi) -> None:
    with pytest.raises(BackendError, match='unknown field "dat"') as refused:
        api.create(CONFIG_MAPS, config_map("strict") | {"dat": {}})
    assert refused.value.code is codes.OBJECT_REFUSED
    wrong = pipeline("strict")
    wrong["spec"]["stages"]["pretrain"]["learningRte"] = 1
    with pytest.raises(BackendError, match="learningRte"):
        api.create(PIPELINES, wrong)


def test_a_long_list_comes_whole_and_only_what_matches(api: KubeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(7):
        api.create(CONFIG_MAPS, config_map(f"many-{number}"))
    api.create(CONFIG_MAPS, config_map("few-1"))
    monkeypatch.setattr("zhongjing.backends.kubernetes.api._PAGE", 3)
    before = api.requests
    found = api.find(CONFIG_MAPS, labels="of=many")
    assert [each["metadata"]["name"] for each in found.items] == [f"many-{number}" for number in range(7)]
    assert api.requests - before == 3
    named = api.find(CONFIG_MAPS, fields="metadata.name=few-1").items
    assert [each["metadata"]["name"] for each in named] == ["few-1"]
    everywhere = api.find(CONFIG_MAPS, labels="of=few", everywhere=True).items
    assert api.namespace in {each["metadata"]["namespace"] for each in everywhere}


def test_a_watch_tells_changes_and_ends(api: KubeApi) -> None:
    version = api.find(CONFIG_MAPS).resource_version
    seen: list[tuple[str, str]] = []

    def look() -> None:
        seen.extend(
            (change.type, change.object["metadata"].get("name", ""))
            for change in api.watch(CONFIG_MAPS, version, seconds=3)
            if change.type != "BOOKMARK"
        )

    watcher = threading.Thread(target=look)
    watcher.start()
    api.create(CONFIG_MAPS, config_map("watched"))
    api.patch(CONFIG_MAPS, "watched", {"data": {"x": "y"}})
    api.delete(CONFIG_MAPS, "watched")
    watcher.join(10)
    assert seen == [("ADDED", "watched"), ("MODIFIED", "watched"), ("DELETED", "watched")]
    with pytest.raises(BackendError):
        list(api.watch(CONFIG_MAPS, "not-a-version", seconds=1))


def test_what_the_cluster_serves(api: KubeApi) -> None:
    assert api.serves(PIPELINES)
    assert api.serves(PODS)
    assert not api.serves(Resource("training.zhongjing.dev", "v9", "trainingpipelines"))
    assert not api.serves(Resource("nobody.example", "v1", "things"))


# Errors


def test_what_a_user_may_not_is_named_with_the_remedy(api: KubeApi, tmp_path: Path) -> None:
    api.create(ACCOUNTS, {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}})
    request = Request(
        "POST",
        ACCOUNTS,
        api.namespace,
        "nobody",
        "token",
        body={"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}},
    )
    token = api._json(request)["status"]["token"]
    with as_user(api, token, tmp_path) as nobody:
        for action, text in (
            (lambda: nobody.find(PIPELINES), "may not list trainingpipelines.training.zhongjing.dev"),
            (lambda: nobody.delete(PODS, "x"), "may not delete pods"),
            (lambda: nobody.patch(PIPELINES, "x", {}, subresource="status"), "trainingpipelines/status"),
            (lambda: nobody.find(SECRETS, everywhere=True), "in the whole cluster"),
        ):
            with pytest.raises(BackendError) as refused:
                action()
            assert refused.value.code is codes.FORBIDDEN
            assert text in refused.value.message
            assert "kubectl auth can-i" in refused.value.remedy
        assert nobody.serves(PIPELINES)
        assert not nobody.allows("list", PIPELINES)
    assert api.allows("patch", PIPELINES, subresource="status")
    with as_user(api, "wrong", tmp_path) as unknown, pytest.raises(BackendError) as refused:
        unknown.find(PODS)
    assert refused.value.code is codes.NOT_LOGGED_IN


class as_user:  # noqa: N801 - used as a statement
    """The same cluster with another token."""

    def __init__(self, api: KubeApi, token: str, folder: Path) -> None:
        configuration = api.client.configuration
        cluster: dict[str, Any] = {"server": configuration.host}
        if configuration.ssl_ca_cert:
            cluster["certificate-authority"] = configuration.ssl_ca_cert
        else:
            cluster["insecure-skip-tls-verify"] = True
        self._file = folder / "kubeconfig"
        context = {"cluster": "c", "user": "u", "namespace": api.namespace}
        self._file.write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": cluster}],
                    "users": [{"name": "u", "user": {"token": token}}],
                    "contexts": [{"name": "x", "context": context}],
                    "current-context": "x",
                }
            )
        )

    def __enter__(self) -> KubeApi:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("KUBECONFIG", str(self._file))
            self._api = connect()
        return self._api

    def __exit__(self, *ignored: object) -> None:
        self._api.close()


def test_a_cluster_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    with pytest.raises(BackendError) as none:
        connect()
    assert none.value.code is NO_CLUSTER
    (port,) = free_ports(1)
    file = tmp_path / "kubeconfig"
    file.write_text(
        yaml.safe_dump(
            {
                "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                "users": [{"name": "u", "user": {"token": "t"}}],
                "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u", "namespace": "mine"}}],
            }
        )
    )
    monkeypatch.setenv("KUBECONFIG", str(file))
    for context in (None, "y"):
        with pytest.raises(BackendError) as wrong:
            connect(context)
        assert wrong.value.code is codes.INVALID_KUBECONFIG
    api = connect("x")
    assert (api.namespace, api.context) == ("mine", "x")
    with pytest.raises(BackendUnavailableError) as away:
        api.find(PODS)
    assert away.value.code is codes.API_UNREACHABLE
    assert str(port) in str(away.value)
    file.write_text("{{{")
    with pytest.raises(BackendError) as damaged:
        connect("x")
    assert damaged.value.code is codes.INVALID_KUBECONFIG


# Pipelines


def test_a_status_is_written_over_the_version_that_was_read(api: KubeApi) -> None:
    pipelines = Pipelines(api)
    made = Pipeline(api.create(PIPELINES, pipeline("fenced")))
    assert (made.generation, made.status, made.is_settled) == (1, {}, False)
    written = pipelines.write_status(made, {"release": "zj", "stages": {"pretrain": {"state": "Running"}}})
    assert written.release == "zj"
    assert written.is_active
    assert written.generation == 1, "a status is no new generation"
    with pytest.raises(ConflictError):
        pipelines.write_status(made, {"release": "other"})
    # Of a status what the definition does not know is left out: its controller may be newer.
    written = pipelines.write_status(written, written.status | {"releese": "zj"})
    assert (written.release, "releese" in written.status) == ("zj", False)
    # What runs may not change under the feet of its attempt.
    with pytest.raises(BackendError, match="pretrain runs"):
        api.patch(PIPELINES, "fenced", {"spec": {"stages": {"pretrain": {"epochs": 9}}}})
    held = pipelines.set_finalizer(written, True)
    assert held is not None
    assert held.has_finalizer
    assert pipelines.delete(held)
    deleting = pipelines.get("fenced")
    assert deleting is not None
    assert deleting.is_deleting
    assert pipelines.set_finalizer(deleting, False) is None
    assert pipelines.get("fenced") is None
    with pytest.raises(ConflictError, match="gone"):
        pipelines.write_status(deleting, {"release": "zj"})
    assert FINALIZER not in str(pipelines.find()[0])


def test_events_stand_at_the_object(api: KubeApi) -> None:
    made = Pipeline(api.create(PIPELINES, pipeline("told")))
    recorder = Recorder(api, "pod-1")
    long = Note("Warning", "Diverged", "损失发散。" * 500)
    for note in (Note("Normal", "StageRunning", "sft runs"), long, long):
        recorder.tell(made, note)
    found = api.find(EVENTS, fields="regarding.name=told").items
    assert sorted(each["reason"] for each in found) == ["Diverged", "StageRunning"]
    assert all(each["regarding"]["uid"] == made.uid for each in found)
    assert all(each["reportingInstance"] == "pod-1" for each in found)


# Election

LEASE_SECONDS = 3.0


class Severed(KubeApi):
    """A connection that can be cut."""

    cut = False

    def _call(self, request: Request, seconds: float | None = None) -> Any:
        if self.cut:
            raise BackendUnavailableError("cut", code=codes.API_UNREACHABLE)
        return super()._call(request, seconds)


@pytest.fixture
def name(api: KubeApi) -> Iterator[str]:
    made = f"lease-{uuid.uuid4().hex[:8]}"
    yield made
    api.delete(LEASES, made)


def test_who_cannot_renew_stops_before_another_leads(api: KubeApi, name: str) -> None:
    severed = Severed(api.client, api.namespace)
    first = Election(severed, name, "first", duration=LEASE_SECONDS)
    second = Election(api, name, "second", duration=LEASE_SECONDS)
    both: list[float] = []
    ending = threading.Event()

    def watch() -> None:
        while not ending.wait(0.005):
            if first.is_leader and second.is_leader:
                both.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        first.start()
        assert first.wait(5)
        second.start()
        assert not second.wait(2 * LEASE_SECONDS), "a lease that is renewed was taken"
        severed.cut = True
        assert second.wait(3 * LEASE_SECONDS)
        severed.cut = False
        assert not first.wait(LEASE_SECONDS), "it leads beside the one that took over"
        lease = api.get(LEASES, name)
        assert lease is not None
        assert lease["spec"]["holderIdentity"] == "second"
        assert lease["spec"]["leaseTransitions"] == 1
        # Given back in order, it is taken at once.
        began = time.monotonic()
        second.close()
        assert first.wait(5)
        assert time.monotonic() - began < LEASE_SECONDS
    finally:
        ending.set()
        watcher.join()
        first.close()
        second.close()
    assert not both, "two led at once"


def test_an_outage_of_the_api_is_survived(api: KubeApi, name: str) -> None:
    severed = Severed(api.client, api.namespace)
    alone = Election(severed, name, "alone", duration=LEASE_SECONDS)
    alone.start()
    try:
        assert alone.wait(5)
        severed.cut = True
        assert wait_until(lambda: not alone.is_leader, 2 * LEASE_SECONDS)
        severed.cut = False
        assert wait_until(lambda: alone.is_leader, 5), "it does not stand for election again"
    finally:
        alone.close()


def test_a_status_is_written_under_a_definition_of_one_version_before(api: KubeApi) -> None:
    """The controller was upgraded, the definition (of another release, say) was not."""
    name = "trainingpipelines.training.zhongjing.dev"
    fields = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties"

    def knows_release() -> bool:
        # A new schema is served after a moment.
        probe = Pipelines(api).write_status(made(), {"release": "zj"})
        return probe.release == "zj"

    def made() -> Pipeline:
        found = Pipelines(api).get("behind")
        assert found is not None
        return found

    api.create(PIPELINES, pipeline("behind"))
    api.patch(DEFINITIONS, name, [{"op": "remove", "path": f"{fields}/release"}], kind="json")
    try:
        assert wait_until(lambda: not knows_release(), 30)
        condition = {"type": "Progressing", "status": "True", "reason": "Queued", "message": "waits"}
        after = Pipelines(api).write_status(made(), {"release": "zj", "conditions": [condition]})
        assert after.release is None
        assert (after.condition() or {})["reason"] == "Queued"
    finally:
        apply_crd(api)
        assert wait_until(knows_release, 30)
        api.delete(PIPELINES, "behind")
