"""``zhongjing config``: shows documents, complete, and the schema that editors use."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from zhongjing.cli.console import Console
from zhongjing.cli.errors import guarded
from zhongjing.cli.options import SETTINGS, Overrides
from zhongjing.codes.command import INVALID_OPTION, UNKNOWN_RECIPE
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import (
    UserDocument,
    load_document,
    recipe,
    recipe_names,
    recipe_text,
    resolve,
    to_yaml,
)
from zhongjing.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    help="Show complete documents and their schema.",
    **SETTINGS,
)

SHOW_EPILOG = """
\b
Examples:
  zhongjing config show tiny --brief > my.yaml    the recipe with its comments
  zhongjing config show tiny                      with every default filled in
  zhongjing config show my.yaml --set spec.stages.sft.learningRate=1e-4
"""


@app.command("show", epilog=SHOW_EPILOG)
@guarded
def show(
    what: Annotated[str, typer.Argument(metavar="RECIPE|FILE", help="A recipe's name, or a document.")],
    overrides: Overrides = None,
    brief: Annotated[
        bool, typer.Option("--brief", help="As it was written, comments and all, without the defaults.")
    ] = False,
    output: Annotated[str, typer.Option("--output", "-o", help="yaml or json.")] = "yaml",
) -> None:
    """Print a document with every default filled in."""
    if output not in ("yaml", "json"):
        raise ConfigError(
            f"a document is printed as yaml or json, not {output}", code=INVALID_OPTION, where="--output"
        )
    written = load(what)
    document = resolve(written, overrides or ())
    if brief:
        if overrides or output == "json":
            raise ConfigError(
                "--brief prints the document as it was written",
                code=INVALID_OPTION,
                where="--brief",
                remedy="leave --set and -o json out",
            )
        Console().raw(text_of(what))
        return
    console = Console()
    console.raw(as_json(document) if output == "json" else as_yaml(document))


@app.command("schema")
@guarded
def schema() -> None:
    """Print the JSON schema of a TrainingPipeline document (editors check and complete with it)."""
    from zhongjing.config.schema import json_schema

    Console().raw(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n")


def load(what: str) -> UserDocument:
    """A document by file, or by a recipe's name.

    Raises:
        ConfigError: there is neither.
    """
    if Path(what).is_file() or "/" in what or what.endswith((".yaml", ".yml", ".json")):
        return load_document(what)
    if what not in recipe_names():
        raise ConfigError(
            "there is no such file and no such recipe",
            code=UNKNOWN_RECIPE,
            where=what,
            remedy=f"the recipes are: {', '.join(recipe_names())}",
        )
    return recipe(what)


def text_of(what: str) -> str:
    """The text of a file, or of a recipe, that :func:`load` has taken."""
    return recipe_text(what) if what in recipe_names() else Path(what).read_text(encoding="utf-8")


def as_yaml(document: TrainingPipeline) -> str:
    """The document as YAML, the names that Hugging Face uses for its batch sizes as comments above."""
    comments = "".join(f"# {line}\n" for line in equivalents(document))
    return comments + to_yaml(document)


def as_json(document: TrainingPipeline) -> str:
    """The document as JSON, a newline at the end."""
    return (
        json.dumps(document.model_dump(mode="json", exclude_none=True), indent=2, ensure_ascii=False) + "\n"
    )


def equivalents(document: TrainingPipeline) -> list[str]:
    """What ``transformers.TrainingArguments`` would call the stages' settings: one line a stage.

    ``gradient_accumulation_steps`` is rounded up where micro-batches do not divide the global batch.
    """
    lines = []
    for stage in document.spec.stages.trained():
        settings = document.spec.stages[stage]
        per_step = settings.micro_batch_size * settings.workers
        accumulation = math.ceil(settings.global_batch_size / per_step)
        lines.append(
            f"{stage} in Hugging Face's names: per_device_train_batch_size={settings.micro_batch_size} "
            f"gradient_accumulation_steps={accumulation} on {settings.workers} device(s), "
            f"num_train_epochs={settings.epochs:g} learning_rate={settings.learning_rate:g} "
            f"lr_scheduler_type={settings.schedule} warmup_ratio={settings.warmup_fraction:g}"
        )
    return lines
