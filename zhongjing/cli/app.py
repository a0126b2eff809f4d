"""The console script ``zhongjing``, also ``python -m zhongjing``: which commands there are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from zhongjing.cli.commands import (
    chat,
    check,
    config,
    dashboard,
    data,
    dedup,
    deidentify,
    doctor,
    feedback,
    instruct,
    next_tasks,
    plan,
    pull,
    rank,
    report,
    rewrite,
    runs,
    split,
    stats,
    submit,
)
from zhongjing.cli.console import escape_unencodable
from zhongjing.cli.errors import run
from zhongjing.cli.options import SETTINGS

EPILOG = """
\b
First steps:
  zhongjing doctor --local                 whether this machine can
  zhongjing submit --local                 the whole pipeline, on this machine
  zhongjing status --local --watch         what runs
  zhongjing pull tiny/ppo ./model --local  the result, as transformers loads it
  zhongjing chat ./model                   talk to it
  zhongjing config show tiny > my.yaml     a document to start from

\b
On a cluster that has a release (helm install zhongjing ./helm), leave --local out:
  zhongjing submit -n train                the whole pipeline, in the namespace train
  zhongjing status -n train --watch        what runs
  zhongjing dashboard -n train             Ray's dashboard, on this machine

Exit codes: 0 done, 1 a stage failed or waits for input, 2 bad input, 3 backend unreachable, 130 interrupted.
"""

app = typer.Typer(
    name="zhongjing",
    help="Train Chinese medical language models: continued pretraining, SFT, reward model, PPO.",
    epilog=EPILOG,
    no_args_is_help=True,
    **SETTINGS,
)


def add_submit(target: typer.Typer) -> None:
    """Adds the submit command: here, and to ``python -m zhongjing.submit``."""
    target.command("submit", epilog=submit.EPILOG)(submit.submit)


add_submit(app)
app.command("plan", epilog=plan.EPILOG)(plan.plan)
app.command("status", epilog=runs.STATUS_EPILOG)(runs.status)
app.command("logs", epilog=runs.LOGS_EPILOG)(runs.logs)
app.command("stop", epilog=runs.STOP_EPILOG)(runs.stop)
app.command("resume", epilog=runs.STOP_EPILOG)(runs.resume)
app.command("pull", epilog=pull.EPILOG)(pull.pull)
app.command("curves", epilog=pull.CURVES_EPILOG)(pull.curves)
app.command("chat", epilog=chat.EPILOG)(chat.chat)
app.command("dashboard", epilog=dashboard.EPILOG)(dashboard.dashboard)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.command("report", epilog=report.EPILOG)(report.report)
app.add_typer(config.app, name="config")
data.app.command("deidentify", epilog=deidentify.EPILOG)(deidentify.deidentify)
data.app.command("normalize", epilog=rewrite.NORMALIZE_EPILOG)(rewrite.normalize)
data.app.command("expand", epilog=rewrite.EXPAND_EPILOG)(rewrite.expand)
data.app.command("check", epilog=check.EPILOG)(check.check)
data.app.command("instruct", epilog=instruct.EPILOG)(instruct.instruct)
data.app.command("dedup", epilog=dedup.EPILOG)(dedup.dedup)
data.app.command("split", epilog=split.EPILOG)(split.split)
data.app.command("stats", epilog=stats.EPILOG)(stats.stats)
app.add_typer(data.app, name="data")
feedback.app.command("rank", epilog=rank.EPILOG)(rank.rank)
feedback.app.command("next", epilog=next_tasks.EPILOG)(next_tasks.next_tasks)
app.add_typer(feedback.app, name="feedback")


def _version(wanted: bool) -> None:
    if wanted:
        from zhongjing import __version__

        sys.stdout.write(f"zhongjing {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Runs the command line of this process and exits."""
    escape_unencodable()
    sys.exit(run(app, sys.argv[1:], "zhongjing"))
