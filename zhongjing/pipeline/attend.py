"""Decisions about an attempt that may be alive: wait, stop, call it done, try again, give up. Pure."""

from __future__ import annotations

from typing import NamedTuple

from zhongjing.codes import Code, find
from zhongjing.codes.ray import FOREIGN_JOB
from zhongjing.codes.training import DEADLINE_EXCEEDED, HUNG, JOB_FAILED
from zhongjing.codes.unexpected import UNEXPECTED
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import Action, Kill, Mark, RequestStop, RequestWorkers, ScheduleRetry
from zhongjing.pipeline.backend import JobState
from zhongjing.pipeline.context import DecisionContext
from zhongjing.pipeline.escapes import without_escapes
from zhongjing.pipeline.observe import AttemptView, ResultView
from zhongjing.pipeline.state import UNREADY, StageState, StageStatus, StopReason, seconds, stamp
from zhongjing.storage.progress import Activity, Failure


def attend(context: DecisionContext, stage: Stage, status: StageStatus) -> list[Action]:
    """Looks after the active attempt of ``stage``."""
    view = context.observed.attempts[stage]
    result = context.result(stage, status.key)
    job = view.job
    if job.state is JobState.UNKNOWN:
        return [_succeeded(stage, result)] if result else _unknown(context, stage, status, view)
    if job.state is JobState.UNREACHABLE:
        return _unseen(context, stage, status, view, result)
    if context.is_foreign(status, view):
        message = f"the id {status.submission_id} belongs to another job"
        again = (status.failures, status.failed_at_step)
        return [ScheduleRetry(stage, context.now, FOREIGN_JOB.name, message, *again)]
    if result is not None:
        if job.state.is_terminal:
            return [_succeeded(stage, result)]
        if view.quiet_seconds >= context.policy.finish_seconds:
            return [Kill(stage, job.submission_id), _succeeded(stage, result)]
        return _alive(context, stage, status, view)
    if job.state.is_terminal:
        return [_ended(context, stage, status, view, job.message)]
    stopping = _stopping(context, stage, status, view)
    request = [RequestWorkers(stage)] if view.is_prepared and not stopping else []
    return [*_alive(context, stage, status, view), *stopping, *request]


def _succeeded(stage: Stage, result: ResultView) -> Mark:
    update = {"manifest_uri": result.manifest_uri, "model_uri": result.model_uri}
    return Mark(stage, StageState.SUCCEEDED, "Succeeded", update=update)


def _alive(context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView) -> list[Action]:
    """Records that the backend knows the attempt, queued or running."""
    if status.waiting_since is not None and view.is_prepared and status.unknown_since is None:
        return []  # whether its workers are there is found out when they are asked for
    running = view.job.state is JobState.RUNNING
    state = StageState.RUNNING if running else StageState.QUEUED
    if status.confirmed and status.state is state and status.unknown_since is None:
        return []
    update: dict[str, object] = {"confirmed": True, "unknown_since": None, **status.waited(context.now)}
    if running and status.started_at is None:
        update["started_at"] = stamp(context.now)
    stopping = status.stop_reason is not None
    reason = status.reason if stopping else ("Running" if running else "Queued")
    # What kept the cluster from taking the job is over.
    message = "" if status.reason in UNREADY else status.message
    return [Mark(stage, state, reason, message, update=update)]


def _stop_wanted(
    context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView
) -> tuple[StopReason, str] | None:
    """Why the attempt should stop now, if it should."""
    if context.desired.suspend:
        return StopReason.SUSPENDED, "asked to stop with a checkpoint"
    if not context.wants(stage, status.key):
        return StopReason.SUPERSEDED, "the document changed; asked to stop"
    if view.job.state is not JobState.RUNNING:
        return None
    settings = context.settings(stage)
    limit = settings.active_deadline_seconds
    if limit is not None and status.seconds_run(context.now) > limit:
        return StopReason.DEADLINE, f"ran longer than activeDeadlineSeconds ({limit} s)"
    if context.overdue:
        return StopReason.DEADLINE, context.overdue_message
    if view.lacks_workers and view.stuck_seconds >= context.policy.lost_seconds:
        return StopReason.LOST, f"did nothing for {context.policy.lost_seconds:g} s without {view.job.lacks}"
    limit = context.desired.document.spec.progress_deadline_seconds or settings.progress_deadline_seconds
    if view.stuck_seconds > limit:
        return (StopReason.HUNG, f"did nothing within progressDeadlineSeconds ({limit} s)")
    return None


