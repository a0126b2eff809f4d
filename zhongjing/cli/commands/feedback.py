"""``zhongjing feedback``: people rank answers, and their rankings become a source of the stage rm."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.construction import check_out
from zhongjing.cli.display.text import table
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import SETTINGS, Format, OutputFormat
from zhongjing.cli.place import StoreOptions
from zhongjing.cli.spread import spread

if TYPE_CHECKING:
    from zhongjing.feedback.campaign import Campaign
    from zhongjing.storage.objects import ObjectStore

app = typer.Typer(no_args_is_help=True, help="Have people rank answers of a model.", **SETTINGS)

SERVE_EPILOG = """
\b
Examples:
  zhongjing feedback serve --people a@x.org,b@x.org,c@x.org --label-studio ./label-studio
  zhongjing feedback serve --data ./annotation --port 8090

Label Studio needs an environment of its own (docs/annotation.md). Each person has a server, so nobody sees
another's answers. Addresses and passwords are in DIR/accounts.json. Ctrl-C ends them; what was done is kept.
"""
PUSH_EPILOG = """
\b
Examples:
  zhongjing feedback push s3://zhongjing/tasks --annotators a@x.org,b@x.org --expert c@x.org --local

Each task goes to two annotators, each in an order of their own. A second push adds nothing twice.
"""
PULL_EPILOG = """
\b
Examples:
  zhongjing feedback pull s3://zhongjing/tasks --local
  zhongjing feedback pull s3://zhongjing/tasks s3://zhongjing/rankings --local

Without OUT judgments are only stored. With OUT rankings are written once every task is decided; a stage rm
that waits for that source goes on by itself.
"""
AGREEMENT_EPILOG = """
\b
Examples:
  zhongjing feedback agreement s3://zhongjing/tasks --local
"""

Tasks = Annotated[str, typer.Argument(metavar="TASKS", help="Folder of a task set, s3://.")]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="Folder of Label Studio's data.")]
LabelStudio = Annotated[
    Path | None,
    typer.Option("--label-studio", metavar="PATH", help="Environment that Label Studio is installed in."),
]
Rule = Annotated[
    str,
    typer.Option("--disagree-when", metavar="RULE", help="order, top1 or tau<x: when the expert decides."),
]
_DATA = Path("zhongjing-annotation")


@app.command("serve", epilog=SERVE_EPILOG)
@guarded
def serve(
    *,
    people: Annotated[
        str, typer.Option("--people", metavar="A,B,...", help="E-mail addresses: annotators and expert.")
    ] = "",
    data: Data = _DATA,
    port: Annotated[
        int, typer.Option("--port", help="Of the first; the others follow.", min=1, max=65000)
    ] = 8080,
    host: Annotated[str, typer.Option("--host", help="On which address.")] = "127.0.0.1",
    label_studio: LabelStudio = None,
) -> None:
    """Run a Label Studio for each person, on this machine."""
    from zhongjing.feedback.label_studio import server

    console = Console()
    console.say("starting Label Studio (about half a minute for each person)")
    with server.serve(data, _names(people), port, label_studio, host) as accounts:
        rows = [(email, account.url) for email, account in accounts.people.items()]
        console.say_lines(table(("person", "address"), rows))
        console.say(f"passwords: {data / server.ACCOUNTS}; Ctrl-C ends it")
        while True:
            time.sleep(3600)


def _names(listed: str) -> list[str]:
    return [each.strip() for each in listed.split(",") if each.strip()]


def _campaign(store: ObjectStore, tasks: str, data: Path) -> Campaign:
    from zhongjing.feedback.campaign import Campaign
    from zhongjing.feedback.label_studio.server import read_accounts

    accounts = read_accounts(data)
    return Campaign(store, tasks, accounts.client)


@app.command("push", epilog=PUSH_EPILOG)
@guarded
@spread("at")
def push(
    *,
    tasks: Tasks,
    at: StoreOptions,
    annotators: Annotated[
        str, typer.Option("--annotators", metavar="A,B,...", help="Their e-mail addresses.")
    ],
    expert: Annotated[str, typer.Option("--expert", help="Who decides where they disagree.")],
    each: Annotated[int, typer.Option("--each", help="Annotators of a task.", min=1, max=10)] = 2,
    seed: Annotated[int, typer.Option("--seed", help="Of who ranks what, in which order.")] = 0,
    model: Annotated[
        str | None, typer.Option("--model", metavar="URI", help="Refuse tasks of another model.")
    ] = None,
    data: Data = _DATA,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Give tasks to annotators, blind and independent."""
    from zhongjing.feedback.campaign import check_model

    console = Console(json_mode=output == Format.JSON)
    with at.opened_here(create=False) as store:
        campaign = _campaign(store, tasks, data)
        check_model(campaign.task_set.model, model, tasks)
        campaign.begin(_names(annotators), expert, each=each, seed=seed)
        added = campaign.push()
    if console.json_mode:
        console.result({"added": added})
        return
    console.say_lines(
        table(("annotator", "tasks added"), [(n, f"{c:,}") for n, c in added.items()], right=(1,))
    )


