"""Checks a document against the models, and says what is wrong in words of the document."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from zhongjing.codes import Code
from zhongjing.codes.document import INVALID_VALUE, MISSING_FIELD, UNKNOWN_FIELD, UNKNOWN_STAGE
from zhongjing.config.fields import NAME_PATTERN, NAME_RULE, RuleError
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.errors import ConfigError

Path = tuple[str | int, ...]
"""Keys and numbers from the top of the document."""

Place = Callable[[Path], str]
"""Where a field stands: ``my.yaml, line 7: spec.seed``."""


def validate(data: Mapping[str, Any], place: Place) -> TrainingPipeline:
    """The document of ``data``.

    Args:
        data: what was written, variables filled in.
        place: where a field stands, for messages.

    Raises:
        ConfigError: has the code and the place of the first problem, and the words of all.
    """
    try:
        # Python's names of the fields are no names of the document: its own, camelCase, alone are taken.
        return TrainingPipeline.model_validate(data, by_alias=True, by_name=False)
    except ValidationError as error:
        problems = [_describe(problem, data) for problem in error.errors(include_url=False)]
        first, *more = problems
        lines = [first.message, *(f"{place(other.path)}: {other.message}" for other in more)]
        raise ConfigError("\n".join(lines), code=first.code, where=place(first.path)) from error


class _Problem(NamedTuple):
    path: Path
    message: str
    code: Code


def _describe(problem: Any, data: Mapping[str, Any]) -> _Problem:
    kind = problem["type"]
    if kind == "missing":
        return _Problem(tuple(problem["loc"]), "is required", MISSING_FIELD)
    path = _existing(problem["loc"], data)
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1])
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
        meant = _elsewhere(path) or (near[0] if near else None)
        hint = f"did you mean {meant!r}?" if meant else f"known: {', '.join(known)}"
        if path[:-1] == ("spec", "stages"):
            return _Problem(path, f"unknown stage ({hint})", UNKNOWN_STAGE)
        return _Problem(path, f"unknown key ({hint})", UNKNOWN_FIELD)
    rule = problem.get("ctx", {}).get("error")
    if isinstance(rule, RuleError):
        return _Problem((*path, *rule.path), str(rule), rule.code)
    value = problem.get("input")
    if kind == "string_pattern_mismatch" and problem["ctx"]["pattern"] == NAME_PATTERN:
        return _Problem(path, f"{NAME_RULE}, not {value!r}", INVALID_VALUE)
    message = str(problem["msg"]).removeprefix("Value error, ").replace("Input should", "should")
    code = UNKNOWN_STAGE if path[:2] == ("spec", "targets") else INVALID_VALUE
    if kind == "value_error" or isinstance(value, dict | list):
        return _Problem(path, message, code)
    return _Problem(path, f"{message}, not {value!r}", code)


def _elsewhere(path: Path) -> str | None:
    """The full path of a field or stage that is written on too high a level (``sft.epochs``)."""
    name = str(path[-1])
    if path[:-1] in ((), ("spec",)) and name in _known_keys(("spec", "stages")):
        return f"spec.stages.{name}"
    if len(path) == 1 and name in _known_keys(("spec",)):
        return f"spec.{name}"
    return None


def _existing(path: Sequence[str | int], data: Any) -> Path:
    """The part of a path that stands in the document: pydantic appends names of union members."""
    kept: list[str | int] = []
    for part in path:
        try:
            data = data[part]
        except (KeyError, IndexError, TypeError):
            break
        kept.append(part)
    return tuple(kept)


def _known_keys(path: Sequence[str | int]) -> list[str]:
    """Document names of the fields of the model at ``path``."""
    model: Any = TrainingPipeline
    for part in path:
        if isinstance(part, int):
            continue
        info = next((info for name, info in model.model_fields.items() if part == (info.alias or name)), None)
        nested = _nested_model(info.annotation) if info is not None else None
        if nested is None:
            return []
        model = nested
    return [info.alias or name for name, info in model.model_fields.items()]


def _nested_model(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _nested_model(argument)
        if found is not None:
            return found
    return None