def _stopping(context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView) -> list[Action]:
    """Asks for a stop, again in every pass, and ends the job when it does not come."""
    assert status.key is not None
    if status.stop_reason is not None:
        # A stop cannot be taken back: the job may have seen it.
        reason, message = status.stop_reason, status.message
    else:
        wanted = _stop_wanted(context, stage, status, view)
        if wanted is None:
            return []
        reason, message = wanted
    actions: list[Action] = [RequestStop(stage, status.key, status.attempt, reason, message)]
    since = seconds(status.stop_requested_at) if status.stop_requested_at else context.now
    patient = reason not in (StopReason.HUNG, StopReason.LOST)
    bound = context.policy.stop_seconds if patient else context.policy.hung_stop_seconds
    if view.job.state is JobState.PENDING or context.now - since > bound:
        actions.append(Kill(stage, view.job.submission_id))
    return actions


def _unseen(
    context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView, result: ResultView | None
) -> list[Action]:
    """The backend does not answer. What counts is what the attempt says itself; it can be asked to stop."""
    if result is not None and view.quiet_seconds >= context.policy.quiet_seconds:
        return [_succeeded(stage, result)]
    if not status.confirmed and view.progress is None:
        if context.wants(stage, status.key) and not context.desired.suspend:
            # Asks for what is missing, and says it.
            return [context.submit(context.plan[stage], status, status.attempt, status.message)]
        stopping = _stopping(context, stage, status, view)
        recent = _is_recent(context, status)
        return stopping if recent else [*stopping, _ended(context, stage, status, view, "")]
    if view.has_ended and view.quiet_seconds >= context.policy.quiet_seconds:
        return [_ended(context, stage, status, view, "")]
    stopping = _stopping(context, stage, status, view)
    if any(isinstance(action, Kill) for action in stopping) and context.is_over(view):
        # Nothing starts beside it all the same: that takes a backend that answers.
        return [*stopping, _ended(context, stage, status, view, "")]
    return stopping


def _is_recent(context: DecisionContext, status: StageStatus) -> bool:
    """Whether a submission may still be on its way."""
    submitted = status.submitted_at
    return submitted is not None and context.now - seconds(submitted) < context.policy.unknown_seconds


def _unknown(context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView) -> list[Action]:
    """The backend does not know the job: it was never submitted, or the backend lost its memory."""
    assert status.key is not None
    if not status.confirmed and view.progress is None:
        # Without any progress of the attempt, nothing says that it ever began.
        if context.wants(stage, status.key) and not context.desired.suspend:
            # The reconciler died between the status and the submission. The same id again is harmless.
            return [context.submit(context.plan[stage], status, status.attempt, status.message)]
        # Should a submission that is still on its way arrive later, it is found alive and ended.
        recent = _is_recent(context, status) and not view.job.lost
        return [] if recent else [_ended(context, stage, status, view, "")]
    if not view.job.lost:
        if status.unknown_since is None:
            update = {"unknown_since": stamp(context.now)}
            message = "Ray does not know the job"
            return [Mark(stage, status.state, "Unknown", message, update=update)]
        if context.now - seconds(status.unknown_since) < context.policy.unknown_seconds:
            return []
    if not context.is_over(view):
        # Should it live on where the backend cannot see it, it must end.
        return [RequestStop(stage, status.key, status.attempt, StopReason.LOST, "Ray lost the job")]
    return [_ended(context, stage, status, view, "the job was lost with the Ray head")]


