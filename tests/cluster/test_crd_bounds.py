"""What the models take, the API server takes, and nothing else: every field, at its edges."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster.crd_probes import (
    Document,
    base_document,
    documents,
    dotted,
    group,
    inside,
    leaves,
    mistyped,
    outside,
    put,
    refused_by_models,
    refused_by_server,
)
from tests.cluster.crd_support import with_crd
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES
from zhongjing.config import keys
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import SHORTEST_PROMPT, TRAINING, Stage

pytestmark = pytest.mark.cluster

SIDES = ("low", "high")


@pytest.fixture(scope="module")
def api(module_namespace: str) -> Iterator[KubeApi]:
    with with_crd(module_namespace) as api:
        yield api


def at_the_edges(side: str) -> dict[str, Document]:
    """Every field at one edge, in one document for each way of naming the base."""
    found = documents()
    for leaf in leaves():
        value = inside(leaf, side)
        if value is not None:
            put(found[group(leaf.path)], leaf.path, value)
    # Of these pairs the first must be less: each has its edge where the other leaves room.
    scaling = found["uri"]["spec"]["base"]["ropeScaling"]
    for less, more in (("lowFreqFactor", "highFreqFactor"), ("betaSlow", "betaFast")):
        scaling[less if side == "high" else more] = 1.0
    made = found["made"]["spec"]["sources"][-1]["made"]
    if "against" in made:
        made["steps"] = ["dedup"]
    for document in found.values():
        spec = document["spec"]
        for name in TRAINING:  # of a pipeline's sources, which a probe knows nothing of
            spec["stages"][name]["data"][0]["source"] = "ranked" if name is Stage.RM else "talks"
        if side == "low" and document is found["tiny"]:
            spec["targets"] = [Stage.PRETRAIN.value]  # the first there is stands in another document
        if side == "high" and document is found["tiny"]:
            # 1000000 is no multiple of 1024: minibatches has its edge in a document of its own.
            spec["stages"]["ppo"]["minibatches"] = 1000
            # Response and prompt share maxLength.
            spec["stages"]["ppo"]["maxNewTokens"] = spec["stages"]["ppo"]["maxLength"] - SHORTEST_PROMPT
    return found


@pytest.mark.parametrize("side", SIDES)
def test_every_field_at_its_edge_is_taken_by_both(api: KubeApi, side: str) -> None:
    for way, document in at_the_edges(side).items():
        assert refused_by_models(document) == set(), way
        assert refused_by_server(api, document) == set(), way


def test_minibatches_at_its_edge_is_taken_by_both(api: KubeApi) -> None:
    document = base_document()
    put(document, ("spec", "stages", "ppo", "minibatches"), 1024)
    put(document, ("spec", "stages", "ppo", "globalBatchSize"), 1024 * 976)
    assert refused_by_models(document) == refused_by_server(api, document) == set()


@pytest.mark.parametrize("side", SIDES)
def test_every_field_beyond_its_edge_is_refused_by_both(api: KubeApi, side: str) -> None:
    found = documents()
    expected: dict[str, set[str]] = {way: set() for way in found}
    for leaf in leaves():
        value = outside(leaf, side)
        if value is not None:
            put(found[group(leaf.path)], leaf.path, value)
            expected[group(leaf.path)].add(dotted(leaf.path))
    assert len(expected["tiny"]) > 150  # all stages were probed
    for way, document in found.items():
        if expected[way]:
            assert refused_by_models(document) == expected[way], way
            # Numbers that are out of bounds do not keep the server from its rules: 0 is not less than 0.
            rules = {"spec.base.ropeScaling"} if way == "uri" and side == "low" else set()
            assert refused_by_server(api, document) == expected[way] | rules, way


def test_a_value_of_another_type_is_refused_by_both(api: KubeApi) -> None:
    elements = [leaf for leaf in leaves() if not any(isinstance(part, int) for part in leaf.path)]
    found = documents()
    expected: dict[str, set[str]] = {way: set() for way in found}
    for leaf in elements:
        put(found[group(leaf.path)], leaf.path, mistyped(leaf))
        expected[group(leaf.path)].add(dotted(leaf.path))
    for way, document in found.items():
        assert refused_by_models(document) == expected[way], way
        assert refused_by_server(api, document) == expected[way], way


def test_an_unknown_field_is_refused_by_both_wherever_it_stands(api: KubeApi) -> None:
    document = base_document()
    parents = {leaf.path[:-1] for leaf in leaves() if group(leaf.path) == "tiny" and leaf.path[-1] != 0}
    expected = set()
    for parent in sorted(parents, key=dotted):
        put(document, (*parent, "nonsense"), 1)
        expected.add(dotted((*parent, "nonsense")))
    assert refused_by_models(document) == expected
    assert refused_by_server(api, document) == expected


@pytest.mark.parametrize(
    ("path", "fewest", "most", "element"),
    [
        ("targets", 0, 8, "sft"),
        ("stages.sft.data", 1, 256, {"source": "talks"}),
        ("stages.sft.lora.targetModules", 1, 64, "q_proj"),
    ],
)
def test_lists_have_the_length_that_the_models_have(
    api: KubeApi, path: str, fewest: int, most: int, element: Any
) -> None:
    where = ("spec", *path.split("."))
    for count in (fewest - 1, fewest, most, most + 1):
        if count < 0:
            continue
        document = base_document()
        put(document, where, [element] * count)
        wanted = set() if fewest <= count <= most else {dotted(where)}
        assert refused_by_models(document) == wanted, count
        assert refused_by_server(api, document) == wanted, count


def test_as_many_sources_as_the_models_take(api: KubeApi) -> None:
    document = base_document()
    sources = document["spec"]["sources"]
    sources += [{"name": f"n{index}", "uri": "s3://abc/d", "kind": "text"} for index in range(253)]
    # All of them are read by all stages that can: the rules stay within what the server spends on an object.
    document["spec"]["stages"]["pretrain"]["data"] = [
        {"source": source["name"]} for source in sources if source["kind"] == "text"
    ]
    assert len(sources) == 256
    assert refused_by_models(document) == refused_by_server(api, document) == set()
    sources.append({"name": "more", "uri": "s3://abc/d", "kind": "text"})
    assert refused_by_models(document) == refused_by_server(api, document) == {"spec.sources"}


@pytest.mark.parametrize("side", SIDES)
def test_what_was_stored_is_what_was_meant(api: KubeApi, side: str) -> None:
    """Numbers, quantities and text come back as they were: no stage is run again for a detour by etcd."""
    for way, document in at_the_edges(side).items():
        document["metadata"]["name"] = f"stored-{side}-{way}"
        api.create(PIPELINES, document)
        stored = api.get(PIPELINES, document["metadata"]["name"])
        assert stored is not None
        meant = TrainingPipeline.model_validate(document)
        found = TrainingPipeline.model_validate({**document, "spec": stored["spec"]})
        assert found == meant
        for stage in meant.spec.stages.present():
            before, after = meant.spec.stages.job(stage), found.spec.stages.job(stage)
            assert before is not None
            assert after is not None
            assert keys.digest(keys.training_fields(after)) == keys.digest(keys.training_fields(before))
        assert set(meant.spec.reruns) == (set(Stage) if way == "tiny" else set())
