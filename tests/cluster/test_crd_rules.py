"""The CRD's rules against the models' validators and the stage graph, on documents drawn at random."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from tests.cluster.crd_probes import Document, base_document, refused_by_server
from tests.cluster.crd_support import with_crd
from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.resources import PIPELINES
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.errors import BackendError, ConfigError
from zhongjing.pipeline import graph

pytestmark = pytest.mark.cluster

DRAWS = 250
STAGES = ["pretrain", "sft", "rm", "ppo"]
KINDS = ["text", "dialogue", "ranking", "prompts"]
BASES: list[dict[str, Any]] = [
    {},
    {"tiny": {}},
    {"uri": "owner/name"},
    {"uri": "IDEA-CCNL/Ziya-LLaMA-13B-v1"},
    {"uri": "s3://abc/IDEA-CCNL/Ziya-LLaMA-13B-v1"},
    {"delta": "owner/delta", "root": "owner/root"},
    {"delta": "owner/delta", "root": "owner/root", "deltaRule": "fastchat"},
    {"delta": "IDEA-CCNL/Ziya-LLaMA-13B-v1", "root": "owner/root", "maxPositions": 4096},
    {"uri": "owner/name", "deltaRule": "fastchat"},
    {"uri": "owner/name", "maxPositions": 4096, "ropeScaling": {"ropeType": "linear", "factor": 2}},
    {"uri": "owner/name", "ropeScaling": {"ropeType": "yarn", "factor": 2}},
    {"uri": "owner/name", "ropeScaling": {"ropeType": "llama3", "factor": 2, "lowFreqFactor": 1}},
    {"tiny": {}, "maxPositions": 4096},
    {"delta": "owner/delta"},
    {"root": "owner/root"},
    {"uri": "owner/name", "tiny": {}},
    {"uri": "owner/name", "delta": "owner/delta", "root": "owner/root", "deltaRule": "fengshen"},
    {"tiny": {"heads": 6}},
    {"tiny": {"heads": 5}},
    {"tiny": {"kvHeads": 3}},
    {"tiny": {"kvHeads": 4}},
    {"tiny": {"hiddenSize": 100, "heads": 10, "kvHeads": 5}},
]
INPUTS = ["base", *STAGES, "evaluation", "s3://abc/model", "owner/name"]


@pytest.fixture(scope="module")
def api(module_namespace: str) -> Iterator[KubeApi]:
    with with_crd(module_namespace) as api:
        yield api


def stage_of(draw: random.Random, spec: dict[str, Any]) -> dict[str, Any]:
    """Settings of one of the stages that are there."""
    settings: dict[str, Any] = spec["stages"][draw.choice(sorted(spec["stages"]))]
    return settings


def change_base(draw: random.Random, spec: dict[str, Any]) -> None:
    spec["base"] = dict(draw.choice(BASES))


def change_source(draw: random.Random, spec: dict[str, Any]) -> None:
    source = draw.choice(spec["sources"])
    key, values = draw.choice(
        [("kind", KINDS), ("split", ["train", "test"]), ("name", ["talks", "ranked", "free", "new"])]
    )
    source[key] = draw.choice(values)


def change_data(draw: random.Random, spec: dict[str, Any]) -> None:
    names = draw.choices(["talks", "ranked", "free", "gone"], [4, 4, 2, 1], k=draw.randint(1, 3))
    weighed = draw.choice([0.0, 0.0, 0.5, 1.0])
    stage_of(draw, spec)["data"] = [
        {"source": name, "weight": 1} if draw.random() < weighed else {"source": name} for name in names
    ]


def change_input(draw: random.Random, spec: dict[str, Any]) -> None:
    stage_of(draw, spec)["from"] = draw.choice(INPUTS)


def change_reward(draw: random.Random, spec: dict[str, Any]) -> None:
    if "ppo" in spec["stages"]:
        spec["stages"]["ppo"]["reward"] = draw.choice(INPUTS)


def change_batch(draw: random.Random, spec: dict[str, Any]) -> None:
    if "ppo" in spec["stages"]:
        spec["stages"]["ppo"]["minibatches"] = draw.choice([1, 2, 3, 32, 64])
        if draw.random() < 0.5:
            spec["stages"]["ppo"]["globalBatchSize"] = draw.choice([6, 32, 64])


def change_targets(draw: random.Random, spec: dict[str, Any]) -> None:
    spec["targets"] = draw.choices([*STAGES, "evaluation"], [4, 4, 4, 4, 1], k=draw.randint(0, 3))


def change_precision(draw: random.Random, spec: dict[str, Any]) -> None:
    stage = stage_of(draw, spec)
    stage["precision"] = draw.choice(["auto", "fp16", "fp16", "bf16"])
    if draw.random() < 0.5:
        stage["resources"] = {"gpus": draw.choice([0, 1])}


def drop_stage(draw: random.Random, spec: dict[str, Any]) -> None:
    if len(spec["stages"]) > 1:
        del spec["stages"][draw.choice(sorted(spec["stages"]))]


CHANGES: list[Callable[[random.Random, dict[str, Any]], None]] = [
    change_base,
    change_source,
    change_data,
    change_input,
    change_reward,
    change_batch,
    change_targets,
    change_precision,
    drop_stage,
]


def drawn(seed: int) -> Document:
    draw = random.Random(seed)
    document = base_document()
    for change in draw.choices(CHANGES, k=draw.randint(1, 3)):
        change(draw, document["spec"])
    return document


def refused_here(document: Document) -> str:
    """What refuses the document when it is submitted to a machine of its own; empty if nothing does."""
    try:
        parsed = TrainingPipeline.model_validate(document)
        for stage in parsed.spec.stages.present():
            graph.needs(parsed, stage)  # of graph.check all but lengths, which no rule holds
        graph.targets(parsed)
    except (ValidationError, ConfigError) as error:
        return str(error)
    return ""


def test_the_rules_refuse_what_the_models_refuse_and_nothing_else(api: KubeApi) -> None:
    verdicts: Counter[bool] = Counter()
    for seed in range(DRAWS):
        document = drawn(seed)
        here = refused_here(document)
        there = refused_by_server(api, document)
        assert bool(here) == bool(there), (seed, here, there, document["spec"])
        verdicts[bool(here)] += 1
    assert min(verdicts.values()) > DRAWS / 4, verdicts


def test_the_largest_document_may_be_changed_while_it_runs(api: KubeApi) -> None:
    """The server stops rules that cost too much on the object at hand; none of them takes long, either."""
    document = base_document("largest")
    spec = document["spec"]
    names = [f"{'n' * 59}{index:04d}" for index in range(256)]
    spec["sources"] = [
        {"name": name, "uri": f"s3://abc/{'u' * 1000}", "kind": "dialogue", "testFraction": 0.5}
        for name in names
    ]
    spec["stages"].pop("rm")
    spec["stages"]["ppo"]["reward"] = "s3://abc/rm"
    for settings in spec["stages"].values():
        settings["data"] = [{"source": name} for name in reversed(names)]
    api.create(PIPELINES, document)
    running = {stage: {"state": "Running"} for stage in STAGES}
    api.patch(PIPELINES, "largest", {"status": {"stages": running}}, subresource="status")
    changed = api.patch(PIPELINES, "largest", {"spec": {"priority": 7}})
    assert changed["spec"]["priority"] == 7
    with pytest.raises(BackendError, match=r"spec\.stages\.sft: Forbidden: sft runs"):
        api.patch(PIPELINES, "largest", {"spec": {"stages": {"sft": {"epochs": 7}}}})
