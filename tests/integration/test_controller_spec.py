"""What the controller makes of a generation of a TrainingPipeline, with a real object store."""

from __future__ import annotations

from typing import Any

import pytest

from zhongjing.backends.kubernetes.trainingpipeline import REFRESH_ANNOTATION, Pipeline
from zhongjing.codes import Code
from zhongjing.codes import cluster as cluster_codes
from zhongjing.codes import data as data_codes
from zhongjing.codes import document as document_codes
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.controller.spec import Specs
from zhongjing.errors import ConflictError, ZhongjingError
from zhongjing.pipeline.plan import make_plan
from zhongjing.pipeline.records import read_desired, write
from zhongjing.pipeline.state import DesiredState
from zhongjing.storage.objects import ObjectStore

pytestmark = pytest.mark.integration

UID = "12345678-aaaa-bbbb-cccc-0123456789ab"


@pytest.fixture
def specs(store: ObjectStore, storage: Storage, bucket_uri: str) -> Specs:
    for name in ("texts", "rankings"):
        store.put(f"{bucket_uri}/data/{name}.jsonl", name.encode())
    return Specs(store, storage)


def document(bucket: str, **spec: Any) -> dict[str, Any]:
    return {
        "base": {"uri": "owner/base"},
        "sources": [
            {"name": "texts", "kind": "text", "uri": f"{bucket}/data/texts.jsonl"},
            {"name": "rankings", "kind": "ranking", "uri": f"{bucket}/data/rankings.jsonl"},
        ],
        "stages": {
            "pretrain": {"data": [{"source": "texts"}]},
            "rm": {"data": [{"source": "rankings"}]},
        },
        **spec,
    }


def pipeline(
    spec: dict[str, Any], generation: int = 1, uid: str = UID, name: str = "p", **metadata: Any
) -> Pipeline:
    given = {
        "name": name,
        "namespace": "ns",
        "uid": uid,
        "generation": generation,
        "resourceVersion": "1",
        "creationTimestamp": "2026-01-01T00:00:00Z",
    }
    return Pipeline({"metadata": given | metadata, "spec": spec})


def test_a_generation_is_made_once_and_kept(specs: Specs, store: ObjectStore, bucket_uri: str) -> None:
    annotations = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "mine": "kept"}
    first = pipeline(document(bucket_uri, seed=7, targets=["rm"]), annotations=annotations, labels={"a": "b"})
    made = specs.desired(first, None, 0.0)
    assert (made.uid, made.generation, made.targets) == ("12345678", 1, [Stage.RM])
    assert made.document.spec.seed == 7
    assert made.document.metadata.namespace == "ns"
    assert made.document.metadata.annotations == {"mine": "kept"}
    assert made.document.metadata.labels == {"a": "b"}
    assert made.document.spec.storage.uri == bucket_uri
    assert [len(source.objects) for source in made.sources] == [1, 1]
    stored = read_desired(store, specs.layout(first))
    assert stored is not None
    assert stored.value == made
    # Another process finds it made: the sources of that generation are what they were.
    store.put(f"{bucket_uri}/data/texts.jsonl", b"other texts")
    again = Specs(store, made.document.spec.storage).desired(first, None, 9.0)
    assert again == made


def test_a_later_generation_keeps_defaults_and_listings(
    specs: Specs, store: ObjectStore, bucket_uri: str
) -> None:
    first = pipeline(document(bucket_uri))
    made = specs.desired(first, None, 0.0)
    # An earlier version of zhongjing had another default.
    settings = made.document.spec.stages.rm
    assert settings is not None
    old = settings.model_copy(update={"learning_rate": 0.5})
    stages = made.document.spec.stages.model_copy(update={"rm": old})
    spec = made.document.spec.model_copy(update={"stages": stages})
    earlier = made.model_copy(update={"document": made.document.model_copy(update={"spec": spec})})
    stored = read_desired(store, specs.layout(first))
    assert stored is not None
    write(store, specs.layout(first).desired, earlier, stored.etag)
    store.put(f"{bucket_uri}/data/texts.jsonl", b"other texts")

    later = Specs(store, made.document.spec.storage)
    second = later.desired(pipeline(document(bucket_uri, seed=1), 2), None, 1.0)
    assert second.document.spec.stages.rm is not None
    assert second.document.spec.stages.rm.learning_rate == 0.5
    assert second.document.spec.seed == 1
    assert second.sources == made.sources
    assert second.created_at == made.created_at

    # Listed anew only where that is asked for, and only once.
    asked: dict[str, Any] = {"annotations": {REFRESH_ANNOTATION: "now"}}
    third = later.desired(pipeline(document(bucket_uri, seed=2), 3, **asked), None, 2.0)
    assert third.sources[0].digest != made.sources[0].digest
    assert third.sources[1] == made.sources[1]
    store.put(f"{bucket_uri}/data/texts.jsonl", b"texts once more")
    fourth = later.desired(pipeline(document(bucket_uri, seed=3), 4, **asked), None, 3.0)
    assert fourth.sources == third.sources


