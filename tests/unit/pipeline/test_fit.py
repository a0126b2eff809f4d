"""Which stages the plan refuses, what it leaves open, and that its remedies are fields that help."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.unit.pipeline.support import LLAMA_13B, user_document
from zhongjing.codes.document import DOES_NOT_FIT
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import apply_overrides, recipe, resolve
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.pipeline.fit import Verdict, judge
from zhongjing.planning.hardware import GIB, gpus_of
from zhongjing.planning.stage_plan import Terms

FOUR_80 = Terms(gpus=gpus_of(4, 80 * GIB))


def nothing(uri: str) -> bytes | None:
    return None


def recipe_with(*overrides: str) -> TrainingPipeline:
    return resolve(apply_overrides(recipe("zhongjing-13b"), overrides))


def looked_at(document: TrainingPipeline, terms: Terms = FOUR_80, read: Any = nothing) -> Verdict:
    return judge(document, document.spec.stages.present(), lambda settings: terms, read)


def test_the_recipe_is_refused_nothing() -> None:
    assert looked_at(recipe_with()) == Verdict()


def test_what_cannot_fit_is_refused_with_fields_that_help() -> None:
    written = apply_overrides(recipe("zhongjing-13b"), ["spec.stages.pretrain.optimizer.offload=none"])
    error = looked_at(resolve(written)).error()
    assert error is not None
    assert (error.code, error.where, error.exit_code) == (DOES_NOT_FIT, "spec.stages.pretrain", 2)
    assert re.search(r"would need \d+\.\d GiB of 78\.0 GiB", error.message)
    fields = re.findall(r"spec\.stages\.\S+=[^\s,;]+", error.remedy or "")
    assert fields[0] == "spec.stages.pretrain.optimizer.offload=cpu"
    assert (error.remedy or "").endswith("--force starts it all the same")
    assert not looked_at(resolve(apply_overrides(written, fields[:1]))).unfit


def test_every_stage_that_does_not_fit_is_named() -> None:
    verdict = looked_at(recipe_with(), Terms(gpus=gpus_of(4, 16 * GIB)))
    assert [each.stage for each in verdict.unfit] == [Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO]
    error = verdict.error()
    assert error is not None
    assert "spec.stages.ppo: ppo cannot fit" in error.message


def test_only_stages_that_will_run_are_planned() -> None:
    document = recipe_with("spec.stages.pretrain.optimizer.offload=none")
    assert judge(document, [Stage.SFT], lambda settings: FOUR_80, nothing).unfit == ()


@pytest.mark.parametrize(
    ("base", "terms", "unknown"),
    [
        ({"uri": "someone/unheard-of"}, FOUR_80, "the sizes of the base"),
        ({"uri": "s3://models/secret"}, FOUR_80, "the sizes of the base"),
        ({"uri": "meta-llama/Llama-2-13b-hf"}, Terms(), "the memory of a GPU"),
    ],
)
def test_what_is_not_known_is_said_and_never_refused(
    base: dict[str, Any], terms: Terms, unknown: str
) -> None:
    user = user_document(stages=("sft",), sft={"resources": {"gpus": 1}, "microBatchSize": 8})
    user["spec"]["base"] = base
    verdict = looked_at(resolve(user), terms)
    assert verdict.error() is None
    (said,) = verdict.unknown
    assert said == f"whether sft fits is not known: {unknown} {'are' if 'sizes' in unknown else 'is'}" + (
        " not known here"
    )


@pytest.mark.parametrize("place", ["store", "folder", "hub cache"])
def test_the_sizes_are_read_where_they_can_be_reached(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = json.dumps(LLAMA_13B).encode()
    objects: dict[str, bytes] = {}
    reference = "someone/unheard-of"
    if place == "store":
        reference, objects = "s3://models/m/", {"s3://models/m/config.json": data}
    elif place == "folder":
        reference = str(tmp_path)
        (tmp_path / "config.json").write_bytes(data)
    else:  # as huggingface_hub lays it out
        model = tmp_path / "hub" / "models--someone--unheard-of"
        (model / "refs").mkdir(parents=True)
        (model / "refs" / "main").write_text("c0ffee")
        (model / "snapshots" / "c0ffee").mkdir(parents=True)
        (model / "snapshots" / "c0ffee" / "config.json").write_bytes(data)
        monkeypatch.setenv("HF_HOME", str(tmp_path))
        monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    user = user_document(stages=("sft",), sft={"resources": {"gpus": 1}})
    user["spec"]["base"] = {"uri": reference}
    verdict = looked_at(resolve(user), Terms(gpus=gpus_of(1, 16 * GIB)), objects.get)
    assert [each.stage for each in verdict.unfit] == [Stage.SFT]


def test_a_stage_that_starts_elsewhere_is_planned_by_its_own_model() -> None:
    user = user_document(stages=("sft",), sft={"resources": {"gpus": 1}, "from": "s3://models/m"})
    user["spec"]["base"] = {"tiny": {}}
    terms = Terms(gpus=gpus_of(1, 16 * GIB))
    assert looked_at(resolve(user), terms).unknown
    read = {"s3://models/m/config.json": json.dumps(LLAMA_13B).encode()}.get
    assert looked_at(resolve(user), terms, read).unfit


@pytest.mark.parametrize(
    ("resources", "terms", "field"),
    [
        ({"cpus": 1, "memory": "256Mi"}, Terms(machine=64 * GIB), "resources.memory="),
        ({"cpus": 1}, Terms(machine=GIB), "workers=1"),
        ({"cpus": 1, "memory": "256Mi"}, Terms(host=64 * GIB), "resources.memory="),
    ],
)
def test_workers_without_a_gpu_share_the_memory_of_the_host(
    resources: dict[str, Any], terms: Terms, field: str
) -> None:
    user = user_document(stages=("sft",), sft={"resources": resources, "workers": 2})
    user["spec"]["base"] = {"tiny": {}}
    error = looked_at(resolve(user), terms).error()
    assert error is not None
    assert f"spec.stages.sft.{field}" in (error.remedy or "")

    def plenty(settings: AnySettings) -> Terms:
        return Terms(machine=64 * GIB)

    user["spec"]["stages"]["sft"].pop("resources")
    assert judge(resolve(user), [Stage.SFT], plenty, nothing) == Verdict()
