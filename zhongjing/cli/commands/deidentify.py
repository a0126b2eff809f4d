"""``zhongjing data deidentify``: identifiers taken out of records, before anything else sees them."""

from __future__ import annotations

import os
from functools import partial
from typing import Annotated

import typer

from zhongjing.cli import construction
from zhongjing.cli.console import Console
from zhongjing.cli.construction import (
    In,
    KeepText,
    Order,
    Out,
    Plan,
    Processes,
    SourceFile,
)
from zhongjing.cli.errors import OK, guarded
from zhongjing.cli.made import submit_made
from zhongjing.cli.options import Format, OutputFormat, SourceKind
from zhongjing.cli.place import PlaceOptions
from zhongjing.cli.spread import spread

SALT = "ZHONGJING_SALT"
"""The variable with the secret that made-up values come from; a secret stands in no command line."""

EPILOG = """
\b
Examples:
  zhongjing data deidentify raw/*.jsonl s3://zhongjing/clean --local --plan
  zhongjing data deidentify raw/*.jsonl s3://zhongjing/clean --local --review
  zhongjing data deidentify s3://raw/consultations s3://corpus/clean --endpoint https://s3.example.org
  zhongjing data deidentify s3://raw/consultations s3://corpus/clean -n train

Local files are read where they are; only what comes of them is stored. A run that was interrupted goes
on with the same command. A policy with made-up values takes its salt from ZHONGJING_SALT. What remains risky
is in docs/data-construction.md.
"""


@guarded
@spread("at")
def deidentify(
    *,
    source: In,
    out: Out,
    at: PlaceOptions,
    file: SourceFile = None,
    kind: SourceKind = None,
    policy: Annotated[
        str | None,
        typer.Option("--policy", metavar="FILE", help="What each class of identifier becomes (YAML)."),
    ] = None,
    plan: Plan = False,
    review: Annotated[
        bool, typer.Option("--review", help="Show what was replaced, by class and count.")
    ] = False,
    processes: Processes = None,
    keep_text: KeepText = False,
    output: OutputFormat = Format.TEXT,
) -> int:
    """Take names, numbers, addresses and the like out of records."""
    construction.check_out(out)
    console = Console(json_mode=output == Format.JSON)
    order = Order(source, out.rstrip("/"), file, kind, keep_text, processes)
    cluster = at.cluster
    if cluster is not None and not plan:
        made = {"steps": ["deidentify"], **({} if policy is None else {"policy": policy})}
        code, done = submit_made(console, order, made, cluster, wait=not at.no_wait)
        if done is not None:
            construction.tell_result(console, done, order.out, review=review)
        return code
    from zhongjing.construct.deidentify.deidentifier import Deidentifier
    from zhongjing.construct.deidentify.policy import load_policy

    steps = [Deidentifier(load_policy(policy), salt=os.environ.get(SALT))]
    if plan:
        construction.tell_plan(console, order, steps, partial(at.opened, create=False))
        return OK
    with at.opened(create=True) as store:
        manifest = construction.make(console, store, order, steps)
    construction.tell_result(console, manifest, order.out, review=review)
    return OK
