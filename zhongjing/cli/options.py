"""Options that several commands share, and the names that their values may have."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zhongjing.config.stages import Stage

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


def _pipelines(context: typer.Context, incomplete: str) -> list[str]:
    from zhongjing.cli.completion import pipelines

    return pipelines(context, incomplete)


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
        metavar="[NAME]", help="Pipeline; needed only where there are several.", autocompletion=_pipelines
    ),
]
StageOption = Annotated[
    Stage | None, typer.Option("--stage", help="Stage; the one that runs, or ran last, unless given.")
]
