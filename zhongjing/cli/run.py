"""Attends a run that was applied: follows it, stops it on Ctrl-C, and tells how it ended."""

from __future__ import annotations

from typing import Any

from zhongjing.cli.console import Console
from zhongjing.cli.display.summary import result, summary
from zhongjing.cli.display.view import RunView
from zhongjing.cli.follow import (
    Display,
    display_for,
    ending,
    exit_code,
    follow,
    look,
    manifests_of,
    waits_for_input,
)
from zhongjing.cli.guard import INTERRUPTED, OK
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import ConditionType, DesiredState


def attend(
    session: Session,
    desired: DesiredState,
    console: Console,
    *,
    wait: bool = True,
    wait_for_input: bool = False,
) -> int:
    """Follows a run to its end and prints the result; returns the exit code.

    The first Ctrl-C stops the run with a checkpoint, the second leaves at once (the run goes on stopping).

    Args:
        session: where it runs.
        desired: what was applied.
        console: where to print.
        wait: False only says how to follow the run.
        wait_for_input: go on while the run waits for a source.
    """
    name = desired.pipeline
    if not wait:
        console.say(f"{name}: submitted; follow it with: zhongjing status {name} --local --watch")
        if console.json_mode:
            console.result(result(look(session, desired), {}))
        return OK
    display = display_for(console)
    interrupted = False
    shown: RunView | None
    with display:
        try:
            shown = follow(session, desired, display, wait_for_input=wait_for_input)
        except KeyboardInterrupt:
            interrupted = True
            shown = _stop(session, desired, display)
    if shown is None:
        console.warn(f"{name}: left; the run goes on stopping by itself, with a checkpoint")
        shown = look(session, desired)
    return _conclude(session, shown, console, interrupted=interrupted)


def _stop(session: Session, desired: DesiredState, display: Display) -> RunView | None:
    """Suspends the run and waits for its checkpoint; None when interrupted again."""
    try:
        display.note("interrupted: stopping with a checkpoint (Ctrl-C again leaves at once)")
        return follow(session, session.suspend(desired.pipeline), display)
    except KeyboardInterrupt:
        return None


def _conclude(session: Session, shown: RunView, console: Console, *, interrupted: bool) -> int:
    manifests = manifests_of(session, shown)
    code = INTERRUPTED if interrupted else exit_code(shown)
    lines = summary(shown, manifests)
    if lines:
        console.say()
    for line in lines:
        console.say(line)
    for line in _closing(shown, interrupted=interrupted):
        console.warn(line)
    if console.json_mode:
        console.result({**result(shown, manifests), **_problem(shown, code), "exitCode": code})
    return code


def _closing(shown: RunView, *, interrupted: bool) -> list[str]:
    if interrupted:
        if shown.status is not None and shown.status.holds(ConditionType.COMPLETE):
            return [f"{shown.name}: was complete before it could be stopped"]
        if shown.settled:
            return [f"{shown.name}: stopped with a checkpoint; the same command goes on from it"]
        return [f"{shown.name}: the same command goes on from the checkpoint"]
    lines = ending(shown)
    return ["", *lines] if lines else []


def _problem(shown: RunView, code: int) -> dict[str, Any]:
    """The keys by which a program recognises that the object tells of a problem."""
    if code == OK:
        return {}
    if code == INTERRUPTED:
        return {"error": "Interrupted"}
    return {"error": "MissingInputError" if waits_for_input(shown) else "TrainingError"}
