"""Keys follow from what may change a result; requests carry all that a job needs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.pipeline.support import LAYOUT, desired_state, frozen, user_document
from zhongjing.config.keys import digest
from zhongjing.config.stages import TRAINING, Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline.graph import visible_sources
from zhongjing.pipeline.plan import Plan, make_plan, make_request, missing_input
from zhongjing.pipeline.state import DesiredState, FrozenReference
from zhongjing.storage.manifest import StageRequest


def keys(desired: DesiredState) -> dict[Stage, str | None]:
    return {stage: node.key for stage, node in make_plan(desired).items()}


def changed(before: DesiredState, after: DesiredState) -> set[Stage]:
    old, new = keys(before), keys(after)
    return {stage for stage in old if old[stage] != new[stage]}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pretrain": {"learningRate": 1e-3}}, set(TRAINING)),
        ({"sft": {"epochs": 1}}, {Stage.SFT, Stage.PPO}),
        ({"rm": {"lora": {"rank": 4}}}, {Stage.RM, Stage.PPO}),
        ({"ppo": {"klCoef": 0.2}}, {Stage.PPO}),
        ({"pretrain": {"workers": 4, "microBatchSize": 1}, "ppo": {"retries": 9}}, set()),
    ],
)
def test_a_change_reruns_what_depends_on_it(settings: dict[str, Any], expected: set[Stage]) -> None:
    assert changed(desired_state(), desired_state(user_document(**settings))) == expected


def test_other_data_reruns_what_reads_it() -> None:
    before = desired_state()
    sources = [frozen(source.name, "2" if source.name == "rankings" else "1") for source in before.sources]
    assert changed(before, before.model_copy(update={"sources": sources})) == {Stage.RM, Stage.PPO}


def test_a_forced_rerun_changes_the_key_and_what_depends_on_it() -> None:
    assert changed(desired_state(), desired_state(reruns={Stage.SFT: 1})) == {Stage.SFT, Stage.PPO}


def test_the_name_of_a_folder_does_not_matter_its_content_does() -> None:
    def with_base(path: str, digest: str) -> DesiredState:
        user = user_document()
        user["spec"]["base"] = {"uri": path}
        reference = FrozenReference(reference=path, uri=f"s3://bucket/{digest}", digest=digest)
        return desired_state(user).model_copy(update={"references": [reference]})

    assert not changed(with_base("/a/model", "1" * 16), with_base("/b/model", "1" * 16))
    assert Stage.PRETRAIN in changed(with_base("/a/model", "1" * 16), with_base("/a/model", "2" * 16))


def test_a_waited_for_source_is_hidden_from_stages_that_do_not_read_it() -> None:
    user = user_document(wait=["rankings"])
    user["spec"]["sources"][2]["testFraction"] = 0.5
    waiting = desired_state(user, waiting=["rankings"])
    before = make_plan(waiting)
    assert before[Stage.RM].key is None
    assert before[Stage.RM].waiting == ("rankings",)
    assert before[Stage.PPO].key is None
    assert before[Stage.PPO].waiting == ()
    after = make_plan(waiting, [frozen("rankings")])
    assert after[Stage.RM].key is not None
    assert after[Stage.SFT].key == before[Stage.SFT].key, "what ran before it came stays done"
    assert visible_sources(waiting.document, Stage.SFT) == ["texts", "dialogues"]
    assert visible_sources(waiting.document, Stage.RM) == ["texts", "dialogues", "rankings"]


def test_a_request_names_models_and_sources() -> None:
    desired = desired_state()
    plan = make_plan(desired)
    request = make_request(desired, [], plan[Stage.PPO], LAYOUT, attempt=3, submission_id="demo-x-ppo-a3")
    sft, rm = request.inputs
    assert (sft.role, sft.stage, sft.uri) == (
        "from",
        Stage.SFT,
        f"s3://bucket/local/demo/sft/{plan[Stage.SFT].key}/model",
    )
    assert (rm.role, rm.stage, rm.key) == ("reward", Stage.RM, plan[Stage.RM].key)
    assert (request.key, request.attempt) == (plan[Stage.PPO].key, 3)
    assert [source.name for source in request.sources] == ["texts", "dialogues", "rankings"]


def test_what_the_reward_model_is_shown_is_in_its_key() -> None:
    def with_prompts(**prompts: str | None) -> dict[Stage, str | None]:
        stages: dict[str, Any] = {stage: {"systemPrompt": prompt} for stage, prompt in prompts.items()}
        return keys(desired_state(user_document(**stages)))

    before, told = with_prompts(), with_prompts(sft="你是医生")
    assert before == with_prompts(rm=None, ppo=None)
    assert before[Stage.PRETRAIN] == told[Stage.PRETRAIN]
    assert before[Stage.RM] != told[Stage.RM]
    # The same words by another field are the same; no turn is the same as none was before.
    assert told == with_prompts(sft="你是医生", rm="你是医生", ppo="你是医生")
    without = with_prompts(sft="你是医生", rm="", ppo="")
    assert without[Stage.RM] == before[Stage.RM]
    with pytest.raises(ConfigError, match="different system turns"):
        with_prompts(sft="你是医生", rm="")


@pytest.mark.parametrize("stage", [Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO])
def test_a_request_says_what_its_key_is_the_digest_of(stage: Stage) -> None:
    desired = desired_state()
    node = make_plan(desired)[stage]
    request = make_request(desired, [], node, LAYOUT, attempt=1, submission_id="i")
    stored = StageRequest.model_validate_json(request.model_dump_json())
    assert digest(stored.key_fields) == stored.key == node.key


def test_a_request_names_folders_by_where_they_were_uploaded() -> None:
    user = user_document(stages=("sft", "rm"), rm={"from": "/models/medical"})
    user["spec"]["base"] = {"uri": "/models/base"}
    references = [
        FrozenReference(reference="/models/base", uri="s3://bucket/bases/1", digest="1" * 16),
        FrozenReference(reference="/models/medical", uri="s3://bucket/bases/2", digest="2" * 16),
    ]
    desired = desired_state(user).model_copy(update={"references": references})
    plan = make_plan(desired)
    sft = make_request(desired, [], plan[Stage.SFT], LAYOUT, attempt=1, submission_id="i")
    rm = make_request(desired, [], plan[Stage.RM], LAYOUT, attempt=1, submission_id="i")
    assert sft.document.spec.base.uri == "s3://bucket/bases/1"
    assert sft.inputs[0].uri == "base"
    assert rm.inputs[0].uri == "s3://bucket/bases/2"
    assert rm.inputs[0].key == "2" * 16


def test_folders_of_a_delta_and_its_root_are_named_by_where_they_were_uploaded() -> None:
    """Relative ones too: a job has another working directory."""

    def with_delta(digest: str) -> DesiredState:
        user = user_document()
        user["spec"]["base"] = {"delta": "./delta", "root": "./root", "deltaRule": "fengshen"}
        references = [
            FrozenReference(reference="./delta", uri="s3://bucket/bases/1", digest=digest),
            FrozenReference(reference="./root", uri="s3://bucket/bases/2", digest="2" * 16),
        ]
        return desired_state(user).model_copy(update={"references": references})

    desired = with_delta("1" * 16)
    node = make_plan(desired)[Stage.PRETRAIN]
    base = make_request(desired, [], node, LAYOUT, attempt=1, submission_id="i").document.spec.base
    assert (base.delta, base.root) == ("s3://bucket/bases/1", "s3://bucket/bases/2")
    assert not changed(desired, with_delta("1" * 16))
    assert Stage.PRETRAIN in changed(desired, with_delta("3" * 16)), "their content counts"


def done(plan: Plan, *stages: Stage) -> dict[Stage, bool]:
    return {stage: stage in stages for stage in plan}


def test_a_missing_input_names_the_command_that_makes_it() -> None:
    plan = make_plan(desired_state(wanted=[Stage.RM]))
    error = missing_input(plan, done(plan), "demo")
    assert error is not None
    assert error.exit_code == 2
    assert "`zhongjing submit --pipeline demo --stage pretrain`" in str(error)
    assert missing_input(plan, done(plan, Stage.PRETRAIN), "demo") is None
    assert missing_input(make_plan(desired_state()), done(plan), "demo") is None


def test_only_what_is_still_needed_is_missing() -> None:
    plan = make_plan(desired_state(wanted=[Stage.PPO]))
    # Its direct inputs exist: what those once needed is of no matter.
    assert missing_input(plan, done(plan, Stage.SFT, Stage.RM), "demo") is None
    error = missing_input(plan, done(plan, Stage.PRETRAIN, Stage.RM), "demo")
    assert error is not None
    assert error.where == "spec.stages.sft"
