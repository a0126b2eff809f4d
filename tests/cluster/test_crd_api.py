"""The CRD on a real API server: good documents are taken, bad ones refused with field and reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.cluster.crd_probes import Document, base_document
from tests.cluster.crd_support import ROOT, apply_crd, conditions_of, with_crd
from tests.cluster.kube import Cluster
from tools import crd
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES
from zhongjing.config import resolve
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.errors import BackendError

pytestmark = pytest.mark.cluster

EXAMPLES = sorted((ROOT / "k8s" / "examples").glob("*.yaml"))
STAMP = "2026-01-02T03:04:05.678Z"


@pytest.fixture(scope="module")
def api(module_namespace: str) -> Iterator[KubeApi]:
    with with_crd(module_namespace) as api:
        yield api


def changed(*overrides: str, name: str = "x") -> Document:
    """The smallest document with some fields set."""
    return dict(resolve.apply_overrides(base_document(name), overrides))


def refusal(api: KubeApi, document: Document) -> str:
    with pytest.raises(BackendError) as caught:
        api.create(PIPELINES, document, dry_run=True)
    return str(caught.value)


def test_the_api_server_finds_nothing_wrong_with_the_crd(api: KubeApi) -> None:
    definition = apply_crd(api)
    found = conditions_of(definition)
    assert found["Established"] == "True"
    assert found["NamesAccepted"] == "True"
    assert found.get("NonStructuralSchema", "False") == "False"
    assert not {"KubernetesAPIApprovalPolicyConformant", "Terminating"} & found.keys()
    # What was sent is what is served: no part was dropped as unknown.
    sent = crd.crd()["spec"]
    served = definition["spec"]["versions"][0]
    assert served["schema"] == json.loads(json.dumps(sent["versions"][0]["schema"]))
    assert served["subresources"] == {"status": {}}


def test_a_second_apply_changes_nothing(api: KubeApi) -> None:
    before = apply_crd(api)["metadata"]["generation"]
    assert apply_crd(api)["metadata"]["generation"] == before


@pytest.mark.parametrize("name", resolve.recipe_names())
def test_recipes_are_taken(api: KubeApi, name: str) -> None:
    taken = api.create(PIPELINES, dict(resolve.recipe(name)), dry_run=True)
    assert taken["spec"] == resolve.recipe(name)["spec"]


@pytest.mark.parametrize("path", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_examples_are_taken(api: KubeApi, path: Any) -> None:
    example = resolve.load_document(path)
    taken = api.create(PIPELINES, dict(example), dry_run=True)
    found = TrainingPipeline.model_validate({**example, "spec": taken["spec"]})
    assert found == resolve.resolve(example)


def test_a_complete_document_is_taken(api: KubeApi) -> None:
    """What `zhongjing config show` prints has every default written out."""
    document = resolve.resolve(resolve.recipe("zhongjing-13b"))
    body = document.model_dump(mode="json", exclude_none=True)
    api.create(PIPELINES, body, dry_run=True)


def test_null_is_the_same_as_leaving_a_field_out(api: KubeApi) -> None:
    """`revision:` without a value is null in YAML."""
    document = changed("spec.stages.sft.seed=null", "spec.storage.endpoint=null")
    taken = api.create(PIPELINES, document, dry_run=True)
    assert "seed" not in taken["spec"]["stages"]["sft"]
    assert (
        TrainingPipeline.model_validate(document).spec
        == TrainingPipeline.model_validate({**document, "spec": taken["spec"]}).spec
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["spec.stages.sft.learningRte=1"], 'unknown field "spec.stages.sft.learningRte"'),
        (["spec.stages.dance={data: []}"], 'unknown field "spec.stages.dance"'),
        (["spec.stages.sft.epochs=many"], 'spec.stages.sft.epochs in body must be of type number: "string"'),
        (["spec.stages.sft.epochs=0"], "spec.stages.sft.epochs in body should be greater than 0"),
        (
            ["spec.stages.sft.precision=fp8"],
            'Unsupported value: "fp8": supported values: "auto", "fp32", "fp16", "bf16"',
        ),
        (["spec.stages.sft.data=[]"], "spec.stages.sft.data: Invalid value: 0"),
        (["spec.stages.sft={}"], "spec.stages.sft.data: Required value"),
        (
            ["spec.stages={}"],
            "spec.stages: Invalid value: give at least one stage: construct, pretrain, sft, rm, ppo",
        ),
        (["spec.base={}"], "spec.base: Invalid value: give exactly one of uri, delta with root, or tiny"),
        (
            ["spec.base.uri=a/b"],
            "spec.base: Invalid value: give exactly one of uri, delta with root, or tiny",
        ),
        (["spec.base={delta: a/b}"], "delta and root belong together"),
        (
            ["spec.base={uri: idea-ccnl/ziya-llama-13b-v1/}"],
            "spec.base.uri: Invalid value: this model is published",
        ),
        (["spec.base.tiny={hiddenSize: 100, heads: 3}"], "spec.base.tiny: Invalid value: hiddenSize must be"),
        (["spec.sources.ranked.name=talks"], 'spec.sources[1]: Duplicate value: {"name":"talks"}'),
        (["spec.sources.free.name=Free"], "spec.sources[2].name: Invalid value"),
        (["spec.stages.sft.data=[{source: gone}]"], "sft names a source that is not in spec.sources"),
        (
            ["spec.stages.sft.data=[{source: ranked}]"],
            "sft names a source of another kind: it reads dialogue",
        ),
        (["spec.sources.talks.split=test"], "sft names a source that is test data (split: test)"),
        (
            ["spec.stages.sft.data=[{source: talks, weight: 1}, {source: talks}]"],
            "give a weight to every source",
        ),
        (
            ["spec.stages.ppo.minibatches=5"],
            "spec.stages.ppo.globalBatchSize: Invalid value: globalBatchSize must",
        ),
        (
            ["spec.stages.rm.from=sft"],
            "spec.stages.rm.from: Invalid value: from of rm is base or pretrain, a folder",
        ),
        (["spec.targets=[dance]"], 'spec.targets[0]: Unsupported value: "dance"'),
        (["spec.stages.sft.resources.memory=80 GB"], "spec.stages.sft.resources.memory: Invalid value"),
        (["spec.reruns.dance=1"], 'unknown field "spec.reruns.dance"'),
        (["metadata.name=" + "n" * 41], "metadata.name: Too long: may not be more than 40"),
        (["metadata.name=a.b"], 'metadata.name: Invalid value: "a.b"'),
    ],
)
def test_a_bad_document_is_refused_with_field_and_reason(
    api: KubeApi, overrides: list[str], expected: str
) -> None:
    assert expected in refusal(api, changed(*overrides))


@pytest.mark.parametrize(
    ("removed", "added", "expected"),
    [
        ("sft", "spec.seed=0", "spec.stages.ppo: Required value: ppo needs stage sft"),
        ("rm", "spec.seed=0", "spec.stages.ppo: Required value: ppo needs stage rm"),
        ("ppo", "spec.targets=[sft, ppo]", "spec.targets: Invalid value: the pipeline has no stage ppo"),
        (
            "pretrain",
            "spec.stages.rm.from=pretrain",
            "spec.stages.rm.from: Invalid value: the pipeline has no stage",
        ),
    ],
)
def test_a_stage_without_its_input_is_refused(api: KubeApi, removed: str, added: str, expected: str) -> None:
    document = changed(added)
    del document["spec"]["stages"][removed]
    assert expected in refusal(api, document)


def test_a_stage_may_start_from_elsewhere(api: KubeApi) -> None:
    document = changed("spec.stages.ppo.from=s3://abc/sft", "spec.stages.ppo.reward=s3://abc/rm")
    for stage in ("pretrain", "sft", "rm"):
        del document["spec"]["stages"][stage]
    api.create(PIPELINES, document, dry_run=True)


def test_ten_thousand_sources_are_refused_in_few_words(api: KubeApi) -> None:
    document = base_document("many")
    document["spec"]["sources"] += [
        {"name": f"n{index}", "uri": f"s3://abc/{index}", "kind": "text"} for index in range(10000)
    ]
    told = refusal(api, document)
    assert "spec.sources: Too many: 10003: must have at most 256 items" in told
    assert len(told) < 1000


def write_status(api: KubeApi, name: str, **states: str) -> None:
    stages = {stage: {"state": state, "attempt": 1} for stage, state in states.items()}
    api.patch(PIPELINES, name, {"status": {"stages": stages}}, subresource="status")


def edited(api: KubeApi, name: str, *overrides: str) -> None:
    """Tries a change without making it."""
    found = api.get(PIPELINES, name)
    assert found is not None
    document = {key: found[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    api.replace(PIPELINES, dict(resolve.apply_overrides(document, overrides)), dry_run=True)


# Each would give the running attempt another key, or another request than the one that it runs on.
FROZEN = {
    "spec.stages.sft.learningRate=1e-3": "spec.stages.sft: Forbidden: sft runs, its settings",
    "spec.stages.sft.workers=3": "spec.stages.sft: Forbidden: sft runs",
    "spec.stages.sft.lora.rank=3": "spec.stages.sft: Forbidden: sft runs",
    "spec.stages.sft=null": "spec.stages.sft: Forbidden: sft runs",
    "spec.seed=7": "spec.seed: Forbidden: a stage runs, seed cannot be changed",
    "spec.base.tiny.layers=3": "spec.base: Forbidden: a stage runs, base cannot be changed",
    "spec.base={uri: a/b}": "spec.base: Forbidden: a stage runs, base cannot be changed",
    "spec.storage.uri=s3://elsewhere": "spec.storage: Forbidden: a stage runs, storage cannot be changed",
    "spec.sources.talks.uri=s3://abc/other": "spec.sources: Forbidden: a stage that runs reads a source",
    "spec.sources.held.uri=s3://abc/other": "spec.sources: Forbidden: a stage that runs reads a source",
    "spec.sources.held.split=train": "spec.sources: Forbidden: a stage that runs reads a source",
    "spec.sources.free.split=test": "spec.sources: Forbidden: a stage runs, no source can become test data",
    "spec.sources.free.testFraction=0.1": "spec.sources: Forbidden: a stage runs, no source can become",
}
FREE = [
    "spec.suspend=true",
    "spec.targets=[sft]",
    "spec.priority=3",
    "spec.backoffLimit=3",
    "spec.activeDeadlineSeconds=60",
    "spec.progressDeadlineSeconds=60",
    "spec.ttlSecondsAfterFinished=60",
    "spec.deletionPolicy=Delete",
    "spec.managedBy=other",
    "spec.reruns.pretrain=1",
    "spec.stages.pretrain.epochs=2",
    "spec.stages.rm.workers=3",
    "spec.stages.ppo=null",
    "spec.sources.ranked.uri=s3://abc/other",
    "spec.sources.free.wait=true",
    "metadata.labels={a: b}",
]


@pytest.fixture(scope="module")
def running(api: KubeApi) -> str:
    """A pipeline with a seed and test data, whose states the tests write."""
    held = "{name: held, uri: 's3://abc/held', kind: dialogue, split: test}"
    document = changed("spec.seed=1", name="running")
    document["spec"]["sources"].append(yaml.safe_load(held))
    api.create(PIPELINES, document)
    return "running"


@pytest.mark.parametrize("state", ["Queued", "Running"])
def test_what_a_running_stage_reads_is_refused_a_change(api: KubeApi, running: str, state: str) -> None:
    write_status(api, running, pretrain="Succeeded", sft=state, rm="Pending", ppo="Pending")
    if state == "Queued":
        # What Ray does not have yet, because its head is not there, say, reads nothing.
        for override in FROZEN:
            if override != "spec.stages.sft=null":  # ppo needs it
                edited(api, running, override)
        taken = {"stages": {"sft": {"confirmed": True}}}
        api.patch(PIPELINES, running, {"status": taken}, subresource="status")
    for override, expected in FROZEN.items():
        with pytest.raises(BackendError) as caught:
            edited(api, running, override)
        assert expected in str(caught.value), override
        assert "suspend the pipeline first (spec.suspend: true)" in str(caught.value)
    for override in FREE:
        edited(api, running, override)
    with pytest.raises(BackendError, match=r"spec\.sources: Forbidden"):
        edited(api, running, "spec.sources=[]", "spec.stages.sft.data=[]")


@pytest.mark.parametrize(
    "state", ["Suspended", "Failed", "Succeeded", "Skipped", "Pending", "WaitingForInput", "Blocked"]
)
def test_nothing_is_refused_a_change_when_no_stage_runs(api: KubeApi, running: str, state: str) -> None:
    write_status(api, running, pretrain="Succeeded", sft=state, rm=state, ppo=state)
    for override in [*FROZEN, *FREE]:
        if override != "spec.stages.sft=null":  # ppo needs it
            edited(api, running, override)
    edited(api, running, "spec.stages.sft=null", "spec.stages.ppo=null")


def test_a_pipeline_that_nobody_looked_at_may_change(api: KubeApi) -> None:
    api.create(PIPELINES, base_document("unseen"))
    edited(api, "unseen", "spec.seed=7", "spec.stages.sft.epochs=2")


def test_the_status_is_written_by_its_subresource_only(api: KubeApi) -> None:
    document = base_document("status") | {"status": {"stage": "sft"}}
    made = api.create(PIPELINES, document)
    assert "status" not in made
    generation = made["metadata"]["generation"]
    written = api.patch(
        PIPELINES,
        "status",
        {
            "spec": {"seed": 5},
            "status": {
                "stage": "sft",
                "resolvedSpec": {"anything": {"is": ["kept", 1.5]}},
                "stages": {"sft": {"state": "Running", "fields": {"a": [1, {"b": None}]}}},
            },
        },
        subresource="status",
    )
    assert "seed" not in written["spec"]
    assert written["metadata"]["generation"] == generation
    assert written["status"]["resolvedSpec"] == {"anything": {"is": ["kept", 1.5]}}
    assert written["status"]["stages"]["sft"]["fields"]["a"][0] == 1
    with pytest.raises(BackendError, match=r'unknown field "status.stages.sft.stat"'):
        api.patch(PIPELINES, "status", {"status": {"stages": {"sft": {"stat": 1}}}}, subresource="status")
    with pytest.raises(BackendError, match=r"status.conditions\[1\]: Duplicate value"):
        api.patch(
            PIPELINES,
            "status",
            {"status": {"conditions": [{"type": "Failed", "status": "True"}] * 2}},
            subresource="status",
        )


def test_kubectl_shows_the_columns_and_waits_for_conditions(
    api: KubeApi, cluster: Cluster, module_namespace: str
) -> None:
    api.create(PIPELINES, base_document("shown"))
    shown = {
        "targets": "sft,rm",
        "stage": "sft",
        "state": "Running",
        "progress": "42%",
        "eta": "3m20s",
        "metric": "loss 1.05",
    }
    held = {"type": "Complete", "status": "True", "reason": "Done", "message": "all of it", "remedy": "none"}
    other = {"type": "Failed", "status": "False", "reason": "Never", "message": "hidden"}
    conditions = [{"lastTransitionTime": STAMP, **each} for each in (other, held)]
    status = {**shown, "conditions": conditions, "startTime": STAMP}
    api.patch(PIPELINES, "shown", {"status": status}, subresource="status")

    header, row = cluster.kubectl("get", "tp", "shown", namespace=module_namespace).splitlines()
    assert " ".join(header.split()) == "NAME TARGETS STAGE STATE PROGRESS ETA METRIC AGE"
    assert row.split()[:-1] == ["shown", "sft,rm", "sft", "Running", "42%", "3m20s", "loss", "1.05"]
    wide = cluster.kubectl("get", "zhongjing", "shown", "--output", "wide", namespace=module_namespace)
    assert wide.splitlines()[0].split()[-2:] == ["REASON", "MESSAGE"]
    assert wide.rstrip().endswith("Done     all of it")
    cluster.kubectl(
        "wait", "tp/shown", "--for=condition=Complete", "--timeout=5s", namespace=module_namespace
    )
    told = cluster.kubectl("explain", "tp.spec.stages.ppo.maxNewTokens")
    assert "Longest response. Unit: tokens. Default: 512." in told
