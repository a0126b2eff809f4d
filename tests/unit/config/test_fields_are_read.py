"""Every field that is hashed into a key is read somewhere: one that is not would re-run stages for nothing.

What this cannot see: a field that several stages inherit and only some of them read.
"""

from __future__ import annotations

import ast
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel

import zhongjing
from zhongjing.config.pipeline import TrainingPipeline

# Taken as a whole: the first goes into config.json, the second is asked by the names of categories.
_WHOLE = {"RopeScaling", "Mixture"}


def _parts(model: type[BaseModel], found: dict[str, type[BaseModel]]) -> None:
    def walk(annotation: Any) -> None:
        is_part = isinstance(annotation, type) and issubclass(annotation, BaseModel)
        if is_part and annotation.__name__ not in found:
            _parts(annotation, found)
        for argument in typing.get_args(annotation):
            walk(argument)

    found[model.__name__] = model
    for field in model.model_fields.values():
        walk(field.annotation)


def test_every_training_field_is_read() -> None:
    read: set[str] = set()
    for file in Path(zhongjing.__file__).parent.rglob("*.py"):
        read |= {
            node.attr
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        }
    parts: dict[str, type[BaseModel]] = {}
    _parts(TrainingPipeline, parts)
    assert {"SftSettings", "PpoSettings", "Lora", "SpikeGuard", "TinyBase"} <= set(parts)
    unread = [
        f"{part.__name__}.{name}"
        for part in parts.values()
        if part.__name__ not in _WHOLE
        for name, field in part.model_fields.items()
        if isinstance(field.json_schema_extra, dict)
        and field.json_schema_extra.get("x-tag") == "training"
        and name not in read
    ]
    assert unread == []
