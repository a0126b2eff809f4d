"""From a wanted state to a TrainingPipeline object and back; what a change of one is, and a refusal."""

from __future__ import annotations

from typing import Any

import pytest

from tests.releases import release_config
from tests.unit.cli.fakes import desired_state, user_document
from zhongjing.backends.kubernetes.documents import changes, refusal, to_desired, to_object
from zhongjing.backends.kubernetes.resources import Object
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.codes import cluster as cluster_codes
from zhongjing.codes import document as document_codes
from zhongjing.config.release import StorageRelease
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError
from zhongjing.pipeline.state import DesiredState
from zhongjing.storage.manifest import FrozenObject, FrozenSource

RELEASE = release_config(
    namespace="train",
    storage=StorageRelease(bundled=False, uri="s3://release", endpoint="http://store:9000"),
)
FROZEN = FrozenSource(
    name="sft", objects=[FrozenObject(uri="s3://corpora/sft.jsonl", size=1, digest="d")], digest="dd"
)


def wanted(user: dict[str, Any] | None = None, **more: Any) -> DesiredState:
    desired = desired_state()
    update = {"namespace": "train", **more}
    if user is not None:
        update["user"] = user
    return desired.model_copy(update=update)


def served(body: Object, *, generation: int = 1, status: Object | None = None, **metadata: Any) -> Pipeline:
    """The object as the API server would send it."""
    kept = {
        **body["metadata"],
        "uid": "0a1b2c3d-0000-0000-0000-000000000000",
        "generation": generation,
        "resourceVersion": "7",
        "creationTimestamp": "2026-01-02T03:04:05Z",
        **metadata,
    }
    return Pipeline({**body, "metadata": kept, **({"status": status} if status else {})})


def test_an_object_holds_what_was_written_and_no_default() -> None:
    user = user_document()
    user["metadata"]["labels"] = {"team": "a"}
    user["spec"]["stages"]["sft"]["learningRate"] = "1e-4"  # as YAML reads it
    user["spec"]["storage"] = {"uri": "s3://elsewhere", "caBundle": "/home/me/ca.pem"}
    user["spec"]["suspend"] = True
    user["spec"]["targets"] = ["rm"]
    made = to_object(wanted(user, targets=[Stage.SFT], reruns={Stage.SFT: 2, Stage.RM: 0}))
    assert made["metadata"] == {"name": "demo", "namespace": "train", "labels": {"team": "a"}}
    spec = made["spec"]
    assert spec["stages"] == {
        "sft": {"data": [{"source": "sft"}], "maxLength": 512, "learningRate": 1e-4},
        "rm": {"data": [{"source": "rm"}], "maxLength": 512},
    }
    assert spec["base"] == {"tiny": {}}
    # What the command line decides, and what the release decides.
    assert (spec["targets"], spec["reruns"]) == (["sft"], {"sft": 2})
    assert not {"storage", "suspend", "seed", "priority"} & set(spec)
    assert to_object(wanted(user, suspend=True))["spec"]["suspend"] is True


def test_an_object_is_read_as_its_release_runs_it() -> None:
    body = to_object(wanted(reruns={Stage.RM: 1}))
    desired = to_desired(served(body, generation=3), RELEASE)
    assert (desired.uid, desired.generation, desired.namespace) == ("0a1b2c3d", 3, "train")
    assert desired.document.spec.storage.uri == "s3://release"
    assert desired.targets == [Stage.SFT, Stage.RM]
    assert desired.reruns == {Stage.RM: 1}
    assert (desired.sources, desired.waiting, desired.suspend) == ([], [], False)
    # What the controller resolved counts: its defaults may be another release's.
    resolved = {**body["spec"], "seed": 5}
    told = served(body, generation=3, status={"observedGeneration": 3, "resolvedSpec": resolved})
    assert to_desired(told, RELEASE).document.spec.seed == 5
    old = served(body, generation=4, status={"observedGeneration": 3, "resolvedSpec": resolved})
    assert to_desired(old, RELEASE).document.spec.seed == 0