def test_an_object_made_again_is_a_new_pipeline(specs: Specs, store: ObjectStore, bucket_uri: str) -> None:
    old = specs.desired(pipeline(document(bucket_uri)), None, 0.0)
    layout = specs.layout(pipeline(document(bucket_uri)))
    for stage, attempt in (("rm", 2), ("rm", 11), ("pretrain", 3)):
        store.put(f"{layout.home}/{stage}/abc{attempt}/requests/a{attempt}.json", b"{}")
    store.put(f"{layout.home}/rm/abc/checkpoints/requests/a99.json", b"{}")
    store.put(f"{bucket_uri}/data/texts.jsonl", b"other texts")
    again = pipeline(document(bucket_uri), uid="87654321-0000")
    new = specs.desired(again, None, 0.0)
    assert new.uid == "87654321"
    assert new.sources[0].digest != old.sources[0].digest
    assert specs.previous(pipeline(document(bucket_uri))) is None
    assert specs.attempts(again) == {Stage.RM: 11, Stage.PRETRAIN: 3}


def test_artifacts_follow_the_store_of_the_release(
    specs: Specs, store: ObjectStore, storage: Storage, bucket_uri: str
) -> None:
    first = pipeline(document(bucket_uri, storage={"uri": "s3://somewhere-else", "region": "mars"}))
    made = specs.desired(first, None, 0.0)
    assert made.document.spec.storage == storage
    moved = storage.model_copy(update={"endpoint": "http://store.new.svc:8333"})
    assert Specs(store, moved).desired(first, None, 0.0).document.spec.storage == moved
    plans = [make_plan(each) for each in (made, Specs(store, moved).desired(first, None, 0.0))]
    assert [node.key for node in plans[0].values()] == [node.key for node in plans[1].values()]


def test_two_controllers_make_one_desired_state(specs: Specs, store: ObjectStore, bucket_uri: str) -> None:
    first = pipeline(document(bucket_uri))

    class Beaten(Specs):
        """Another controller's desired state arrives while this one is made."""

        def _make(self, *arguments: Any) -> DesiredState:
            made = super()._make(*arguments)
            specs.desired(first, None, 0.0)
            return made

    with pytest.raises(ConflictError):
        Beaten(store, store.storage).desired(first, None, 1.0)
    assert Beaten(store, store.storage).desired(first, None, 1.0).updated_at.startswith("1970-01-01T00:00:00")


@pytest.mark.parametrize(
    ("change", "code", "where"),
    [
        ({"base": {"uri": "/models/ziya"}}, cluster_codes.LOCAL_PATH, "spec.base.uri"),
        ({"base": {"uri": "s3://${HOME}/x"}}, document_codes.UNSET_VARIABLE, "spec.base.uri"),
        (
            {"stages": {"rm": {"from": "./adapter", "data": [{"source": "rankings"}]}}},
            cluster_codes.LOCAL_PATH,
            "spec.stages.rm.from",
        ),
        (
            {"stages": {"rm": {"from": "sft", "data": [{"source": "rankings"}]}}},
            document_codes.INVALID_REFERENCE,
            "spec.stages.rm.from",
        ),
        (
            {"stages": {"rm": {"data": [{"source": "nothing"}]}}},
            document_codes.INVALID_REFERENCE,
            "spec.stages.rm.data[0]",
        ),
        ({"targets": ["sft"]}, document_codes.UNKNOWN_STAGE, "spec.targets[0]"),
        ({"sede": 3}, document_codes.UNKNOWN_FIELD, "spec.sede"),
        ({"stages": {}}, document_codes.MISSING_FIELD, "spec.stages"),
    ],
)
def test_documents_that_cannot_be_run(
    specs: Specs, bucket_uri: str, change: dict[str, Any], code: Code, where: str
) -> None:
    with pytest.raises(ZhongjingError) as refused:
        specs.desired(pipeline(document(bucket_uri) | change), None, 0.0)
    assert (refused.value.code, refused.value.where) == (code, where)


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("/home/me/*.jsonl", cluster_codes.LOCAL_PATH),
        ("data.jsonl", cluster_codes.LOCAL_PATH),
        ("file:///data.jsonl", cluster_codes.LOCAL_PATH),
        ("example://rankings", cluster_codes.LOCAL_PATH),
        ("s3://{bucket}/nothing/*.jsonl", data_codes.SOURCE_NOT_FOUND),
        ("${DATA}/rankings.jsonl", document_codes.UNSET_VARIABLE),
    ],
)
def test_sources_that_cannot_be_read(specs: Specs, bucket_uri: str, uri: str, code: Code) -> None:
    spec = document(bucket_uri)
    spec["sources"][1]["uri"] = uri.format(bucket=bucket_uri.removeprefix("s3://")) if "{b" in uri else uri
    with pytest.raises(ZhongjingError) as refused:
        specs.desired(pipeline(spec), None, 0.0)
    assert refused.value.code is code
    assert refused.value.remedy


def test_names_that_are_folders_of_the_release(specs: Specs, bucket_uri: str) -> None:
    for name in ("cache", "uploads", "ray"):
        with pytest.raises(ZhongjingError) as refused:
            specs.desired(pipeline(document(bucket_uri), name=name), None, 0.0)
        assert refused.value.code is cluster_codes.RESERVED_NAME
