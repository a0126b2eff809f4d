"""Decisions about stages of which no attempt is active: what is done, what waits, what runs next. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from zhongjing.codes.data import MISSING_INPUT
from zhongjing.codes.training import DEADLINE_EXCEEDED
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import SUSPENDED, Action, Conclude, Kill, Mark, RequestStop, Submit, apply
from zhongjing.pipeline.context import DecisionContext
from zhongjing.pipeline.observe import AttemptView, ResultView
from zhongjing.pipeline.plan import StagePlan, missing_input
from zhongjing.pipeline.state import (
    CLUSTER_NOT_READY,
    QUEUED,
    REFUSALS,
    RETRYING,
    RUNNING,
    UNREADY,
    WAITING_FOR_INPUT,
    ConditionType,
    PipelineStatus,
    StageState,
    StageStatus,
    StopReason,
    seconds,
)
from zhongjing.storage.progress import Activity

_HOPELESS = (StageState.FAILED, StageState.WAITING_FOR_INPUT, StageState.BLOCKED)


def advance(context: DecisionContext, status: PipelineStatus) -> list[Action]:
    """Updates the state of every idle stage, and starts the next one if none runs.

    A failed stage ends the pipeline: what could still run would only hide the failure for hours. For the same
    reason nothing starts while a later stage cannot fit.
    """
    busy = any(entry.state.is_active for entry in status.stages.values())
    done = {stage: context.is_done(stage) for stage in context.plan}
    failed = any(_is_failed(status.stage(node.stage), node, done) for node in context.plan.values())
    missing = missing_input(context.plan, done, context.desired.pipeline) is not None
    start = not (busy or failed or missing or context.observed.unfit or context.desired.suspend)
    blocked_by = context.observed.blocked_by if start else None
    start = start and blocked_by is None
    actions: list[Action] = []
    for stage, node in context.plan.items():
        entry = status.stage(stage)
        if entry.state.is_active:
            continue
        states = {up: status.stage(up).state for up in node.upstream}
        said = _idle(context, node, entry, states, start=start, blocked_by=blocked_by)
        new = [action for action in map(context.whole, said) if not _is_old(entry, action)]
        started = any(isinstance(action, Submit) for action in new)
        # A stage that will be tried again keeps the cluster.
        start = start and not started and not _is_retrying(entry, node, done)
        actions += new
        status = apply(status, new, context.now)
    return actions


def conclude(context: DecisionContext, status: PipelineStatus) -> Conclude:
    """The condition that holds for the whole pipeline after this pass."""
    entries = {stage: status.stage(stage) for stage in context.plan}
    wanted = [entries[stage] for stage, node in context.plan.items() if node.wanted]
    active = [stage for stage in Stage if status.stage(stage).state.is_active]
    if all(entry.state.is_done for entry in wanted) and not active:
        return Conclude(ConditionType.COMPLETE, "Complete", "everything asked for is done")
    if active:
        names = ", ".join(f"{stage} (attempt {status.stage(stage).attempt})" for stage in active)
        first = status.stage(active[0])
        away = context.observed.away
        # What a submission lacked says more than that Ray does not answer.
        told = first.reason in UNREADY and (away is None or not first.confirmed)
        if told and not context.desired.suspend:
            return Conclude(ConditionType.PROGRESSING, first.reason, first.message, first.remedy)
        if away is not None and not context.desired.suspend:
            return away
        view = context.observed.attempts.get(active[0])
        if view is not None and view.lacks_workers and not context.desired.suspend:
            message = f"{names}: {view.job.lacks}"
            return Conclude(ConditionType.PROGRESSING, CLUSTER_NOT_READY, message, view.job.remedy)
        reason = "Suspending" if context.desired.suspend else RUNNING
        message = f"{names}: {_doing(context, active[0], first)}"
        if away is not None:
            return Conclude(ConditionType.PROGRESSING, reason, f"{message}; {away.message}", away.remedy)
        return Conclude(ConditionType.PROGRESSING, reason, message)
    for stage, entry in entries.items():
        if entry.state is StageState.FAILED:
            return Conclude(ConditionType.FAILED, entry.reason, f"{stage}: {entry.message}", entry.remedy)
    if context.desired.suspend:
        return SUSPENDED
    done = {stage: context.is_done(stage) for stage in context.plan}
    missing = missing_input(context.plan, done, context.desired.pipeline)
    if missing is not None:
        return Conclude(ConditionType.FAILED, MISSING_INPUT.name, missing.message, missing.remedy)
    for entry in entries.values():
        if entry.reason in REFUSALS and entry.state is StageState.BLOCKED:
            return Conclude(ConditionType.PROGRESSING, entry.reason, entry.message, entry.remedy)
    for stage, entry in entries.items():
        if entry.state is StageState.PENDING and entry.reason in UNREADY:
            return Conclude(ConditionType.PROGRESSING, entry.reason, entry.message, entry.remedy)
        if entry.next_retry_at is not None and entry.state is StageState.PENDING:
            message = f"{stage}: {entry.message}; attempt {entry.attempt + 1} at {entry.next_retry_at}"
            return Conclude(ConditionType.PROGRESSING, RETRYING, message)
    if any(entry.state is StageState.PENDING and entry.reason == QUEUED for entry in wanted):
        return Conclude(
            ConditionType.PROGRESSING, QUEUED, context.observed.blocked_by or "waits for the cluster"
        )
    for stage, entry in entries.items():
        if entry.state is StageState.WAITING_FOR_INPUT:
            message = f"{stage} {entry.message}"
            return Conclude(ConditionType.PROGRESSING, WAITING_FOR_INPUT, message, entry.remedy)
    return Conclude(ConditionType.PROGRESSING, RUNNING, "between two stages")


def _doing(context: DecisionContext, stage: Stage, entry: StageStatus) -> str:
    """Where an active stage stands; while it prepares, with what, and that nothing expensive is held."""
    view = context.observed.attempts.get(stage)
    progress = view.progress if view is not None else None
    if progress is None or progress.activity is not Activity.PREPARING:
        return entry.state.value
    # In steps of ten: each new text is a write of the status.
    done = f" {int(progress.fraction * 10) * 10} %" if progress.fraction else ""
    what = f" ({progress.message}{done})" if progress.message else ""
    return f"preparing{what}, no workers are asked for yet"


def _is_failed(entry: StageStatus, node: StagePlan, done: Mapping[Stage, bool]) -> bool:
    return entry.state is StageState.FAILED and entry.key == node.key and not done[node.stage]


def _is_retrying(entry: StageStatus, node: StagePlan, done: Mapping[Stage, bool]) -> bool:
    return entry.next_retry_at is not None and entry.key == node.key and not done[node.stage]


def _is_old(entry: StageStatus, action: Action) -> bool:
    """Whether a mark says only what the status says already."""
    return (
        isinstance(action, Mark)
        and (entry.state, entry.reason, entry.message, entry.remedy)
        == (action.state, action.reason, action.message, action.remedy)
        and all(getattr(entry, name) == value for name, value in action.update.items())
    )


def _idle(
    context: DecisionContext,
    node: StagePlan,
    entry: StageStatus,
    states: Mapping[Stage, StageState],
    *,
    start: bool,
    blocked_by: str | None,
) -> list[Action]:
    """What to do about one stage of which no attempt is active."""
    stage = node.stage
    result = context.result(stage, node.key)
    if result is not None:
        return [_done(node, entry, result)]
    if not node.wanted:
        message = "was not made for this document, and is not among what was asked for"
        remedy = f"make it with: `zhongjing submit --pipeline {context.desired.pipeline} --stage {stage}`"
        return [Mark(stage, StageState.BLOCKED, MISSING_INPUT.name, message, remedy, _CLEARED)]
    unfit = context.observed.unfit.get(stage)
    if unfit is not None:
        return [Mark(stage, StageState.BLOCKED, unfit.code.name, unfit.message, unfit.remedy, _CLEARED)]
    hopeless = [up for up in node.upstream if states[up] in _HOPELESS]
    if hopeless:
        names = ", ".join(f"{up} ({states[up]})" for up in hopeless)
        return [Mark(stage, StageState.BLOCKED, "Upstream", f"needs {names}", update=_CLEARED)]
    if node.waiting:
        return [_waiting(context, node)]
    if entry.state is StageState.FAILED and entry.key == node.key:
        return []
    pending = [up for up in node.upstream if not states[up].is_done]
    if pending:
        return [_pending(node, entry, "Upstream", f"waits for {', '.join(pending)}")]
    return _runnable(context, node, entry, start=start, blocked_by=blocked_by)


_CLEARED = {"manifest_uri": None, "model_uri": None}


def _done(node: StagePlan, entry: StageStatus, result: ResultView) -> Mark:
    update = {
        "manifest_uri": result.manifest_uri,
        "model_uri": result.model_uri,
        "key": node.key,
        "fields": dict(node.fields),
        "next_retry_at": None,
    }
    if entry.key == node.key and entry.state is StageState.SUCCEEDED:
        return Mark(node.stage, entry.state, entry.reason, entry.message, entry.remedy, update)
    if entry.key == node.key and entry.next_retry_at is not None and result.attempt == entry.attempt:
        # An attempt that was given up finished after all.
        return Mark(node.stage, StageState.SUCCEEDED, "Succeeded", update=update)
    return Mark(node.stage, StageState.SKIPPED, "DoneBefore", "was done before", update=update)


def _waiting(context: DecisionContext, node: StagePlan) -> Mark:
    source = context.desired.document.spec.source(node.waiting[0])
    names = ", ".join(node.waiting)
    return Mark(
        node.stage,
        StageState.WAITING_FOR_INPUT,
        WAITING_FOR_INPUT,
        f"waits for {names}: nothing is at {source.place} yet",
        "write it there: the run goes on by itself; or make the stages of another time with "
        f"`zhongjing submit --pipeline {context.desired.pipeline} --stage {node.stage}`",
        _CLEARED,
    )


def _pending(node: StagePlan, entry: StageStatus, reason: str, message: str) -> Mark:
    update = _CLEARED if entry.key != node.key else {}
    return Mark(node.stage, StageState.PENDING, reason, message, update=update)


def _runnable(
    context: DecisionContext, node: StagePlan, entry: StageStatus, *, start: bool, blocked_by: str | None
) -> list[Action]:
    """All that the stage needs is there."""
    stage = node.stage
    view = context.observed.attempts.get(stage)
    if view is not None and context.is_foreign(entry, view):
        view = None
    if view is not None and view.is_alive:
        # The backend changed its mind about an attempt that was given up, or one came late.
        return [
            Kill(stage, view.job.submission_id),
            _pending(node, entry, "Stopping", "the last attempt is ending"),
        ]
    if context.desired.suspend:
        if entry.state is StageState.SUSPENDED:
            return []
        return [_pending(node, entry, "Suspended", "the pipeline is suspended")]
    retrying = _is_retrying(entry, node, {stage: False})
    if blocked_by is not None:
        return [] if retrying else [_pending(node, entry, QUEUED, blocked_by)]
    if not start:
        return [] if retrying else [_pending(node, entry, "Upstream", "waits for an earlier stage")]
    if retrying and entry.next_retry_at is not None and seconds(entry.next_retry_at) > context.now:
        return []
    if context.overdue:
        code, update = DEADLINE_EXCEEDED.name, {"key": node.key}
        remedy = "raise spec.activeDeadlineSeconds; what is done stays done"
        return [Mark(stage, StageState.FAILED, code, context.overdue_message, remedy, update)]
    away = context.observed.away
    if view is not None and away is not None and view.progress is not None and not view.has_ended:
        # It may live where it cannot be seen.
        return [Mark(stage, StageState.PENDING, away.reason, away.message, away.remedy)]
    if view is not None and not context.is_over(view) and entry.key is not None:
        message = "the backend gave the job up, but its progress moves; asked to stop"
        return [RequestStop(stage, entry.key, entry.attempt, StopReason.LOST, message)]
    return [context.submit(node, entry, entry.attempt + 1, _start_message(node, entry, view))]


def _start_message(node: StagePlan, entry: StageStatus, view: AttemptView | None) -> str:
    if entry.key is None or entry.attempt == 0:
        return "first run"
    if entry.key != node.key:
        return "its settings or data changed"
    if entry.next_retry_at is None or entry.reason == "Resuming":
        progress = view.progress if view is not None else None
        made_none = progress is not None and not progress.step and not progress.checkpoint_step
        if made_none and entry.failed_at_step is None:
            return "begins again: the last attempt made no step"
        return "goes on where it stopped"
    return f"tries again: {entry.message}"
