"""One decision at a time when the document changed, or a stage needs what is not there."""

from __future__ import annotations

from tests.unit.pipeline.bench import condition_of
from tests.unit.pipeline.decide_support import POLICY, SFT, kinds, look, result, running, submitted
from tests.unit.pipeline.support import NOW, UID, desired_state, frozen, user_document
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import Kill, RequestStop, Submit, apply
from zhongjing.pipeline.backend import JobState
from zhongjing.pipeline.decide import decide
from zhongjing.pipeline.observe import Observed
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState, StopReason
from zhongjing.storage.progress import Activity, Failure


def test_suspend_stops_with_a_checkpoint_and_resume_goes_on() -> None:
    desired = desired_state(SFT)
    status = running(desired)
    paused = desired_state(SFT, generation=2, suspend=True)
    status, actions = look(paused, status, JobState.RUNNING)
    assert kinds(actions) == ["Adopt", "RequestStop"]
    assert status.condition() is not None
    assert status.holds(ConditionType.PROGRESSING), "it is still stopping"
    status, actions = look(paused, status, JobState.RUNNING, now=NOW + 30)
    assert kinds(actions) == ["RequestStop"], "asked again: the first asking may have been lost"
    status, _ = look(paused, status, JobState.SUCCEEDED, activity=Activity.SUSPENDED, checkpoint=7)
    assert status.stage(Stage.SFT).state is StageState.SUSPENDED
    assert status.stage(Stage.SFT).message == "stopped with a checkpoint at step 7"
    assert status.holds(ConditionType.SUSPENDED)
    assert status.settled(paused)
    again = desired_state(SFT, generation=3)
    status, actions = look(again, status, JobState.SUCCEEDED, activity=Activity.SUSPENDED, checkpoint=7)
    assert kinds(actions) == ["Adopt", "Submit"]
    assert status.stage(Stage.SFT).attempt == 2
    assert status.stage(Stage.SFT).failures == 0
    assert status.stage(Stage.SFT).message == "goes on where it stopped"


def test_a_stage_that_made_no_step_begins_again() -> None:
    desired = desired_state(SFT)
    broken = Failure(error="DataError", code="TooManyBadRecords", message="bad", retriable=False)
    status, _ = look(desired, running(desired), JobState.FAILED, activity=Activity.FAILED, failure=broken)
    assert status.stage(Stage.SFT).state is StageState.FAILED
    again = desired_state(SFT, generation=2)
    status, _ = look(again, status, JobState.FAILED, activity=Activity.FAILED, failure=broken)
    assert status.stage(Stage.SFT).attempt == 2
    assert status.stage(Stage.SFT).message == "begins again: the last attempt made no step"


def test_a_stop_that_does_not_come_is_forced() -> None:
    paused = desired_state(SFT, generation=2, suspend=True)
    status, _ = look(paused, running(desired_state(SFT)), JobState.RUNNING)
    late = NOW + 2 + POLICY.stop_seconds
    status, actions = look(paused, status, JobState.RUNNING, now=late)
    assert kinds(actions) == ["RequestStop", "Kill"]
    status, _ = look(paused, status, JobState.STOPPED, activity=Activity.TRAINING, checkpoint=4, now=late + 1)
    assert status.stage(Stage.SFT).state is StageState.SUSPENDED
    assert "checkpoint of step 4" in status.stage(Stage.SFT).message


def test_a_queued_job_is_ended_at_once_when_suspended() -> None:
    paused = desired_state(SFT, generation=2, suspend=True)
    _, actions = look(paused, submitted(desired_state(SFT)), JobState.PENDING)
    assert [type(action) for action in actions if isinstance(action, Kill)] == [Kill]


def test_suspended_and_wanted_again_before_it_stopped() -> None:
    paused = desired_state(SFT, generation=2, suspend=True)
    status, _ = look(paused, running(desired_state(SFT)), JobState.RUNNING)
    again = desired_state(SFT, generation=3)
    status, _ = look(again, status, JobState.RUNNING)
    status, actions = look(again, status, JobState.SUCCEEDED, activity=Activity.SUSPENDED, checkpoint=3)
    assert kinds(actions) in (["ScheduleRetry"], ["ScheduleRetry", "Submit"])
    status, _ = look(
        again, status, JobState.SUCCEEDED, activity=Activity.SUSPENDED, checkpoint=3, now=NOW + 2
    )
    assert status.stage(Stage.SFT).attempt == 2
    assert status.stage(Stage.SFT).failures == 0