@app.command("pull", epilog=PULL_EPILOG)
@guarded
@spread("at")
def pull(
    *,
    tasks: Tasks,
    at: StoreOptions,
    out: Annotated[
        str | None, typer.Argument(metavar="[OUT]", help="s3:// folder that the rankings go to.")
    ] = None,
    rule: Rule = "order",
    partial_: Annotated[bool, typer.Option("--partial", help="Write what is decided already.")] = False,
    max_unknown_share: Annotated[
        float, typer.Option("--max-unknown-share", help="Of rankings with an answer K+1.", min=0, max=1)
    ] = 0.05,
    data: Data = _DATA,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Read what people said, and write the rankings that are decided."""
    from zhongjing.feedback.decision import Disagreement

    console = Console(json_mode=output == Format.JSON)
    if out is not None:
        check_out(out)
    when = Disagreement(rule)
    with at.opened_here(create=False) as store:
        campaign = _campaign(store, tasks, data)
        new, problems = campaign.read_back()
        states: dict[str, int] = {}
        for decision in campaign.decisions(when).values():
            states[decision.state.value] = states.get(decision.state.value, 0) + 1
        if not console.json_mode:
            console.say(f"{new:,} new judgments")
            console.say_lines(
                table(("tasks", "count"), [(n, f"{c:,}") for n, c in states.items()], right=(1,))
            )
            for problem, count in problems.items():
                console.say(f"note: {problem}: {count:,}")
        written = None
        if out is not None:
            written = campaign.write(out, when, partial=partial_, most_unknown=max_unknown_share)
    if console.json_mode:
        names = ("rankings", "unknown", "unknownLeftOut")
        done = None if written is None else dict(zip(names, written, strict=True))
        console.result({"new": new, "problems": problems, "tasks": states, "written": done, "out": out})
    elif written is not None:
        console.say(
            f"{written[0]:,} rankings ({written[1]:,} with an answer K+1, {written[2]:,} left out): {out}"
        )


@app.command("adjudicate", epilog=AGREEMENT_EPILOG.replace("agreement", "adjudicate"))
@guarded
@spread("at")
def adjudicate(
    *,
    tasks: Tasks,
    at: StoreOptions,
    rule: Rule = "order",
    data: Data = _DATA,
) -> None:
    """Give the expert the tasks on which annotators disagree."""
    from zhongjing.feedback.decision import Disagreement

    when = Disagreement(rule)
    with at.opened_here(create=False) as store:
        campaign = _campaign(store, tasks, data)
        campaign.read_back()
        added = campaign.adjudicate(when)
        expert = campaign.annotation().expert
    Console().say(f"{added:,} tasks added to the project of {expert}")


@app.command("agreement", epilog=AGREEMENT_EPILOG)
@guarded
@spread("at")
def agreement(
    *,
    tasks: Tasks,
    at: StoreOptions,
    data: Data = _DATA,
    output: OutputFormat = Format.TEXT,
) -> None:
    """Say how well annotators agree, and how good each is."""
    from dataclasses import asdict

    from zhongjing.feedback.agreement import measure

    console = Console(json_mode=output == Format.JSON)
    with at.opened_here(create=False) as store:
        campaign = _campaign(store, tasks, data)
        found = measure(campaign.judgments())
    if console.json_mode:
        console.result(asdict(found))
        return
    if found.tau is None:
        console.say("no task has two judgments yet")
        return
    console.say(
        f"tau-b {found.tau.value:.3f} (95 % {found.tau.low:.3f} to {found.tau.high:.3f}, n {found.tau.n:,}); "
        f"the same order {found.same:.1%}, the same best answer {found.top:.1%}"
    )
    rows = [
        (name, f"{count:,}", f"{found.ability[name]:.3f}" if name in found.ability else "-")
        for name, count in found.judgments.items()
    ]
    console.say_lines(["", *table(("annotator", "judgments", "ability"), rows, right=(1, 2))])
    if found.alpha:
        alphas = [(name, f"{value:.3f}") for name, value in found.alpha.items()]
        console.say_lines(["", *table(("flag", "alpha"), alphas, right=(1,))])
    months = [
        (month, name, f"{tau:.3f}") for month, each in found.by_month.items() for name, tau in each.items()
    ]
    console.say_lines(["", *table(("month", "annotator", "tau-b"), months, right=(2,))])
