"""``zhongjing feedback rank``: a judge model ranks answers, by the criteria that people rank them by."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.console import Console
from zhongjing.cli.construction import Order, Out, Plan
from zhongjing.cli.errors import FAILED, OK, guarded
from zhongjing.cli.language_model import ModelOptions, Steps, asking_lines, noted_lines
from zhongjing.cli.options import Format, OutputFormat
from zhongjing.cli.place import StoreOptions
from zhongjing.cli.spread import spread
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.sources import Kind, Source
from zhongjing.errors import ConfigError

EPILOG = """
\b
Examples:
  zhongjing feedback rank s3://a/tasks s3://a/new --local --judge m --base-url https://x.example.org --plan
  zhongjing feedback rank s3://a/tasks s3://a/new --local --judge qwen --base-url http://127.0.0.1:8000

Each pair of answers is asked for in both orders; where the two differ, the pair ties. The rankings' manifest
says that a machine made them. A run that was interrupted goes on with the same command: no answer is paid for
twice.
"""


@dataclass(frozen=True)
class JudgeOptions(ModelOptions):
    """As for every command that asks a model; the model is the judge."""

    model: Annotated[
        str | None, typer.Option("--judge", metavar="NAME", help="The judge, as its server names it.")
    ] = None


@guarded
@spread("at")
@spread("asked")
def rank(
    *,
    tasks: Annotated[str, typer.Argument(metavar="TASKS", help="Folder of a task set, s3://.")],
    out: Out,
    at: StoreOptions,
    asked: JudgeOptions,
    plan: Plan = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Have a judge model rank the answers of a task set."""
    from zhongjing.construct.catalog import build_desk
    from zhongjing.construct.plan import plan as look_ahead
    from zhongjing.construct.runner import construct, in_processes
    from zhongjing.feedback.machine import RankStep, TaskFeed
    from zhongjing.feedback.tasks import read_task_set

    construction.check_out(out)
    if not tasks.startswith("s3://"):
        raise ConfigError(
            "tasks are in a folder of an object store",
            code=INVALID_OPTION,
            where=tasks,
            remedy="write s3://<bucket>/<folder>",
        )
    if asked.model is None or asked.base_url is None:
        raise ConfigError(
            "a judge model is asked, and it is not said which, or where",
            code=INVALID_OPTION,
            remedy="give --judge and --base-url",
        )
    console = Console(json_mode=output == Format.JSON)
    order = Order(tasks.rstrip("/"), out.rstrip("/"), kind=Kind.RANKING, processes=1)
    settings = asked.settings(Steps(("rank",)), reads_key=not plan)
    source = Source(name="tasks", uri=f"{order.place}/", kind=Kind.RANKING)
    with at.opened_here(create=not plan) as store:
        feed = TaskFeed(order.place, read_task_set(store, order.place))
        step = RankStep(build_desk(settings, order.out, store))
        if plan:
            found = look_ahead(store, source, [step], processes=1, feed=feed)
            if console.json_mode:
                console.result(found.model_dump(mode="json"))
            else:
                console.say_lines([*construction.plan_lines(found), *asking_lines(found, settings)])
            return OK if found.refused is None else FAILED
        work = in_processes(1, settings.patience)
        shown = nullcontext(lambda _: None) if console.json_mode else construction.shown(console)
        with shown as listen:
            manifest = construct(store, source, [step], order.out, feed=feed, work=work, listen=listen)
    construction.tell_result(console, manifest, order.out, review=False)
    if not console.json_mode:
        console.say_lines(noted_lines(manifest))
    return OK
