"""How a run ended: the exit code, why it is not complete, and what to do about it."""

from __future__ import annotations

from typing import Any

from zhongjing.cli.display.view import RunView, StageView
from zhongjing.cli.errors import FAILED, INTERRUPTED, OK, Problem
from zhongjing.codes import find, unexpected
from zhongjing.codes.data import MISSING_INPUT
from zhongjing.config.commands import Commands
from zhongjing.pipeline.state import DOES_NOT_FIT, NO_ROOM, WAITING_FOR_INPUT, ConditionType, StageState

# Nothing happens in these, and something should.
_SILENT = (StageState.WAITING_FOR_INPUT, StageState.BLOCKED, StageState.SUSPENDED)
# What a program that knows our classes would have caught.
_CLASSES = {
    MISSING_INPUT.name: "MissingInputError",
    WAITING_FOR_INPUT: "MissingInputError",
    DOES_NOT_FIT: "ConfigError",
    NO_ROOM: "BackendError",
}


def waits_for_input(seen: RunView) -> bool:
    """Whether the run waits for a source that is not there yet."""
    condition = seen.status.condition() if seen.status is not None else None
    return condition is not None and condition.reason == WAITING_FOR_INPUT


def exit_code(seen: RunView) -> int:
    """0 when everything that was asked for exists, 130 when another command stopped the run.

    Else it is what the code that the run ended with says, or 1.
    """
    assert seen.status is not None
    if seen.status.holds(ConditionType.COMPLETE):
        return OK
    if seen.status.holds(ConditionType.SUSPENDED):
        return INTERRUPTED
    condition = seen.status.condition()
    code = find(condition.reason) if condition is not None else None
    return code.exit_code if code is not None else FAILED


def problem(seen: RunView) -> Problem | None:
    """Why a settled run is not complete, if something is wrong (being stopped or waiting is not)."""
    assert seen.status is not None
    condition = seen.status.condition()
    stuck = seen.status.stands_still and not waits_for_input(seen)
    if condition is None or not (condition.type is ConditionType.FAILED or stuck):
        return None
    failed = next((stage for stage in seen.stages if stage.state is StageState.FAILED), None)
    if failed is not None:
        return _problem_of(seen, failed)
    said = next((stage.status for stage in seen.stages if stage.status.reason == condition.reason), None)
    return Problem(
        error=_CLASSES.get(condition.reason, "TrainingError"),
        code=condition.reason,
        message=condition.message or (said.message if said is not None else condition.reason),
        where=seen.name,
        remedy=condition.remedy or (said.remedy if said is not None else None),
    )


def problem_keys(seen: RunView, code: int) -> dict[str, Any]:
    """The keys by which a program recognises that the object of ``-o json`` tells of a problem.

    Args:
        seen: a settled run.
        code: with which the command exits.
    """
    if code == OK:
        return {}
    if code == INTERRUPTED:
        return {"error": unexpected.INTERRUPTED.name, "code": unexpected.INTERRUPTED.name}
    found = problem(seen)
    if found is not None:
        return {**found.as_dict(), "traceback": found.traceback}
    if not waits_for_input(seen):
        # Another command stopped the run.
        return {"error": unexpected.INTERRUPTED.name, "code": unexpected.INTERRUPTED.name}
    # Message and remedy are the condition's: the object has them already.
    return {"error": _CLASSES[WAITING_FOR_INPUT], "code": WAITING_FOR_INPUT, "where": seen.name}


def ending(seen: RunView) -> list[str]:
    """Why a settled run is not complete: what each stage has to say, and what to do about it."""
    assert seen.status is not None
    condition = seen.status.condition()
    if condition is None or condition.type is ConditionType.COMPLETE:
        return []
    lines: list[str] = []
    remedies: set[str] = set()
    found = problem(seen)
    if found is not None and all(stage.state is not StageState.FAILED for stage in seen.stages):
        lines += found.lines()
        remedies.add(found.remedy or "")
    for stage in seen.stages:
        status = stage.status
        if stage.state is StageState.FAILED:
            lines += _problem_of(seen, stage, short=True).lines()
            remedies.add(status.remedy or "")
            if status.submission_id is not None:
                log = Commands(seen.flags).line("logs", seen.name, "--stage", stage.stage.value)
                lines.append(f"  log: {log}")
        elif stage.state in _SILENT:
            lines.append(f"{stage.stage}: {stage.doing}: {status.message or status.reason}")
            if status.remedy and status.remedy not in remedies:
                lines.append(f"  remedy: {status.remedy}")
                remedies.add(status.remedy)
    if not lines:
        lines.append(f"{seen.name}: {condition.message or condition.reason}")
        if condition.remedy:
            lines.append(f"  remedy: {condition.remedy}")
    return lines


def _problem_of(seen: RunView, stage: StageView, *, short: bool = False) -> Problem:
    """What a failed stage tells. ``short``: the stage as the place, where people know the pipeline."""
    status = stage.status
    failure = status.failure
    place = failure.where if failure is not None and failure.where else f"{seen.name}/{stage.stage}"
    return Problem(
        error=failure.error if failure is not None else "TrainingError",
        code=status.reason,
        message=status.message if short or failure is None else failure.message,
        where=stage.stage.value if short else place,
        remedy=status.remedy,
        traceback=failure.traceback_uri if failure is not None else None,
    )