def test_frozen_sources_come_from_what_the_controller_stored() -> None:
    body = to_object(wanted())
    stored = wanted(sources=[FROZEN], generation=3)
    # Of this generation: all of it counts.
    same = to_desired(served(body, generation=3), RELEASE, stored)
    assert same.sources == [FROZEN]
    # Of an earlier one: the sources that are still the same.
    newer = to_desired(served(body, generation=4), RELEASE, stored)
    assert (newer.generation, newer.sources) == (4, [FROZEN])
    moved = to_object(wanted())
    moved["spec"]["sources"][0]["uri"] = "s3://corpora/other.jsonl"
    assert to_desired(served(moved, generation=4), RELEASE, stored).sources == []
    # Of an object of the same name that was deleted: nothing.
    other = stored.model_copy(update={"uid": "ffffffff"})
    assert to_desired(served(body, generation=3), RELEASE, other).sources == []


def test_an_object_that_nobody_can_run_can_be_read() -> None:
    body = to_object(wanted())
    body["spec"]["stages"]["sft"]["data"] = [{"source": "nobody"}]
    body["metadata"]["name"] = "A name that no document may have, but an object of another version has"
    desired = to_desired(served(body), RELEASE)
    assert desired.pipeline.startswith("A name")
    assert desired.document.spec.stages.present() == []
    assert desired.targets == []


def test_a_change_is_fenced_by_the_generation_and_leaves_others_labels() -> None:
    body = to_object(wanted())
    there = served(body, generation=4, labels={"argo": "x"}, annotations={"kubectl.kubernetes.io/y": "z"})
    assert changes(there, body) == []
    labelled = {**body, "metadata": {**body["metadata"], "labels": {"team": "a"}}}
    assert changes(there, labelled) == [
        {"op": "test", "path": "/metadata/generation", "value": 4},
        {"op": "add", "path": "/metadata/labels", "value": {"argo": "x", "team": "a"}},
    ]
    seeded = {**body, "spec": {**body["spec"], "seed": 3}}
    fence, replace = changes(there, seeded)
    assert fence["op"] == "test"
    assert replace == {"op": "replace", "path": "/spec", "value": seeded["spec"]}


def test_a_storage_that_was_written_by_hand_stays() -> None:
    body = to_object(wanted())
    spec = {**body["spec"], "storage": {"uri": "s3://by-hand"}}
    there = served({**body, "spec": spec})
    assert changes(there, body) == []
    _, replace = changes(there, {**body, "spec": {**body["spec"], "seed": 3}})
    assert replace["value"]["storage"] == {"uri": "s3://by-hand"}


REFUSALS = [
    (
        'strict decoding error: unknown field "spec.stages.rm.brandNew"',
        (document_codes.UNKNOWN_FIELD, "spec.stages.rm.brandNew", "have no such field", "update the CRD"),
    ),
    (
        'TrainingPipeline.training.zhongjing.dev "demo" is invalid: spec.stages.rm: Forbidden: rm runs, its '
        "settings cannot be changed: suspend the pipeline first (spec.suspend: true), change it when ...",
        (
            document_codes.STAGE_RUNS,
            "spec.stages.rm",
            "cannot be changed",
            "`zhongjing stop demo`, then submit",
        ),
    ),
    (
        'TrainingPipeline.training.zhongjing.dev "demo" is invalid: spec.seed: Invalid value: -1: '
        "spec.seed in body should be greater than or equal to 0",
        (document_codes.INVALID_VALUE, "spec.seed", "Invalid value: -1", None),
    ),
    (
        'admission webhook "policy" denied the request',
        (cluster_codes.OBJECT_REFUSED, "train/x", "admission webhook", None),
    ),
]


@pytest.mark.parametrize(("message", "told"), REFUSALS, ids=["unknown", "running", "invalid", "policy"])
def test_a_refusal_names_the_place_and_what_to_do(message: str, told: tuple[Any, ...]) -> None:
    code, where, words, remedy = told
    error = refusal(BackendError(message, code=cluster_codes.OBJECT_REFUSED, where="train/x"), "demo")
    assert (error.code, error.where) == (code, where)
    assert words in error.message
    assert "suspend the pipeline" not in error.message
    if remedy is not None:
        assert remedy in (error.remedy or "")


def test_other_errors_stay_what_they_are() -> None:
    error = BackendError("no", code=cluster_codes.FORBIDDEN)
    assert refusal(error, "demo") is error