def _ended(
    context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView, job_message: str
) -> Action:
    """The attempt is over without a manifest: suspended, failed for good, or to be tried again."""
    if not context.wants(stage, status.key):
        return Mark(stage, StageState.PENDING, "Superseded", "the document changed")
    progress = view.progress
    failure = progress.failure if progress is not None and progress.activity is Activity.FAILED else None
    if failure is not None and not failure.retriable:
        return _given_up(stage, _why(failure))
    if context.desired.suspend:
        return Mark(stage, StageState.SUSPENDED, "Suspended", _suspended_message(view))
    if status.stop_reason is StopReason.DEADLINE:
        field = "spec" if context.overdue else f"spec.stages.{stage}"
        remedy = f"raise {field}.activeDeadlineSeconds; the stage goes on from its checkpoint"
        return _given_up(stage, _Why(DEADLINE_EXCEEDED, status.message, remedy))
    if status.stop_reason is StopReason.HUNG:
        return _retry_or_fail(context, stage, status, view, _Why(HUNG, status.message, HUNG.remedy))
    suspended = progress is not None and progress.activity is Activity.SUSPENDED
    if suspended or status.stop_reason in (StopReason.SUSPENDED, StopReason.SUPERSEDED):
        # Suspended and wanted again, or preempted: it goes on where it stopped, and nothing went wrong.
        at = context.now + (0.0 if status.stop_reason is not None else context.policy.backoff_seconds)
        message = "was stopped; goes on from its checkpoint"
        return ScheduleRetry(stage, at, "Resuming", message, status.failures, status.failed_at_step)
    if failure is not None:
        why = _why(failure)
    else:
        # Of a job that was ended for its lost workers Ray only says that it was stopped.
        ended = status.stop_reason is StopReason.LOST and view.job.state is JobState.STOPPED
        said = status.message if ended else job_message
        why = _Why(JOB_FAILED, _job_message(view.job.state, said), JOB_FAILED.remedy)
    return _retry_or_fail(context, stage, status, view, why)


class _Why(NamedTuple):
    code: Code
    message: str
    remedy: str
    failure: Failure | None = None


def _why(failure: Failure) -> _Why:
    """What an attempt said itself. A code of another release is told as the unexpected one."""
    code = find(failure.code) or UNEXPECTED
    where = f"{failure.where}: " if failure.where else ""
    return _Why(code, without_escapes(where + failure.message), failure.remedy or code.remedy, failure)


def _given_up(stage: Stage, why: _Why, tried: str = "", **update: object) -> Mark:
    update["failure"] = why.failure
    return Mark(stage, StageState.FAILED, why.code.name, why.message + tried, why.remedy, update)


def _retry_or_fail(
    context: DecisionContext, stage: Stage, status: StageStatus, view: AttemptView, why: _Why
) -> Action:
    """A failure counts against ``retries`` unless the attempt got to a later checkpoint than the last one."""
    retries = context.settings(stage).retries
    step = view.progress.checkpoint_step if view.progress is not None else None
    got_further = step is not None and step > (status.failed_at_step or 0)
    failures = 1 if got_further else status.failures + 1
    if failures > retries:
        tried = f" (attempt {status.attempt}, after {retries} retries)" if retries else ""
        return _given_up(stage, why, tried, failures=failures)
    limit = context.desired.document.spec.backoff_limit
    if limit is not None and context.failures >= limit:
        tried = f" (attempt {status.attempt}; the pipeline's backoffLimit of {limit} is used up)"
        return _given_up(stage, why, tried, failures=failures)
    policy = context.policy
    delay = min(policy.backoff_seconds * 2.0 ** (failures - 1), policy.max_backoff_seconds)
    kept = step if got_further else status.failed_at_step
    at = context.now + delay
    return ScheduleRetry(stage, at, why.code.name, why.message, failures, kept, counted=True)


def _suspended_message(view: AttemptView) -> str:
    progress = view.progress
    if progress is not None and progress.activity is Activity.SUSPENDED:
        step = progress.checkpoint_step or progress.step
        return f"stopped with a checkpoint at step {step}" if step else "stopped before its first step"
    if progress is not None and progress.checkpoint_step:
        return f"was ended; goes on from the checkpoint of step {progress.checkpoint_step}"
    return "was ended before its first checkpoint"


def _job_message(state: JobState, message: str) -> str:
    if state is JobState.SUCCEEDED:
        return "the job ended without a result"
    if state is JobState.STOPPED:
        return message or "the job was stopped"
    return message or "the job failed without a message"
