"""Follows a pipeline until it settles, shows it, and says how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from zhongjing.cli.console import Console
from zhongjing.cli.display.view import RunView, view
from zhongjing.cli.guard import BAD_INPUT, FAILED, OK
from zhongjing.config.stages import Stage
from zhongjing.errors import NotFoundError, TransientError
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import WAITING_FOR_INPUT, ConditionType, DesiredState, StageState
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.progress import Progress

POLL_SECONDS = 1.0
PATIENCE_SECONDS = 60.0
_MISSING_INPUT = "MissingInput"  # a condition's reason


class Display(Protocol):
    """Shows a run. Entered while it is followed."""

    def note(self, text: str) -> None:
        """A line of its own."""
        ...

    def update(self, view: RunView) -> None:
        """The run as it is now."""
        ...

    def __enter__(self) -> Display: ...

    def __exit__(self, *_: object) -> None: ...


def display_for(console: Console) -> Display:
    """Bars on a terminal, plain lines elsewhere."""
    if console.interactive:
        from zhongjing.cli.display.live import LiveDisplay

        return LiveDisplay(console.stream)
    from zhongjing.cli.display.plain import PlainDisplay

    return PlainDisplay(console.say)


def look(session: Session, desired: DesiredState) -> RunView:
    """The run as it is now. ``desired`` is what was last known to be wanted; the stored one counts."""
    wanted = session.desired(desired.pipeline) or desired
    status = session.status(wanted.pipeline)
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
    )


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
            if seen.settled and not (wait_for_input and waits_for_input(seen)):
                return seen
            sleep(POLL_SECONDS)


def waits_for_input(seen: RunView) -> bool:
    """Whether the run waits for a source that is not there yet."""
    condition = seen.status.condition() if seen.status is not None else None
    return condition is not None and condition.reason == WAITING_FOR_INPUT


def exit_code(seen: RunView) -> int:
    """0 when everything that was asked for exists, 2 when a stage that is needed was never made, else 1."""
    assert seen.status is not None
    if seen.status.holds(ConditionType.COMPLETE):
        return OK
    condition = seen.status.condition()
    return BAD_INPUT if condition is not None and condition.reason == _MISSING_INPUT else FAILED


def ending(seen: RunView) -> list[str]:
    """Why a settled run is not complete: one line for each stage that says something, then the remedies."""
    assert seen.status is not None
    condition = seen.status.condition()
    if condition is None or condition.type is ConditionType.COMPLETE:
        return []
    lines = []
    remedies: list[str] = []
    logs: list[str] = []
    for stage in seen.stages:
        if stage.state in (
            StageState.FAILED,
            StageState.WAITING_FOR_INPUT,
            StageState.BLOCKED,
            StageState.SUSPENDED,
        ):
            lines.append(f"{stage.stage}: {stage.doing}: {stage.status.message or stage.status.reason}")
            if stage.status.remedy and stage.status.remedy not in remedies:
                remedies.append(stage.status.remedy)
            if stage.state is StageState.FAILED and stage.status.submission_id is not None:
                logs.append(f"  its log: zhongjing logs {seen.name} --stage {stage.stage} --local")
    if not lines:
        lines.append(f"{seen.name}: {condition.message or condition.reason}")
    if not remedies and condition.remedy:
        remedies.append(condition.remedy)
    return [*lines, *(f"  remedy: {remedy}" for remedy in remedies), *logs]


def manifests_of(session: Session, seen: RunView) -> dict[Stage, StageManifest]:
    """The results in use of the stages that are done."""
    found: dict[Stage, StageManifest] = {}
    for stage in seen.stages:
        if not stage.state.is_done:
            continue
        try:
            manifest = session.manifest(seen.name, stage.stage)
        except NotFoundError:
            continue
        if manifest is not None:
            found[stage.stage] = manifest
    return found
