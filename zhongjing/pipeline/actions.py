"""What a decision consists of, and how it changes the status. Pure.

The reconciler applies the actions to the status, stores it (If-Match), and only then performs the ones that
reach outside: :class:`Submit`, :class:`RequestWorkers`, :class:`RequestStop` and :class:`Kill`. Each of them
may be performed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import (
    Condition,
    ConditionType,
    PipelineStatus,
    StageState,
    StageStatus,
    StopReason,
    stamp,
)


@dataclass(frozen=True)
class Adopt:
    """Takes up a new generation: failures are forgiven, results of earlier ones were there before."""

    generation: int


@dataclass(frozen=True)
class Submit:
    """Submits an attempt. Its id is in the status before the backend hears of it."""

    stage: Stage
    key: str
    attempt: int
    submission_id: str
    spec_hash: str
    fields: Mapping[str, Any]
    changes: Sequence[str] = ()
    message: str = ""


@dataclass(frozen=True)
class RequestWorkers:
    """Asks for the workers of an attempt that is prepared. Told in every pass until they are at work."""

    stage: Stage


@dataclass(frozen=True)
class RequestStop:
    """Asks an attempt to stop with a checkpoint (the stop object)."""

    stage: Stage
    key: str
    attempt: int
    reason: StopReason
    message: str


@dataclass(frozen=True)
class Kill:
    """Ends a job at once."""

    stage: Stage
    submission_id: str


@dataclass(frozen=True)
class Mark:
    """Records the state of a stage."""

    stage: Stage
    state: StageState
    reason: str
    message: str = ""
    remedy: str | None = None
    update: Mapping[str, Any] = field(default_factory=dict)  # further fields of StageStatus


@dataclass(frozen=True)
class ScheduleRetry:
    """Plans the next attempt at a time; ``counted`` against ``backoffLimit`` when the last one failed."""

    stage: Stage
    at: float
    reason: str
    message: str
    failures: int
    failed_at_step: int | None = None
    counted: bool = False


@dataclass(frozen=True)
class Conclude:
    """Records the condition that holds for the whole pipeline."""

    type: ConditionType
    reason: str
    message: str = ""
    remedy: str | None = None


SUSPENDED = Conclude(ConditionType.SUSPENDED, "Suspended", "suspended; resume goes on from the checkpoints")

Action = Adopt | Submit | RequestWorkers | RequestStop | Kill | Mark | ScheduleRetry | Conclude


def apply(status: PipelineStatus, actions: Iterable[Action], now: float) -> PipelineStatus:
    """The status after ``actions``. Equal to ``status`` when they say nothing new."""
    for action in actions:
        status = _apply(status, action, now)
    return status


def _apply(status: PipelineStatus, action: Action, now: float) -> PipelineStatus:
    if isinstance(action, Adopt):
        kept = {stage: _forgive(entry) for stage, entry in status.stages.items()}
        return status.model_copy(
            update={
                "observed_generation": action.generation,
                "stages": kept,
                "started_at": None,
                "failures": 0,
            }
        )
    if isinstance(action, Conclude):
        return _conclude(status, action, now)
    if isinstance(action, Kill | RequestWorkers):
        return status
    before = status.stage(action.stage)
    if isinstance(action, Submit):
        after = _submitted(before, action, now)
    else:
        after = before.model_copy(update=_changes(before, action, now))
    update: dict[str, Any] = {"stages": {**status.stages, action.stage: after}}
    if isinstance(action, Submit) and status.started_at is None:
        update["started_at"] = stamp(now)
    if isinstance(action, ScheduleRetry) and action.counted:
        update["failures"] = status.failures + 1
    return status.model_copy(update=update)


def _forgive(entry: StageStatus) -> StageStatus:
    if entry.state.is_active:
        return entry
    update: dict[str, Any] = {
        "failures": 0,
        "failed_at_step": None,
        "next_retry_at": None,
        "started_at": None,
    }
    if entry.state in (StageState.FAILED, StageState.SUSPENDED):
        reason = "Resuming" if entry.state is StageState.SUSPENDED else ""
        update |= {
            "state": StageState.PENDING,
            "reason": reason,
            "message": "",
            "remedy": None,
            "failure": None,
        }
    elif entry.state is StageState.SUCCEEDED:
        update |= {"state": StageState.SKIPPED, "reason": "DoneBefore", "message": "was done before"}
    return entry.model_copy(update=update)


def _submitted(before: StageStatus, action: Submit, now: float) -> StageStatus:
    """A new attempt. Of a submission that is repeated, the status goes on saying why it could not be made."""
    again = before.submission_id == action.submission_id
    goes_on = before.key == action.key
    return StageStatus(
        state=StageState.QUEUED,
        key=action.key,
        reason=before.reason if again else "Submitted",
        message=before.message if again else action.message,
        remedy=before.remedy if again else None,
        attempt=action.attempt,
        failures=before.failures if goes_on else 0,
        failed_at_step=before.failed_at_step if goes_on else None,
        submission_id=action.submission_id,
        spec_hash=action.spec_hash,
        fields=dict(action.fields),
        changes=list(action.changes),
        submitted_at=before.submitted_at if again else stamp(now),
        started_at=before.started_at if goes_on else None,
    )


def _changes(before: StageStatus, action: RequestStop | Mark | ScheduleRetry, now: float) -> dict[str, Any]:
    if isinstance(action, RequestStop):
        if before.stop_reason is action.reason:
            return {}
        return {
            "stop_reason": action.reason,
            "stop_requested_at": stamp(now),
            "reason": "Stopping",
            "message": action.message,
        }
    if isinstance(action, ScheduleRetry):
        return {
            "state": StageState.PENDING,
            "reason": action.reason,
            "message": action.message,
            "remedy": None,
            "failures": action.failures,
            "failed_at_step": action.failed_at_step,
            "next_retry_at": stamp(action.at),
            "unknown_since": None,
            **before.waited(now),
        }
    update: dict[str, Any] = {
        "state": action.state,
        "reason": action.reason,
        "message": action.message,
        "remedy": action.remedy,
        **action.update,
    }
    ended = action.state in (StageState.SUCCEEDED, StageState.FAILED, StageState.SUSPENDED)
    if ended and before.state is not action.state:
        update.setdefault("finished_at", stamp(now))
        update |= {"next_retry_at": None, "unknown_since": None, "waiting_since": None}
    return update


def _conclude(status: PipelineStatus, action: Conclude, now: float) -> PipelineStatus:
    before = status.condition()
    same = before is not None and (before.type, before.reason, before.message, before.remedy) == (
        action.type,
        action.reason,
        action.message,
        action.remedy,
    )
    if same and len(status.conditions) == len(ConditionType):
        return status
    since = {condition.type: condition for condition in status.conditions}
    conditions = []
    for type_ in ConditionType:
        holds = type_ is action.type
        old = since.get(type_)
        unchanged = old is not None and old.status == holds
        conditions.append(
            Condition(
                type=type_,
                status=holds,
                reason=action.reason if holds else (old.reason if old and not old.status else f"Not{type_}"),
                message=action.message if holds else "",
                remedy=action.remedy if holds else None,
                since=old.since if old is not None and unchanged else stamp(now),
            )
        )
    return status.model_copy(update={"conditions": conditions})
