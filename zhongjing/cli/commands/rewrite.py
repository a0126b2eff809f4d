"""``zhongjing data normalize`` and ``expand``: a language model rewrites dialogues (paper, section 3)."""

from __future__ import annotations

from typing import Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.construction import In, KeepText, Order, Out, Plan, Processes, SourceFile
from zhongjing.cli.errors import guarded
from zhongjing.cli.language_model import ModelOptions, Steps, carry_out
from zhongjing.cli.options import Format, OutputFormat, SourceKind
from zhongjing.cli.place import PlaceOptions
from zhongjing.cli.spread import spread

NORMALIZE_EPILOG = """
\b
Examples:
  zhongjing data normalize s3://b/clean s3://b/new --model gpt-4o --base-url https://api.openai.com/v1
  zhongjing data normalize s3://a/clean s3://a/new --local --model m --base-url http://127.0.0.1:8000
  zhongjing data normalize s3://a/clean s3://a/new -n train --model m --base-url http://vllm:8000 --no-key

The key is read from OPENAI_API_KEY, or from the variable that --key-variable names; on a cluster from the
environment of the Ray nodes. A run that was interrupted, or ran out of funds, goes on with the same command:
no answer is paid for twice.
"""
EXPAND_EPILOG = """
\b
Examples:
  zhongjing data expand s3://a/new s3://a/long --model gpt-4o --base-url https://api.openai.com/v1 --plan
  zhongjing data expand s3://a/new s3://a/long --local --model qwen --base-url http://127.0.0.1:8000
  zhongjing data expand s3://a/new s3://a/long -n train --model m --base-url http://vllm:8000 --no-key

The key is read from OPENAI_API_KEY, or from the variable that --key-variable names; on a cluster from the
environment of the Ray nodes. A run that was interrupted, or ran out of funds, goes on with the same command:
no answer is paid for twice.
"""

Drugs = Annotated[
    str | None,
    typer.Option("--drugs", metavar="FILE", help="Names of drugs, one a line, that answers may not change."),
]


@guarded
@spread("at")
@spread("asked")
def normalize(
    *,
    source: In,
    out: Out,
    at: PlaceOptions,
    asked: ModelOptions,
    file: SourceFile = None,
    kind: SourceKind = None,
    drugs: Drugs = None,
    plan: Plan = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Rewrite the doctor's answers in one professional style."""
    return carry_out(
        Console(json_mode=output == Format.JSON),
        Order(source, out.rstrip("/"), file, kind, keep_text, processes),
        asked,
        at,
        Steps(("normalize",), drugs=drugs),
        plan=plan,
    )


@guarded
@spread("at")
@spread("asked")
def expand(
    *,
    source: In,
    out: Out,
    at: PlaceOptions,
    asked: ModelOptions,
    file: SourceFile = None,
    kind: SourceKind = None,
    drugs: Drugs = None,
    plan: Plan = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Make several turns of terse single-turn dialogues."""
    return carry_out(
        Console(json_mode=output == Format.JSON),
        Order(source, out.rstrip("/"), file, kind, keep_text, processes),
        asked,
        at,
        Steps(("expand",), drugs=drugs),
        plan=plan,
    )
