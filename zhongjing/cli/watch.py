"""Follows a pipeline until nothing changes any more, shows it, and stops it on Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Protocol, Self, TypeVar

from zhongjing.cli.console import Console
from zhongjing.cli.display.summary import result, summary
from zhongjing.cli.display.view import RunView, view
from zhongjing.cli.errors import INTERRUPTED, OK
from zhongjing.cli.outcome import ending, exit_code, problem_keys, waits_for_input
from zhongjing.codes.command import UNKNOWN_PIPELINE
from zhongjing.config.commands import Commands
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError, NotFoundError, TransientError
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import (
    UNREADY,
    Condition,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
    StageStatus,
)
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.progress import Progress

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
IGNORED_SECONDS = 5.0  # a controller that lives has taken up a pipeline by then
LOOK_AGAIN_SECONDS = 10.0
KILL_SECONDS = 1.5  # from ending a run at once to the command's own end, at most
_LOOK_SECONDS = 0.1

_Said = TypeVar("_Said", StageStatus, Condition)


class Display(Protocol):
    """Shows a run. Entered while it is followed."""

    def note(self, text: str) -> None:
        """A line of its own."""
        ...

    def update(self, view: RunView) -> None:
        """The run as it is now."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...


def display_for(console: Console) -> Display:
    """Bars on a terminal, plain lines elsewhere."""
    if console.interactive:
        from zhongjing.cli.display.live import LiveDisplay

        return LiveDisplay(console.stream)
    from zhongjing.cli.display.plain import PlainDisplay

    return PlainDisplay(console.say)


def look(session: Session, desired: DesiredState) -> RunView:
    """The run as it is now. ``desired`` is what was last known to be wanted; the stored one counts.

    Raises:
        ConfigError: the pipeline was deleted.
    """
    wanted = session.desired(desired.pipeline)
    if wanted is None:
        raise ConfigError(
            f"the pipeline {desired.pipeline} was deleted",
            code=UNKNOWN_PIPELINE,
            remedy="its artifacts are kept unless its deletionPolicy was Delete: the same command goes on",
        )
    status = _told(session.status(wanted.pipeline), session.flags, wanted.pipeline)
    progress: dict[Stage, Progress] = {}
    for stage in wanted.document.spec.stages.present():
        # A stage that is done has its manifest: its last progress would only cost a request.
        if status is not None and not status.stage(stage).state.is_active:
            continue
        found = session.progress(wanted.pipeline, stage)
        if found is not None:
            progress[stage] = found
    return view(
        wanted,
        status,
        progress,
        dashboard_url=session.dashboard_url,
        dashboard_login=session.dashboard_login,
        flags=session.flags,
    )


def _told(status: PipelineStatus | None, flags: str, pipeline: str) -> PipelineStatus | None:
    """A status whose remedies name commands as this user can give them."""
    if status is None:
        return None
    commands = Commands(flags)

    def whole(said: _Said, stage: str | None) -> _Said:
        told = {"message": commands.complete(said.message, pipeline, stage)}
        if said.remedy is not None:
            told["remedy"] = commands.complete(said.remedy, pipeline, stage)
        return said.model_copy(update=told)

    stages = {stage: whole(entry, stage.value) for stage, entry in status.stages.items()}
    conditions = [whole(condition, None) for condition in status.conditions]
    return status.model_copy(update={"stages": stages, "conditions": conditions})


def follow(
    session: Session,
    desired: DesiredState,
    display: Display,
    *,
    wait_for_input: bool = False,
    sleep: Callable[[float], None] = time.sleep,
    now: Callable[[], float] = time.monotonic,
) -> RunView:
    """Shows the run until nothing changes by itself any more.

    Args:
        session: where it runs.
        desired: what was applied.
        display: already entered.
        wait_for_input: go on while the run waits for a source.
        sleep: waits between two looks, in seconds.
        now: a clock in seconds.

    Returns:
        The last look.

    Raises:
        StorageError, BackendError: the place could not be reached for a minute.
    """
    silent_since: float | None = None
    watch = _Watch(session, display, now)
    with session.heartbeat():
        while True:
            try:
                seen = look(session, desired)
            except TransientError:
                # A store under load or being restarted: the run itself goes on.
                silent_since = silent_since if silent_since is not None else now()
                if now() - silent_since > PATIENCE_SECONDS:
                    raise
                sleep(POLL_SECONDS)
                continue
            silent_since = None
            if not seen.stale:
                display.update(seen)
            watch.look(seen)
            if seen.settled and not (wait_for_input and waits_for_input(seen)):
                return seen
            sleep(POLL_SECONDS)


