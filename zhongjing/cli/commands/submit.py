"""``zhongjing submit`` and ``python -m zhongjing.submit``: brings stages about.

The options are read here; the path from them to a run is :mod:`zhongjing.cli.submission`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from zhongjing.cli.commands.config import load
from zhongjing.cli.console import Console
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import DEFAULT_RECIPE, DocumentFormat, Overrides, StageTarget, pipelines
from zhongjing.cli.target import Target, find, on_target
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.resolve import UserDocument, apply_overrides, load_document
from zhongjing.config.resolve import recipe as load_recipe
from zhongjing.config.sources import written_at
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError

EPILOG = """
\b
Examples:
  zhongjing submit --local                     everything, on example data
  zhongjing submit --local my.yaml             a document of your own
  zhongjing submit --local --stage rm          one stage; its inputs must exist
  zhongjing submit --local --pipeline my --stage rm   the same, of the document that "my" has
  zhongjing submit --local --dry-run           what would run, and why
  zhongjing submit --local -o json > out.json  the result for a program
  zhongjing submit --local --set spec.stages.sft.learningRate=1e-4
  zhongjing submit --stage rm                  on the cluster of the kubeconfig's current context
  zhongjing submit -n train -f my.yaml --no-wait
  zhongjing submit -n train -f my.yaml --dry-run -o yaml   what kubectl apply takes

What is done is skipped, and a changed field runs again exactly what depends on it. After a crash or Ctrl-C
the same command goes on from the last checkpoint. On a cluster Ctrl-C only stops following: the run goes on.
Local files are uploaded to the release's object store, once.

Exit codes: 0 done, 1 a stage failed or waits for input (--dry-run: would stop or be refused), 2 bad input,
3 backend unreachable, 130 interrupted.
"""


_DOCUMENTS = {"document": "FILE", "file": "--file", "recipe": "--recipe", "pipeline": "--pipeline"}


def _check_options(options: Mapping[str, Any]) -> None:
    """Raises ConfigError where options contradict each other."""
    named = [option for name, option in _DOCUMENTS.items() if options[name] is not None]
    if len(named) > 1:
        raise ConfigError(
            f"{' and '.join(named)}: only one document can be given",
            code=INVALID_OPTION,
            remedy=f"give {' or '.join(named)}, not {'both' if len(named) == 2 else 'more than one'}",
        )
    if options["output"] is DocumentFormat.YAML and not options["dry_run"]:
        raise ConfigError(
            "-o yaml prints a document", code=INVALID_OPTION, remedy="add --dry-run, or use -o json"
        )
    if options["wait_for_input"] and options["no_wait"]:
        raise ConfigError(
            "--wait-for-input and --no-wait contradict each other",
            code=INVALID_OPTION,
            remedy="give one of them",
        )


@guarded
@on_target(strict=True, check=_check_options)
def submit(
    *,
    target: Target,
    document: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Document to run: a file, or a recipe's name.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="Document to run (YAML or JSON).")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", metavar="NAME", help=f"Document that ships; {DEFAULT_RECIPE} unless given."),
    ] = None,
    pipeline: Annotated[
        str | None,
        typer.Option(
            "--pipeline",
            metavar="NAME",
            help="The document that the pipeline NAME has already.",
            autocompletion=pipelines,
        ),
    ] = None,
    stage: Annotated[
        StageTarget | None,
        typer.Option("--stage", help="Stage to bring about; all unless given, or what the document says."),
    ] = None,
    overrides: Overrides = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print what would run, and the complete document (clusters: what kubectl apply takes); run "
            "nothing.",
        ),
    ] = False,
    output: Annotated[
        DocumentFormat,
        typer.Option(
            "--output",
            "-o",
            help="json: exactly one JSON object on stdout, the rest on stderr; yaml: with --dry-run.",
        ),
    ] = DocumentFormat.TEXT,
    rerun: Annotated[
        list[Stage] | None,
        typer.Option("--rerun", metavar="STAGE", help="Run this stage again though it is done; repeatable."),
    ] = None,
    refresh_data: Annotated[
        bool, typer.Option("--refresh-data", help="Look at the sources again: new and changed objects count.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Start stages that by the plan cannot fit into memory, too.")
    ] = False,
    wait_for_input: Annotated[
        bool, typer.Option("--wait-for-input", help="Go on waiting for sources that say wait: true.")
    ] = False,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Submit and leave; `status --watch` follows.")
    ] = False,
) -> int:
    """Bring stages about: pretrain, sft, rm, ppo, or all of them."""
    from zhongjing.cli.submission import Order, submission

    if pipeline is not None:
        user = _written_of(pipeline, target)
    elif document is not None:
        user = load(document)
    else:
        user = load_document(file) if file is not None else load_recipe(recipe or DEFAULT_RECIPE)
    order = Order(
        user=apply_overrides(user, (*(overrides or ()), *(("spec.force=true",) if force else ()))),
        is_default=document is None and file is None and recipe is None and pipeline is None,
        stage=stage,
        rerun=tuple(rerun or ()),
        refresh_data=refresh_data,
    )
    submitted = submission(order, target, Console(json_mode=output is DocumentFormat.JSON))
    if dry_run:
        return submitted.dry_run(as_text=output is not DocumentFormat.JSON)
    return submitted.run(wait=not no_wait, wait_for_input=wait_for_input)


def _written_of(name: str, target: Target) -> UserDocument:
    """What a pipeline that is there was applied with, its local sources by their absolute paths.

    Raises:
        ConfigError: there is no such pipeline.
        BackendError: the target cannot be reached.
    """
    with target.open() as session:
        desired = find(session, name)
    uris = {source.name: source.place for source in desired.document.spec.sources}
    spec = dict(desired.user.get("spec") or {})
    spec["sources"] = [
        written_at(source, uris.get(source.get("name"))) for source in spec.get("sources") or ()
    ]
    return UserDocument({**desired.user, "spec": spec}, desired.origin or f"the pipeline {name}", {})
