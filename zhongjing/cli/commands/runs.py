"""``zhongjing status``, ``logs``, ``stop`` and ``resume``: look at runs and steer them."""

from __future__ import annotations

from typing import Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.display.plain import stage_line
from zhongjing.cli.display.summary import overview_lines, result, status_lines
from zhongjing.cli.display.view import RunView
from zhongjing.cli.errors import INTERRUPTED, OK, guarded
from zhongjing.cli.options import Format, OptionalName, OutputFormat, StageOption
from zhongjing.cli.outcome import ending
from zhongjing.cli.target import Target, find, on_target
from zhongjing.cli.watch import attend, display_for, follow, look, results_of
from zhongjing.codes.command import NO_LOG
from zhongjing.codes.document import UNKNOWN_STAGE
from zhongjing.config.commands import Commands
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, MissingInputError
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import ConditionType, DesiredState
from zhongjing.storage.progress import Activity

_BEFORE_TRAINING = (None, Activity.STARTING, Activity.PREPARING, Activity.PREPARED)

STATUS_EPILOG = """
\b
Examples:
  zhongjing status --local
  zhongjing status tiny --local --watch
  zhongjing status tiny --local -o json | jq .stages.sft.metrics
  zhongjing status -n train                    all pipelines of a release on a cluster
"""

LOGS_EPILOG = """
\b
Examples:
  zhongjing logs --local --follow
  zhongjing logs tiny --stage sft --attempt 1 --local
  zhongjing logs tiny -n train --follow        from Ray while the stage runs, then from the object store
"""

STOP_EPILOG = """
\b
Examples:
  zhongjing stop tiny --local
  zhongjing stop tiny --now --local
  zhongjing resume tiny --local
  zhongjing stop tiny -n train
"""


@guarded
@on_target()
def status(
    *,
    target: Target,
    name: OptionalName = None,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Follow until nothing changes.")] = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Show what runs: stages, progress, held-out metrics, time left."""
    console = Console(json_mode=output == Format.JSON)
    with target.open() as session:
        if watch:
            return _watch(session, find(session, name), console)
        if name is not None or len(session.pipelines()) == 1:
            _show(session, console, look(session, find(session, name)))
            return OK
        with session.snapshot():
            views = [look(session, find(session, each)) for each in session.pipelines()]
        if console.json_mode:
            results = {each.name: result(each, results_of(session, each, console)) for each in views}
            console.result({"pipelines": results})
        elif views:
            console.say_lines(overview_lines(views))
            console.say(f"more of one: {Commands(session.flags).line('status', 'NAME')}")
        else:
            console.warn("there are no pipelines here yet")
    return OK


def _watch(session: Session, desired: DesiredState, console: Console) -> int:
    try:
        with display_for(console) as display:
            shown = follow(session, desired, display, wait_for_input=True)
    except KeyboardInterrupt:
        console.warn("no longer watching; the run goes on")
        return INTERRUPTED
    console.say()
    _show(session, console, shown)
    return OK


def _show(session: Session, console: Console, shown: RunView) -> None:
    results = results_of(session, shown, console)
    if console.json_mode:
        console.result(result(shown, results))
        return
    console.say_lines(status_lines(shown, results))
    if shown.settled:
        console.say_lines(ending(shown))


@guarded
@on_target()
def logs(
    *,
    target: Target,
    name: OptionalName = None,
    stage: StageOption = None,
    attempt: Annotated[int | None, typer.Option(help="Attempt; the latest unless given.", min=1)] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the stage ends.")] = False,
) -> None:
    """Print the log of a stage's job."""
    console = Console()
    with target.open() as session:
        desired = find(session, name)
        chosen = stage if stage is not None else _latest_stage(session, desired)
        if desired.document.spec.stages.get(chosen) is None:
            raise ConfigError(
                f"the pipeline has no stage {chosen}", code=UNKNOWN_STAGE, where=desired.pipeline
            )
        if attempt is None:
            _say_what_it_prepares(look(session, desired), chosen, console)
        for line in session.logs(desired.pipeline, chosen, follow=follow, attempt=attempt):
            console.raw(line if line.endswith("\n") else f"{line}\n")


def _say_what_it_prepares(shown: RunView, stage: Stage, console: Console) -> None:
    """A job that prepares writes little or nothing: says so on stderr."""
    found = next(each for each in shown.stages if each.stage is stage)
    if found.state.is_active and found.activity in _BEFORE_TRAINING:
        console.warn(f"{stage}: {stage_line(found)} (there may be no log yet)")


def _latest_stage(session: Session, desired: DesiredState) -> Stage:
    """The stage that runs, else the one that started last.

    Raises:
        MissingInputError: none was started yet.
    """
    recorded = session.status(desired.pipeline)
    stages = recorded.stages if recorded is not None else {}
    started = [(stage, state) for stage, state in stages.items() if state.submission_id is not None]
    if not started:
        raise MissingInputError(
            "no stage was started yet, there is no log",
            code=NO_LOG,
            where=desired.pipeline,
            remedy="`zhongjing status NAME` shows what runs",
        )
    running = [stage for stage, state in started if state.state.is_active]
    if running:
        return running[-1]
    return max(started, key=lambda entry: entry[1].submitted_at or "")[0]


@guarded
@on_target()
def stop(
    *,
    target: Target,
    name: OptionalName = None,
    now: Annotated[
        bool, typer.Option("--now", help="End it at once; steps since the last checkpoint are lost.")
    ] = False,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it has stopped.")] = True,
) -> int:
    """Stop a run with a checkpoint (`resume` goes on from it)."""
    console = Console()
    with target.open() as session:
        desired = find(session, name)
        before = look(session, desired)
        if before.status is not None and before.settled and before.status.holds(ConditionType.COMPLETE):
            console.say(f"{desired.pipeline}: is complete, there is nothing to stop")
            return OK
        desired = session.kill(desired.pipeline) if now else session.suspend(desired.pipeline)
        if not wait:
            how = "told to end at once" if now else "asked to stop with a checkpoint"
            console.say(f"{desired.pipeline}: {how}")
            return OK
        with display_for(console) as display:
            shown = follow(session, desired, display)
        _show(session, console, shown)
    return OK


@guarded
@on_target()
def resume(
    *,
    target: Target,
    name: OptionalName = None,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Follow the run until it ends.")] = True,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Let a stopped or failed run go on from its last checkpoint."""
    console = Console(json_mode=output == Format.JSON)
    with target.open() as session:
        desired = session.resume(find(session, name).pipeline)
        return attend(session, desired, console, wait=wait)
