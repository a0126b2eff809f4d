"""``zhongjing data check``: dialogues against a knowledge graph, by rules and by a language model."""

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
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError

EPILOG = """
\b
Examples:
  zhongjing data check s3://a/long s3://a/checked --kg s3://kg/cmekg --endpoint https://s3.example.org
  zhongjing data check talks.jsonl s3://zhongjing/checked --kg ./cmekg --local
  zhongjing data check s3://a/long s3://a/checked --kg s3://kg/cmekg -n train
  zhongjing data check s3://a/long s3://a/checked --kg s3://kg/cmekg --local --model gpt-4o --base-url https://api.openai.com/v1

Without --model the rules alone decide, and nothing leaves this machine. With it, a model judges what the
rules let through; the facts that the graph has on a dialogue stand in its instruction.
"""


@guarded
@spread("at")
@spread("asked")
def check(
    *,
    source: In,
    out: Out,
    kg: Annotated[
        str, typer.Option("--kg", metavar="PLACE", help="The graph: a file or folder, here or s3://.")
    ],
    at: PlaceOptions,
    asked: ModelOptions,
    rules: Annotated[
        list[str] | None,
        typer.Option("--rule", metavar="RULE", help="Leave dialogues out for this rule; repeatable."),
    ] = None,
    file: SourceFile = None,
    kind: SourceKind = None,
    plan: Plan = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Leave out dialogues that contradict a knowledge graph."""
    from zhongjing.construct.kg.rules import RULES

    unknown = sorted(set(rules or ()) - set(RULES))
    if unknown:
        raise ConfigError(
            f"there is no rule {unknown[0]!r}", code=INVALID_OPTION, remedy=f"there are: {', '.join(RULES)}"
        )
    return carry_out(
        Console(json_mode=output == Format.JSON),
        Order(source, out.rstrip("/"), file, kind, keep_text, processes),
        asked,
        at,
        Steps(("check",), kg=kg, rules=frozenset(rules) if rules else None),
        plan=plan,
    )
