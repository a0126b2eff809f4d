"""What a shell completes: pipelines, stages, fields of a document. Nothing is started, no cluster is asked.

A completion that fails or takes long is worse than none: what cannot be known at once is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.config.stages import Stage


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
        return [f"{each}/{stage}" for each in pipelines(context, name) for stage in Stage]
    return [f"{name}/{each}" for each in Stage if each.startswith(stage)]


def fields(incomplete: str) -> list[str]:
    """Paths of a document's fields, as ``--set`` takes them, the part that follows the next dot at a time."""
    from zhongjing.config.pipeline import PipelineSpec

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
    from pydantic import BaseModel

    for name, info in model.model_fields.items():
        held = [info.annotation, *getattr(info.annotation, "__args__", ())]
        inner = [each for each in held if isinstance(each, type) and issubclass(each, BaseModel)]
        is_list = getattr(info.annotation, "__origin__", None) is list
        yield info.alias or name, inner[0] if inner and not is_list else None
