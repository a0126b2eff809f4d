"""docs/configuration.md: every field of the document with its type, default, unit and source."""

from __future__ import annotations

import json
import types
import typing
from enum import Enum
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from zhongjing.config.fields import MOST
from zhongjing.config.pipeline import TrainingPipeline

REFERENCE_FILE = "docs/configuration.md"


def reference_page() -> str:
    """The page."""
    parts = [
        "# The document: TrainingPipeline\n\n"
        "Generated from `zhongjing/config` by `make generated`; do not edit.\n\n"
        "One YAML document describes a run, on a laptop as on a cluster. `zhongjing config show tiny`\n"
        "prints a complete one. A field marked **T** (training) may change a result: it is hashed into the\n"
        "stage's key, and a change re-runs what depends on it. A field marked **O** (operational) never\n"
        "does. "
        "`--set spec.stages.sft.learningRate=1e-4` overrides a field; elements of lists are named by their\n"
        "`name`, `source` or number.\n\n"
        "`spec.stages.defaults` holds settings for all stages of the document at once (`precision`,\n"
        "`workers`, `resources`, `lora`, ...: whatever all stages share, `data` excepted). What a stage\n"
        "says itself wins. It is of documents that are submitted; `kubectl apply` takes what\n"
        "`zhongjing submit --dry-run -o yaml` prints, with the settings in their stages.\n"
    ]
    seen: set[type[BaseModel]] = set()
    queue: list[tuple[str, type[BaseModel]]] = [("", TrainingPipeline)]
    while queue:
        path, model = queue.pop(0)
        if model in seen:
            continue
        seen.add(model)
        rows, nested = _rows(path, model)
        summary = " ".join((model.__doc__ or "").split())
        parts.append(
            f"\n## {path or 'TrainingPipeline'}\n\n{summary}\n\n"
            "| field | type | default | unit | | description |\n| --- | --- | --- | --- | --- | --- |\n"
            + "".join(rows)
        )
        queue += nested
    return "".join(parts)


def _rows(path: str, model: type[BaseModel]) -> tuple[list[str], list[tuple[str, type[BaseModel]]]]:
    rows: list[str] = []
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, info in model.model_fields.items():
        key = info.alias or name
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        inner = _inner_model(info.annotation)
        if inner is not None:
            suffix = "[]" if typing.get_origin(info.annotation) is list else ""
            nested.append((f"{path}.{key}{suffix}".lstrip("."), inner))
        description = info.description or ""
        if source := extra.get("x-source"):
            description += f" ({source})"
        tag = "T" if extra.get("x-tag") == "training" else "O"
        cells = (f"`{key}`", _type(info), _default(info), str(extra.get("x-unit", "")), tag, description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return rows, nested


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(
        (found for argument in typing.get_args(annotation) if (found := _inner_model(argument))), None
    )


def _type(info: FieldInfo) -> str:
    text = _type_name(info.annotation)
    bounds = []
    for item in info.metadata:
        for attribute, sign in (("ge", ">="), ("gt", ">"), ("le", "<="), ("lt", "<")):
            limit = getattr(item, attribute, None)
            if limit not in (None, MOST):
                bounds.append(f"{sign} {limit:g}" if isinstance(limit, float) else f"{sign} {limit}")
    return f"{text}, {', '.join(bounds)}" if bounds else text


def _type_name(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(annotation))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_type_name(part) for part in typing.get_args(annotation) if part is not type(None))
    if origin is typing.Annotated:
        return _type_name(typing.get_args(annotation)[0])
    if origin is list:
        return f"list of {_type_name(typing.get_args(annotation)[0])}"
    if origin is dict:
        return f"map of {_type_name(typing.get_args(annotation)[1])}s"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return ", ".join(f"`{member.value}`" for member in annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return names.get(annotation, str(annotation))


def _default(info: FieldInfo) -> str:
    value = info.get_default(call_default_factory=True, validated_data={})
    if value is PydanticUndefined:
        return "required"
    if isinstance(value, BaseModel):
        return ""
    if value is None:
        return "none"
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, float):
        return f"`{value:g}`"
    return f"`{json.dumps(value, ensure_ascii=False)}`"
