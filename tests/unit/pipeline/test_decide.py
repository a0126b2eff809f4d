"""One decision at a time about an attempt: submitted, done, lost, failed, tried again."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.unit.pipeline.bench import condition_of
from tests.unit.pipeline.decide_support import POLICY, SFT, key_of, kinds, look, result, running, submitted
from tests.unit.pipeline.support import NOW, UID, desired_state, user_document
from zhongjing.codes.training import JOB_FAILED
from zhongjing.codes.unexpected import UNEXPECTED
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import RequestStop, ScheduleRetry, Submit, apply
from zhongjing.pipeline.backend import JobState
from zhongjing.pipeline.decide import decide, spec_hash, submission_id
from zhongjing.pipeline.observe import Observed
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState, StopReason, stamp
from zhongjing.storage.progress import Activity, Failure


def test_the_first_stage_is_submitted_by_its_name() -> None:
    desired = desired_state()
    actions = decide(desired, PipelineStatus(uid=UID), Observed(NOW))
    [submit] = [action for action in actions if isinstance(action, Submit)]
    assert submit.stage is Stage.PRETRAIN
    assert submit.submission_id == "demo-0123abcd-pretrain-a1" == submission_id(desired, Stage.PRETRAIN, 1)
    assert submit.key == key_of(desired, Stage.PRETRAIN)
    status = apply(PipelineStatus(uid=UID), actions, NOW)
    assert status.observed_generation == 1
    assert status.stage(Stage.PRETRAIN).state is StageState.QUEUED
    assert status.stage(Stage.SFT).state is StageState.PENDING
    assert status.holds(ConditionType.PROGRESSING)


def test_nothing_new_changes_nothing() -> None:
    desired = desired_state(SFT)
    status = running(desired)
    again, _ = look(desired, status, JobState.RUNNING, now=NOW + 5)
    assert again == status


def test_what_is_done_is_skipped_and_said_so() -> None:
    desired = desired_state()
    results = result(desired, Stage.PRETRAIN) | result(desired, Stage.SFT)
    status = PipelineStatus(uid=UID)
    actions = decide(desired, status, Observed(NOW, results))
    [submit] = [action for action in actions if isinstance(action, Submit)]
    assert submit.stage is Stage.RM, "one at a time"
    after = apply(status, actions, NOW)
    assert after.stage(Stage.SFT).state is StageState.SKIPPED
    assert after.stage(Stage.SFT).manifest_uri == f"s3://m/{key_of(desired, Stage.SFT)}"
    assert after.stage(Stage.PPO).state is StageState.PENDING


def test_everything_done_is_complete() -> None:
    desired = desired_state(SFT)
    status, _ = look(desired, running(desired), JobState.SUCCEEDED, results=result(desired, Stage.SFT))
    assert status.stage(Stage.SFT).state is StageState.SUCCEEDED
    assert status.holds(ConditionType.COMPLETE)
    assert status.settled(desired)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.UNKNOWN, JobState.STOPPED])
def test_a_manifest_counts_more_than_what_the_backend_says(state: JobState) -> None:
    desired = desired_state(SFT)
    status, _ = look(desired, running(desired), state, results=result(desired, Stage.SFT))
    assert status.stage(Stage.SFT).state is StageState.SUCCEEDED


def test_a_job_that_is_done_but_does_not_exit_is_ended() -> None:
    desired = desired_state(SFT)
    done = result(desired, Stage.SFT)
    status, actions = look(desired, running(desired), JobState.RUNNING, results=done, quiet=5)
    assert status.stage(Stage.SFT).state is StageState.RUNNING
    assert kinds(actions) == []
    status, actions = look(desired, status, JobState.RUNNING, results=done, quiet=POLICY.finish_seconds)
    assert kinds(actions) == ["Kill"]
    assert status.stage(Stage.SFT).state is StageState.SUCCEEDED


def test_killed_between_status_and_submission_submits_the_same_attempt() -> None:
    desired = desired_state(SFT)
    status, actions = look(desired, submitted(desired), JobState.UNKNOWN, now=NOW + 500)
    [submit] = [action for action in actions if isinstance(action, Submit)]
    assert submit.attempt == 1
    assert submit.spec_hash == spec_hash(desired, Stage.SFT, submit.key, 1)
    assert status.stage(Stage.SFT).attempt == 1


def test_an_attempt_that_spoke_was_submitted_whatever_the_status_says() -> None:
    # Its head was restarted before any pass saw the job: it is lost, not still to be submitted.
    desired = desired_state(SFT)
    status, actions = look(desired, submitted(desired), JobState.UNKNOWN, activity=Activity.TRAINING)
    assert kinds(actions) == []
    assert status.stage(Stage.SFT).unknown_since is not None


def test_a_job_that_the_backend_forgot_is_lost_after_a_while() -> None:
    desired = desired_state(SFT)
    status, actions = look(desired, running(desired), JobState.UNKNOWN, now=NOW + 2)
    assert kinds(actions) == []
    assert status.stage(Stage.SFT).unknown_since is not None
    later = NOW + 2 + POLICY.unknown_seconds
    # Its progress still moves: it may live where the backend cannot see it.
    status, actions = look(desired, status, JobState.UNKNOWN, activity=Activity.TRAINING, quiet=1, now=later)
    assert kinds(actions) == ["RequestStop"]
    assert status.stage(Stage.SFT).stop_reason is StopReason.LOST
    status, actions = look(desired, status, JobState.UNKNOWN, activity=Activity.TRAINING, quiet=99, now=later)
    assert kinds(actions) == ["ScheduleRetry"]
    status, actions = look(
        desired, status, JobState.UNKNOWN, activity=Activity.TRAINING, quiet=99, now=later + 60
    )
    assert kinds(actions) == ["Submit"]
    assert status.stage(Stage.SFT).attempt == 2


def test_a_job_of_which_nothing_is_left_is_not_waited_for() -> None:
    # A power cut: its last word still looks fresh to a reconciler that has just begun to look.
    desired = desired_state(SFT)
    status, actions = look(
        desired, running(desired), JobState.UNKNOWN, activity=Activity.TRAINING, checkpoint=4, lost=True
    )
    assert kinds(actions) == ["ScheduleRetry"]
    assert status.stage(Stage.SFT).failed_at_step == 4
    later = NOW + 1 + POLICY.backoff_seconds
    status, actions = look(
        desired, status, JobState.UNKNOWN, activity=Activity.TRAINING, checkpoint=4, lost=True, now=later
    )
    assert kinds(actions) == ["Submit"]
    assert status.stage(Stage.SFT).attempt == 2


def test_a_lost_job_that_had_finished_is_done() -> None:
    desired = desired_state(SFT)
    status, actions = look(
        desired, running(desired), JobState.UNKNOWN, lost=True, results=result(desired, Stage.SFT)
    )
    assert status.stage(Stage.SFT).state is StageState.SUCCEEDED
    assert "Submit" not in kinds(actions)


def test_a_job_that_comes_back_is_no_longer_lost() -> None:
    desired = desired_state(SFT)
    status, _ = look(desired, running(desired), JobState.UNKNOWN, now=NOW + 2)
    status, _ = look(desired, status, JobState.RUNNING, now=NOW + 3)
    assert status.stage(Stage.SFT).unknown_since is None
    assert status.stage(Stage.SFT).state is StageState.RUNNING


def test_failures_are_retried_with_growing_pauses_and_then_final() -> None:
    desired = desired_state(user_document(stages=("sft",), sft={"retries": 2}))
    status, now, pauses = running(desired), NOW, []
    for attempt in (1, 2):
        assert status.stage(Stage.SFT).attempt == attempt
        status, actions = look(desired, status, JobState.FAILED, now=now)
        [retry] = [action for action in actions if isinstance(action, ScheduleRetry)]
        pauses.append(retry.at - now)
        assert status.holds(ConditionType.PROGRESSING)
        early, actions = look(desired, status, JobState.FAILED, now=retry.at - 0.1)
        assert kinds(actions) == []
        now = retry.at + 0.1
        status, _ = look(desired, early, JobState.FAILED, now=now)
        status, _ = look(desired, status, JobState.RUNNING, now=now)
    assert pauses == [POLICY.backoff_seconds, 2 * POLICY.backoff_seconds]
    status, _ = look(desired, status, JobState.FAILED, now=now)
    entry = status.stage(Stage.SFT)
    assert (entry.state, entry.attempt) == (StageState.FAILED, 3)
    assert entry.message == "the job failed without a message (attempt 3, after 2 retries)"
    assert (entry.reason, entry.remedy) == ("JobFailed", _whole(JOB_FAILED.remedy))
    assert status.holds(ConditionType.FAILED)
    assert status.settled(desired)


def _whole(remedy: str) -> str:
    """A remedy with the commands of the pipeline and the stage."""
    return remedy.replace("NAME", "demo").replace("STAGE", "sft")


def test_a_stage_that_will_be_tried_again_keeps_the_cluster() -> None:
    desired = desired_state(user_document(stages=("sft", "rm")))
    status, actions = look(desired, running(desired), JobState.FAILED)
    assert kinds(actions) == ["ScheduleRetry"]
    status, actions = look(desired, status, JobState.FAILED, now=NOW + 2)
    assert kinds(actions) == []
    assert status.stage(Stage.RM).state is StageState.PENDING


def test_an_attempt_that_got_further_wins_the_retries_back() -> None:
    desired = desired_state(user_document(stages=("sft",), sft={"retries": 1}))
    status, now = running(desired), NOW
    for checkpoint in (10, 20, 30):
        status, actions = look(
            desired, status, JobState.FAILED, activity=Activity.TRAINING, checkpoint=checkpoint, now=now
        )
        assert kinds(actions) == ["ScheduleRetry"], checkpoint
        now += 1000
        status, _ = look(
            desired,
            status,
            JobState.FAILED,
            activity=Activity.TRAINING,
            checkpoint=checkpoint,
            quiet=99,
            now=now,
        )
        status, _ = look(desired, status, JobState.RUNNING, now=now)
    status, _ = look(desired, status, JobState.FAILED, activity=Activity.TRAINING, checkpoint=30, now=now)
    assert status.stage(Stage.SFT).state is StageState.FAILED


def test_bad_input_is_not_retried() -> None:
    desired = desired_state(SFT)
    failure = Failure(
        error="DataError",
        code="NoGoodRecord",
        message="too many bad records",
        where="s3://x",
        remedy="repair",
    )
    status, actions = look(
        desired, running(desired), JobState.FAILED, activity=Activity.FAILED, failure=failure
    )
    entry = status.stage(Stage.SFT)
    assert kinds(actions) == []
    assert (entry.state, entry.reason, entry.remedy) == (StageState.FAILED, "NoGoodRecord", "repair")
    assert entry.message == "s3://x: too many bad records"
    assert entry.failure == failure
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.FAILED, "NoGoodRecord")


@pytest.mark.parametrize("code", ["", "OfAnotherRelease"])
def test_a_failure_without_a_known_code_is_unexpected_and_has_a_remedy(code: str) -> None:
    failure = Failure(error="ZeroDivisionError", code=code, message="ZeroDivisionError: division by zero")
    desired = desired_state(SFT)
    status, _ = look(desired, running(desired), JobState.FAILED, activity=Activity.FAILED, failure=failure)
    entry = status.stage(Stage.SFT)
    assert (entry.state, entry.reason) == (StageState.FAILED, "UnexpectedError")
    assert entry.remedy == _whole(UNEXPECTED.remedy)


def test_a_new_attempt_forgets_the_failure_of_the_last_one() -> None:
    desired = desired_state(SFT)
    failure = Failure(error="DataError", code="NoGoodRecord", message="bad", remedy="repair")
    status, _ = look(desired, running(desired), JobState.FAILED, activity=Activity.FAILED, failure=failure)
    status, actions = look(desired.model_copy(update={"generation": 2}), status, JobState.FAILED)
    assert kinds(actions) == ["Adopt", "Submit"]
    entry = status.stage(Stage.SFT)
    assert (entry.failure, entry.remedy) == (None, None)


def test_a_mislabelled_job_delays_the_next_attempt_and_is_asked_to_stop() -> None:
    desired = desired_state(SFT)
    moving: dict[str, Any] = {"activity": Activity.TRAINING, "checkpoint": 5}
    status, _ = look(desired, running(desired), JobState.FAILED, **moving)
    status, actions = look(desired, status, JobState.FAILED, quiet=1, now=NOW + 99, **moving)
    assert kinds(actions) == ["RequestStop"]
    status, actions = look(desired, status, JobState.FAILED, quiet=99, now=NOW + 199, **moving)
    assert kinds(actions) == ["Submit"]


def test_an_attempt_that_was_given_up_may_still_finish() -> None:
    desired = desired_state(SFT)
    status, _ = look(desired, running(desired), JobState.FAILED)
    status, _ = look(desired, status, JobState.FAILED, results=result(desired, Stage.SFT))
    assert status.stage(Stage.SFT).state is StageState.SUCCEEDED
    assert status.holds(ConditionType.COMPLETE)


def test_a_job_of_another_hash_is_not_ours() -> None:
    desired = desired_state(SFT)
    status, actions = look(desired, submitted(desired), JobState.RUNNING, hash_="foreign")
    # It is neither adopted nor ended.
    assert kinds(actions) == ["ScheduleRetry", "Submit"]
    assert [action.attempt for action in actions if isinstance(action, Submit)] == [2]
    assert status.stage(Stage.SFT).attempt == 2


def test_a_lost_worker_is_shown_at_once_and_the_attempt_is_tried_again_within_minutes() -> None:
    """Not after the progress deadline of half an hour: by then its pod has long been made elsewhere."""
    desired = desired_state(SFT)
    gone = "0 of 1 worker pods of group gpu are ready; pod/x: its node does not answer"
    trains = partial(look, activity=Activity.TRAINING, lacks=gone)
    status, actions = trains(desired, running(desired), JobState.RUNNING, stuck=5)
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "ClusterNotReady")
    assert (condition.message, condition.remedy) == (f"sft (attempt 1): {gone}", "wait")
    assert not [action for action in actions if isinstance(action, RequestStop)]

    status, actions = trains(desired, status, JobState.RUNNING, stuck=POLICY.lost_seconds)
    assert [action.reason for action in actions if isinstance(action, RequestStop)] == [StopReason.LOST]
    late = NOW + 2 + POLICY.hung_stop_seconds
    status, actions = trains(desired, status, JobState.RUNNING, stuck=80, now=late)
    assert "Kill" in kinds(actions)
    status, actions = look(desired, status, JobState.STOPPED, activity=Activity.TRAINING, now=late + 1)
    (again,) = [action for action in actions if isinstance(action, ScheduleRetry)]
    assert gone in again.message


@pytest.mark.parametrize(
    ("activity", "lacks", "stuck"),
    [(Activity.PREPARING, "pods", 900), (Activity.PREPARED, "pods", 900), (Activity.TRAINING, "", 900)],
)
def test_what_prepares_needs_no_worker_and_who_has_them_all_may_take_its_time(
    activity: Activity, lacks: str, stuck: float
) -> None:
    desired = desired_state(SFT)
    status, actions = look(
        desired, running(desired), JobState.RUNNING, activity=activity, lacks=lacks, stuck=stuck
    )
    assert not [action for action in actions if isinstance(action, RequestStop)]
    condition = condition_of(status)
    assert condition.reason == "Running"


def test_a_hung_attempt_is_stopped_ended_and_tried_again() -> None:
    desired = desired_state(user_document(stages=("sft",), sft={"progressDeadlineSeconds": 60}))
    status, actions = look(desired, running(desired), JobState.RUNNING, stuck=59)
    assert kinds(actions) == []
    status, actions = look(desired, status, JobState.RUNNING, stuck=61)
    assert [action.reason for action in actions if isinstance(action, RequestStop)] == [StopReason.HUNG]
    late = NOW + 2 + POLICY.hung_stop_seconds
    status, actions = look(desired, status, JobState.RUNNING, stuck=99, now=late)
    assert "Kill" in kinds(actions)
    status, actions = look(desired, status, JobState.STOPPED, activity=Activity.TRAINING, now=late + 1)
    assert kinds(actions) == ["ScheduleRetry"]
    assert status.stage(Stage.SFT).failures == 1


def test_a_stage_that_runs_too_long_is_failed() -> None:
    desired = desired_state(user_document(stages=("sft",), sft={"activeDeadlineSeconds": 100}))
    status = running(desired)
    status, actions = look(desired, status, JobState.RUNNING, now=NOW + 102)
    assert [action.reason for action in actions if isinstance(action, RequestStop)] == [StopReason.DEADLINE]
    status, _ = look(
        desired, status, JobState.SUCCEEDED, activity=Activity.SUSPENDED, checkpoint=9, now=NOW + 110
    )
    assert status.stage(Stage.SFT).reason == "DeadlineExceeded"
    assert status.holds(ConditionType.FAILED)


def test_late_submissions_and_resurrections_are_ended() -> None:
    desired = desired_state(SFT)
    status, _ = look(desired, running(desired), JobState.FAILED)
    status, actions = look(desired, status, JobState.RUNNING, now=NOW + 500)
    assert kinds(actions) == ["Kill"]


def test_conditions_say_since_when() -> None:
    desired = desired_state(SFT)
    first = submitted(desired)
    later, _ = look(desired, first, JobState.RUNNING, now=NOW + 50)
    assert [condition.since for condition in later.conditions] == [stamp(NOW)] * 4
    done, _ = look(desired, later, JobState.SUCCEEDED, now=NOW + 60, results=result(desired, Stage.SFT))
    complete = done.condition()
    assert complete is not None
    assert complete.since == stamp(NOW + 60)
    assert sum(condition.status for condition in done.conditions) == 1
