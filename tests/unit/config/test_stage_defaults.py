"""``spec.stages.defaults``: what all stages share is written once."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.pipeline.support import desired_state, user_document
from zhongjing.config.defaults import names
from zhongjing.config.resolve import Frozen, apply_overrides, parse_document, resolve
from zhongjing.config.schema import json_schema
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline.plan import make_plan

TEXT = """
metadata: {name: demo}
spec:
  base: {uri: owner/name}
  sources:
    - {name: talks, uri: t, kind: dialogue}
    - {name: ranked, uri: r, kind: ranking}
  stages:
    defaults:
      precision: bf16
      resources: {gpus: 1, memory: 8Gi}
      lora: {rank: 4}
      quantization: nf4
    pretrain: {data: [{source: talks}]}
    sft:
      data: [{source: talks}]
      precision: fp32
      resources: {memory: 4Gi}
    rm: {data: [{source: ranked}], lora: {dropout: 0.5}}
"""


def test_defaults_hold_for_every_stage_and_what_a_stage_says_wins() -> None:
    stages = resolve(parse_document(TEXT, "my.yaml")).spec.stages
    assert stages.pretrain is not None
    assert stages.sft is not None
    assert stages.rm is not None
    assert [stage.precision for stage in (stages.pretrain, stages.sft, stages.rm)] == ["bf16", "fp32", "bf16"]
    assert (stages.sft.resources.gpus, stages.sft.resources.memory) == (1, "4Gi")
    assert (stages.rm.lora.rank, stages.rm.lora.dropout) == (4, 0.5)
    assert (stages.sft.quantization, stages.rm.quantization) == ("nf4", "nf4")
    # Written out, the document is the same: no stage has another key for how it was written.
    written = resolve(parse_document(TEXT, "my.yaml")).model_dump(mode="json")
    assert "defaults" not in written["spec"]["stages"]
    assert resolve(written) == resolve(parse_document(TEXT, "my.yaml"))


def test_a_default_may_be_set() -> None:
    user = apply_overrides(parse_document(TEXT, "my.yaml"), ["spec.stages.defaults.epochs=7"])
    assert {resolve(user).spec.stages.get(stage).epochs for stage in (Stage.SFT, Stage.RM)} == {7}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("old", "new", "where"),
    [
        ("precision: bf16", "precision: fp8", "my.yaml, line 10: spec.stages.pretrain.precision"),
        ("lora: {rank: 4}", "lora: {rank: 0}", "my.yaml, line 12: spec.stages.pretrain.lora.rank"),
        ("quantization: nf4", "data: []", "spec.stages.defaults.data"),
        ("quantization: nf4", "learning_rate: 1", "spec.stages.defaults.learning_rate"),
        ("quantization: nf4", "klCoef: 1", "spec.stages.defaults.klCoef"),
    ],
)
def test_a_wrong_default_is_told_where_it_stands(old: str, new: str, where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve(parse_document(TEXT.replace(old, new), "my.yaml"))
    assert caught.value.where == where


def test_a_default_that_is_taken_back_returns_to_the_projects() -> None:
    first = parse_document(TEXT.replace("precision: bf16", "epochs: 5"), "my.yaml")
    resolved = resolve(first).model_dump(mode="json")
    second = parse_document(TEXT, "my.yaml")
    assert resolve(second, (), Frozen(dict(first), resolved)).spec.stages.rm.epochs == 10  # type: ignore[union-attr]


def test_an_editor_knows_the_defaults() -> None:
    field = json_schema()["$defs"]["Stages"]["properties"]["defaults"]
    assert set(field["properties"]) == set(names())
    assert "data" not in field["properties"]


def test_a_changed_input_is_said_by_its_name_and_not_by_hashes() -> None:
    before = make_plan(desired_state())
    user: dict[str, Any] = user_document()
    user["spec"]["stages"]["sft"]["epochs"] = 9
    after = make_plan(desired_state(user))
    assert after[Stage.PPO].changes_since(before[Stage.PPO].fields) == ["sft changed"]
    assert after[Stage.SFT].changes_since(before[Stage.SFT].fields)[0].endswith("-> 9")
    user["spec"]["seed"] = 5
    told = make_plan(desired_state(user))[Stage.SFT].changes_since(before[Stage.SFT].fields)
    assert any("changed" in line for line in told)
    assert not any(
        len(word.strip('"')) == 16 and word.strip('"').isalnum() for line in told for word in line.split()
    )
