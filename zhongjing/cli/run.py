"""Attends a run that was applied: follows it, stops it on Ctrl-C, and tells how it ended."""

from __future__ import annotations

import time
from collections.abc import Mapping

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
    problem_keys,
    results_of,
)
from zhongjing.cli.guard import INTERRUPTED, OK
from zhongjing.config.commands import Commands
from zhongjing.config.stages import Stage
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import ConditionType, DesiredState, StageState
from zhongjing.storage.manifest import StageManifest

KILL_SECONDS = 1.5  # from ending a run at once to the command's own end, at most
_LOOK_SECONDS = 0.1


def attend(
    session: Session,
    desired: DesiredState,
    console: Console,
    *,
    wait: bool = True,
    wait_for_input: bool = False,
    interrupted: bool = False,
) -> int:
    """Follows a run to its end and prints the result; returns the exit code.

    On this machine the first Ctrl-C stops the run with a checkpoint, the second ends it at once, the third
    leaves it to end by itself. On a cluster Ctrl-C leaves the run going.

    Args:
        session: where it runs.
        desired: what was applied.
        console: where to print.
        wait: False only says how to follow the run.
        wait_for_input: go on while the run waits for a source.
        interrupted: the first Ctrl-C came already, while the run was applied.
    """
    name = desired.pipeline
    if not (wait or interrupted):
        console.say(f"{name}: submitted; follow it with: {_command('status', session, name, '--watch')}")
        if console.json_mode:
            console.result(result(look(session, desired), {}))
        return OK
    display = display_for(console)
    shown: RunView | None = None
    with display:
        try:
            if not interrupted:
                shown = follow(session, desired, display, wait_for_input=wait_for_input)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and session.stops_on_interrupt:
            shown = _stop(session, desired, display)
    if interrupted and not session.stops_on_interrupt:
        return _leave_going(session, name, console)
    if shown is None:
        return _leave(name, console)
    return _conclude(session, shown, console, interrupted=interrupted)


def end_now(session: Session, desired: DesiredState, display: Display) -> RunView:
    """Ends a run at once and waits a moment for it; returns the last look."""
    deadline = time.monotonic() + KILL_SECONDS
    desired = session.kill(desired.pipeline)
    while True:
        shown = look(session, desired)
        display.update(shown)
        if shown.settled or time.monotonic() > deadline:
            return shown
        time.sleep(_LOOK_SECONDS)


def _stop(session: Session, desired: DesiredState, display: Display) -> RunView | None:
    """Suspends the run and waits for its checkpoint; interrupted again, ends it; once more, gives None."""
    try:
        display.note("interrupted: stopping with a checkpoint (Ctrl-C again ends it now)")
        return follow(session, session.suspend(desired.pipeline), display)
    except KeyboardInterrupt:
        pass
    try:
        display.note("interrupted again: ending it now (Ctrl-C again leaves at once)")
        return end_now(session, desired, display)
    except KeyboardInterrupt:
        return None


def _leave(name: str, console: Console) -> int:
    """Says the least, without asking anybody: what runs may be just what does not answer."""
    console.warn(f"{name}: left; the run ends by itself, and the same command goes on from its checkpoint")
    if console.json_mode:
        console.result(
            {"pipeline": name, "error": "Interrupted", "code": "Interrupted", "exitCode": INTERRUPTED}
        )
    return INTERRUPTED


def _leave_going(session: Session, name: str, console: Console) -> int:
    """Says how to follow and to stop what goes on without this command."""
    console.warn(f"{name}: no longer followed; the run goes on")
    console.warn(f"  follow it: {_command('status', session, name, '--watch')}")
    console.warn(f"  stop it:   {_command('stop', session, name)}")
    if console.json_mode:
        console.result(
            {"pipeline": name, "error": "Interrupted", "code": "Interrupted", "exitCode": INTERRUPTED}
        )
    return INTERRUPTED


def _command(command: str, session: Session, *words: str) -> str:
    return Commands(session.flags).line(command, *words)


def _conclude(session: Session, shown: RunView, console: Console, *, interrupted: bool) -> int:
    manifests = results_of(session, shown, console)
    code = INTERRUPTED if interrupted else exit_code(shown)
    lines = summary(shown, manifests)
    if lines:
        console.say()
    for line in lines:
        console.say(line)
    for line in _closing(shown, interrupted=interrupted):
        console.warn(line)
    if code == OK:
        for line in _next(session, shown.name, manifests):
            console.say(line)
    if console.json_mode:
        console.result({**result(shown, manifests), **problem_keys(shown, code), "exitCode": code})
    return code


def _next(session: Session, name: str, manifests: Mapping[Stage, StageManifest]) -> list[str]:
    """The two commands with which a result is talked to, as they are called here."""
    stage = next((each for each in (Stage.PPO, Stage.SFT) if each in manifests), None)
    if stage is None:
        return []
    pull = Commands(session.flags).line("pull", f"{name}/{stage}", "./model")
    return ["", "talk to it", f"  {pull}", f"  {Commands(None).line('chat', './model')}"]


def _closing(shown: RunView, *, interrupted: bool) -> list[str]:
    if not interrupted:
        lines = ending(shown)
        return ["", *lines] if lines else []
    if shown.status is not None and shown.status.holds(ConditionType.COMPLETE):
        return [f"{shown.name}: was complete before it could be stopped"]
    if not shown.settled:
        return [f"{shown.name}: is ending; the same command goes on from the last checkpoint"]
    stopped = [
        f"{stage.stage}: {stage.status.message}"
        for stage in shown.stages
        if stage.state is StageState.SUSPENDED and stage.status.message
    ]
    return [*stopped, f"{shown.name}: the same command goes on"]