def test_a_change_supersedes_what_runs_and_says_which_field() -> None:
    desired = desired_state(SFT)
    status = running(desired)
    user = user_document(stages=("sft",), sft={"learningRate": 1e-3})
    changed = desired_state(user, generation=2)
    status, actions = look(changed, status, JobState.RUNNING)
    assert [action.reason for action in actions if isinstance(action, RequestStop)] == [StopReason.SUPERSEDED]
    status, actions = look(changed, status, JobState.SUCCEEDED, activity=Activity.SUSPENDED)
    [submit] = [action for action in actions if isinstance(action, Submit)]
    assert list(submit.changes) == ["spec.stages.sft.learningRate: 7e-05 -> 0.001"]
    assert submit.attempt == 2, "attempts count on: the id holds no key"


def test_a_failed_stage_ends_the_pipeline_and_the_same_again_tries_again() -> None:
    desired = desired_state(user_document(stages=("sft", "rm"), sft={"retries": 0}))
    status, _ = look(desired, running(desired), JobState.FAILED)
    assert status.holds(ConditionType.FAILED)
    assert status.stage(Stage.RM).state is StageState.PENDING, "nothing else is started"
    again = desired_state(user_document(stages=("sft", "rm"), sft={"retries": 0}), generation=2)
    status, actions = look(again, status, JobState.FAILED, now=NOW + 9)
    assert kinds(actions) == ["Adopt", "Submit"]
    assert status.stage(Stage.SFT).attempt == 2
    assert status.stage(Stage.SFT).failures == 0


def test_dependants_of_a_failure_are_blocked() -> None:
    desired = desired_state(user_document(pretrain={"retries": 0}))
    status = look(desired, submitted(desired), JobState.RUNNING, stage=Stage.PRETRAIN)[0]
    status, _ = look(desired, status, JobState.FAILED, stage=Stage.PRETRAIN)
    assert {status.stage(stage).state for stage in (Stage.SFT, Stage.RM, Stage.PPO)} == {StageState.BLOCKED}


def test_a_single_stage_does_not_run_what_it_needs() -> None:
    desired = desired_state(wanted=[Stage.RM])
    actions = decide(desired, PipelineStatus(uid=UID), Observed(NOW))
    status = apply(PipelineStatus(uid=UID), actions, NOW)
    assert "Submit" not in kinds(actions)
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.FAILED, "MissingInput")
    assert "--stage pretrain" in (condition.remedy or "")
    actions = decide(desired, status, Observed(NOW, result(desired, Stage.PRETRAIN)))
    assert kinds(actions) == ["Submit"]


def test_a_source_that_is_waited_for_stops_only_what_needs_it() -> None:
    user = user_document(wait=["rankings"])
    desired = desired_state(user, waiting=["rankings"])
    done = result(desired, Stage.PRETRAIN)
    status = PipelineStatus(uid=UID)
    actions = decide(desired, status, Observed(NOW, done))
    [submit] = [action for action in actions if isinstance(action, Submit)]
    assert submit.stage is Stage.SFT
    status = apply(status, actions, NOW)
    assert status.stage(Stage.RM).state is StageState.WAITING_FOR_INPUT
    assert status.stage(Stage.PPO).state is StageState.BLOCKED

    done |= result(desired, Stage.SFT)
    status, _ = look(desired, status, JobState.SUCCEEDED, results=done)
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "WaitingForInput")
    assert "s3://data/rankings.jsonl" in condition.message
    assert status.settled(desired)

    # It comes: what was done stays done.
    status = status.model_copy(update={"sources": [frozen("rankings")]})
    actions = decide(desired, status, Observed(NOW + 9, done))
    [submit] = [action for action in actions if isinstance(action, Submit)]
    assert submit.stage is Stage.RM
    assert apply(status, actions, NOW + 9).stage(Stage.SFT).state is StageState.SUCCEEDED


def test_a_forced_rerun_runs_again() -> None:
    desired = desired_state(SFT)
    done = result(desired, Stage.SFT)
    forced = desired_state(SFT, reruns={Stage.SFT: 1})
    actions = decide(forced, PipelineStatus(uid=UID), Observed(NOW, done))
    assert kinds(actions) == ["Adopt", "Submit"]
