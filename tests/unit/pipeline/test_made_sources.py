"""Sources that construct makes: in the document, in keys, in plans and requests."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from tests.unit.pipeline.support import LAYOUT, desired_state, user_document
from zhongjing.config.resolve import resolve
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline.plan import Plan, make_plan, make_request, missing_input
from zhongjing.pipeline.state import DesiredState
from zhongjing.storage.manifest import FrozenObject, MadeSource, StageRequest


def with_made(**made: Any) -> dict[str, Any]:
    user = user_document(stages=("pretrain", "sft"))
    source = next(each for each in user["spec"]["sources"] if each["name"] == "dialogues")
    del source["uri"]
    source["made"] = {"from": "s3://raw/talks/", "steps": ["deidentify"], **made}
    return user


def keys(plan: Plan) -> dict[Stage, str | None]:
    return {stage: node.key for stage, node in plan.items()}


def test_a_document_with_a_made_source_has_the_stage_construct() -> None:
    document = resolve(with_made())
    assert document.spec.stages.present() == [Stage.CONSTRUCT, Stage.PRETRAIN, Stage.SFT]
    assert document.spec.stages.trained() == [Stage.PRETRAIN, Stage.SFT]
    assert resolve(document.model_dump(mode="json")) == document


@pytest.mark.parametrize(
    ("made", "told"),
    [
        ({"steps": ["normalize"]}, "normalize needs an author"),
        ({"steps": ["check"]}, "check needs a knowledge graph"),
        ({"steps": ["deidentify", "deidentify"]}, "a step is named twice"),
        ({"steps": ["dance"]}, "dance"),
        ({"steps": ["deidentify", "dedup"]}, "dedup comes first"),
        ({"steps": ["deidentify"], "against": ["s3://a/b"]}, "against belongs to dedup"),
        ({"steps": ["dedup"], "against": ["tests/"]}, "against"),
        ({"steps": ["expand"], "author": {"model": "m", "baseUrl": "http://h", "budget": 5}}, "needs prices"),
    ],
)
def test_what_is_missing_is_said_at_its_place(made: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        resolve(with_made(**made))
    assert "spec.sources" in str(caught.value)


def test_a_source_has_a_place_and_a_stage_something_to_make() -> None:
    with pytest.raises(ValidationError, match="a uri, or says how it is made"):
        Source(name="a", kind="text")
    user = user_document()
    user["spec"]["stages"]["construct"] = {}
    with pytest.raises(ConfigError, match="no source says how it is made"):
        resolve(user)


def test_only_what_reads_a_made_source_waits_for_construct() -> None:
    plan = make_plan(desired_state(with_made()))
    assert plan[Stage.SFT].upstream == (Stage.CONSTRUCT, Stage.PRETRAIN)
    assert plan[Stage.PRETRAIN].upstream == ()
    assert plan[Stage.CONSTRUCT].sources == ("dialogues",)
    # Known before anything is made.
    assert all(keys(plan).values())


def test_test_data_that_is_made_is_needed_by_every_stage() -> None:
    user = with_made()
    for source in user["spec"]["sources"]:
        if source["name"] == "dialogues":
            source["testFraction"] = 0.1
    assert Stage.CONSTRUCT in make_plan(desired_state(user))[Stage.PRETRAIN].upstream


def test_steps_and_raw_records_count_and_limits_do_not() -> None:
    before = keys(make_plan(desired_state(with_made(steps=["deidentify", "expand"], author=AUTHOR))))

    def changed(state: DesiredState) -> set[Stage]:
        after = keys(make_plan(state))
        return {stage for stage in after if after[stage] != before[stage]}

    def made(**more: Any) -> DesiredState:
        return desired_state(with_made(**{"steps": ["deidentify", "expand"], "author": AUTHOR} | more))

    assert (
        changed(made(author={**AUTHOR, "concurrency": 3, "baseUrl": "http://other", "budget": None})) == set()
    )
    both = {Stage.CONSTRUCT, Stage.SFT}
    assert changed(made(author={**AUTHOR, "model": "another"})) == both
    assert changed(made(steps=["expand", "deidentify"])) == both
    state = made()
    sources = [
        each.model_copy(update={"digest": "other"}) if each.name == "dialogues" else each
        for each in state.sources
    ]
    assert changed(state.model_copy(update={"sources": sources})) == both


AUTHOR = {"model": "m", "baseUrl": "http://127.0.0.1:1/v1"}


def test_a_change_is_told_by_its_field() -> None:
    before = make_plan(desired_state(with_made()))[Stage.CONSTRUCT]
    after = make_plan(desired_state(with_made(kg="s3://kg/a.json", steps=["deidentify", "check"])))[
        Stage.CONSTRUCT
    ]
    told = after.changes_since(before.fields)
    assert any(line.startswith("spec.sources.dialogues.made.steps") for line in told), told


def test_a_stage_is_asked_to_read_what_was_made() -> None:
    state = desired_state(with_made())
    node = make_plan(state)[Stage.SFT]
    part = FrozenObject(uri="s3://bucket/local/sources/k/part-00000.jsonl", size=7, digest="d")
    made = MadeSource(
        uri="s3://bucket/local/sources/k", key="k", objects=[part], read=3, written=2, quarantined=1
    )
    request = make_request(state, (), node, LAYOUT, attempt=1, submission_id="x", made={"dialogues": made})
    (frozen,) = [each for each in request.sources if each.name == "dialogues"]
    assert frozen.objects == [part]
    source = request.document.spec.source("dialogues")
    assert (source.made, source.uri) == (None, "s3://bucket/local/sources/k/")
    assert StageRequest.model_validate_json(request.model_dump_json()) == request


def test_construct_reads_the_raw_records() -> None:
    state = desired_state(with_made())
    request = make_request(state, (), make_plan(state)[Stage.CONSTRUCT], LAYOUT, attempt=1, submission_id="x")
    assert [each.name for each in request.sources] == ["dialogues"]
    source = request.document.spec.source("dialogues")
    assert source.made is not None
    assert source.raw().uri == "s3://raw/talks/"


def test_a_stage_alone_says_that_its_source_was_never_made() -> None:
    state = desired_state(with_made(), wanted=[Stage.SFT])
    plan = make_plan(state)
    error = missing_input(plan, {Stage.PRETRAIN: True}, "demo")
    assert error is not None
    assert "construct" in error.message