class _Watch:
    """Says what keeps a run, while nothing happens with it."""

    def __init__(self, session: Session, display: Display, now: Callable[[], float]) -> None:
        self._session = session
        self._display = display
        self._now = now
        self._since: float | None = None  # nothing has happened
        self._asked = -LOOK_AGAIN_SECONDS
        self._said: set[str] = set()

    def look(self, seen: RunView) -> None:
        """Asks the place, unless all is well or it was asked just now."""
        ignored = seen.status is None or seen.stale
        condition = seen.status.condition() if seen.status is not None else None
        if not ignored and (condition is None or condition.reason not in UNREADY):
            self._since = None
            return
        now = self._now()
        self._since = self._since if self._since is not None else now
        idle = now - self._since
        if idle < IGNORED_SECONDS or now - self._asked < LOOK_AGAIN_SECONDS:
            return
        self._asked = now
        try:
            found = self._session.obstacles(ignored=ignored)
        except (BackendError, TransientError):
            return  # looking at the run says it, if it lasts
        told = condition.message if condition is not None else ""
        commands = Commands(self._session.flags)
        for text in (commands.complete(each, seen.name) for each in found):
            if text not in self._said and text.partition("\n")[0] not in told:
                self._said.add(text)
                self._display.note(text)


def results_of(session: Session, seen: RunView, console: Console) -> dict[Stage, StageManifest]:
    """The results in use of the stages that are done. A store that cannot be looked into leaves them out."""
    found: dict[Stage, StageManifest] = {}
    try:
        for stage in seen.stages:
            if not stage.state.is_done:
                continue
            with suppress(NotFoundError):
                manifest = session.manifest(seen.name, stage.stage)
                if manifest is not None:
                    found[stage.stage] = manifest
    except BackendError as error:
        console.warn(f"note: results are not shown: {error.message}")
        return {}
    return found


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
        console.say(
            f"{name}: submitted; follow it with: {Commands(session.flags).line('status', name, '--watch')}"
        )
        if console.json_mode:
            console.result(result(look(session, desired), {}))
        return OK
    shown: RunView | None = None
    with display_for(console) as display:
        try:
            if not interrupted:
                shown = follow(session, desired, display, wait_for_input=wait_for_input)
        except KeyboardInterrupt:
            interrupted = True
        if interrupted and session.stops_on_interrupt:
            shown = _stop(session, desired, display)
    if interrupted and not session.stops_on_interrupt:
        commands = Commands(session.flags)
        return _leave(
            console,
            name,
            f"{name}: no longer followed; the run goes on",
            f"  follow it: {commands.line('status', name, '--watch')}",
            f"  stop it:   {commands.line('stop', name)}",
        )
    if shown is None:
        left = f"{name}: left; the run ends by itself, and the same command goes on from its checkpoint"
        return _leave(console, name, left)
    return _conclude(session, shown, console, interrupted=interrupted)


def _end_now(session: Session, desired: DesiredState, display: Display) -> RunView:
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
        return _end_now(session, desired, display)
    except KeyboardInterrupt:
        return None


def _leave(console: Console, name: str, *lines: str) -> int:
    """Says the least, without asking anybody: what runs may be just what does not answer."""
    for line in lines:
        console.warn(line)
    if console.json_mode:
        console.result(
            {"pipeline": name, "error": "Interrupted", "code": "Interrupted", "exitCode": INTERRUPTED}
        )
    return INTERRUPTED


def _conclude(session: Session, shown: RunView, console: Console, *, interrupted: bool) -> int:
    manifests = results_of(session, shown, console)
    code = INTERRUPTED if interrupted else exit_code(shown)
    lines = summary(shown, manifests)
    if lines:
        console.say()
    console.say_lines(lines)
    for line in _closing(shown, interrupted=interrupted):
        console.warn(line)
    if code == OK:
        console.say_lines(_next(session, shown.name, manifests))
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
    suspended = shown.status is not None and shown.status.holds(ConditionType.SUSPENDED)
    if not interrupted and not suspended:
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
    if not interrupted:
        stopped.append(f"{shown.name}: another command stopped the run (Ctrl-C, stop, or suspend)")
    return [*stopped, f"{shown.name}: the same command goes on"]
