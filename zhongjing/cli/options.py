"""Options that several commands share, the names that their values may have, and what a shell completes.

Completing starts nothing and asks no cluster: a completion that fails or takes long is worse than none.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

from zhongjing.config.pipeline import PipelineSpec
from zhongjing.config.sources import Kind
from zhongjing.config.stages import TRAINING, Stage

DEFAULT_WORKDIR = Path("zhongjing-runs")
"""Where local runs live unless told otherwise, relative to the current folder."""

DEFAULT_RECIPE = "tiny"
"""The document that is run where none is named."""

SETTINGS: dict[str, Any] = {
    # Plain help: twice as fast, and examples keep their lines.
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
"""What every typer application of ours is made with."""


class StageTarget(StrEnum):
    """A stage to bring about, or all."""

    CONSTRUCT = "construct"
    PRETRAIN = "pretrain"
    SFT = "sft"
    RM = "rm"
    PPO = "ppo"
    ALL = "all"


class Format(StrEnum):
    """How results are printed."""

    TEXT = "text"
    JSON = "json"


class DocumentFormat(StrEnum):
    """How results and documents are printed."""

    TEXT = "text"
    YAML = "yaml"
    JSON = "json"


def pipelines(context: typer.Context, incomplete: str) -> list[str]:
    """Names of the pipelines of the workdir that the command line names, or of the default one."""
    workdir = context.params.get("workdir") or DEFAULT_WORKDIR
    folder = Path(workdir) / "pipelines"
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def results(context: typer.Context, incomplete: str) -> list[str]:
    """``PIPELINE/STAGE`` of the same."""
    name, slash, stage = incomplete.partition("/")
    if not slash:
        return [f"{each}/{stage}" for each in pipelines(context, name) for stage in TRAINING]
    return [f"{name}/{each}" for each in TRAINING if each.startswith(stage)]


def fields(incomplete: str) -> list[str]:
    """Paths of a document's fields, as ``--set`` takes them, the part that follows the next dot at a time."""
    if "=" in incomplete:
        return []
    *above, begun = incomplete.split(".")
    if not above:
        return ["spec."] if "spec".startswith(begun) else []
    model: Any = PipelineSpec
    for part in above[1:]:
        inner = dict(_fields(model)).get(part)
        if inner is None:
            return []
        model = inner
    if above[0] != "spec":
        return []
    prefix = ".".join(above)
    return [
        f"{prefix}.{name}{'.' if inner is not None else '='}"
        for name, inner in _fields(model)
        if name.startswith(begun)
    ]


def _fields(model: Any) -> Iterator[tuple[str, Any]]:
    """Names of a model's fields, each with the model that it holds; None of a leaf or a list."""
    for name, info in model.model_fields.items():
        held = [info.annotation, *getattr(info.annotation, "__args__", ())]
        inner = [each for each in held if isinstance(each, type) and issubclass(each, BaseModel)]
        is_list = getattr(info.annotation, "__origin__", None) is list
        yield info.alias or name, inner[0] if inner and not is_list else None


Local = Annotated[bool, typer.Option("--local", help="On this machine: no cluster, no account.")]
Workdir = Annotated[
    Path | None,
    typer.Option(
        "--workdir",
        metavar="FOLDER",
        help="Where local runs keep their object store and logs; ./zhongjing-runs unless given.",
        file_okay=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Kubernetes namespace (clusters); the context's unless given."),
]
KubeContext = Annotated[
    str | None,
    typer.Option("--context", help="Context of the kubeconfig (clusters); its current one unless given."),
]
Release = Annotated[
    str | None,
    typer.Option(
        "--release", help="Helm release of Zhongjing (clusters); needed only where there are several."
    ),
]
OutputFormat = Annotated[
    Format,
    typer.Option("--output", "-o", help="json: exactly one JSON object on stdout, the rest on stderr."),
]
OptionalName = Annotated[
    str | None,
    typer.Argument(
        metavar="NAME", help="Pipeline; needed only where there are several.", autocompletion=pipelines
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override a field; repeatable.", autocompletion=fields),
]
StageOption = Annotated[
    Stage | None, typer.Option("--stage", help="Stage; the one that runs, or ran last, unless given.")
]

SourceUris = Annotated[
    list[str] | None, typer.Argument(metavar="URI", help="Paths, globs, s3:// or hf:// URIs.")
]
SourcesFile = Annotated[
    Path | None, typer.Option("--file", "-f", metavar="FILE", help="The sources of this document.")
]
SourceKind = Annotated[
    Kind | None, typer.Option("--kind", help="What the records are; told from them unless given.")
]
