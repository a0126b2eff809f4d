"""How a field of the document is declared: its tag, unit and source stand beside its default.

Every leaf field is either ``training`` (it may change the result, so it is hashed into the stage's key) or
``operational`` (it may not: workers, resources, logging, endpoints). A field without a tag is a programming
error that a unit test finds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from zhongjing.codes import Code

Tag = Literal["training", "operational"]

MOST = 2**31 - 1
"""Upper bound of numbers that have no other: a CRD's integers must have one that every client can hold."""

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""Names that become names of Kubernetes objects and labels (RFC 1123)."""

NAME_RULE = "takes small Latin letters, digits and hyphens, with a letter or digit first and last"


class DocumentModel(BaseModel):
    """Base of what is written as YAML or JSON: camelCase outside, unknown keys refused, immutable."""

    model_config = ConfigDict(
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        frozen=True,
        use_enum_values=False,
    )


class RuleError(ValueError):
    """Fields that are right by themselves and wrong together. Raised by validators of the models.

    Args:
        message: what is wrong, in one sentence.
        code: from the catalogue (:mod:`zhongjing.codes`).
        path: of the field to correct, from the model that the validator belongs to.
    """

    def __init__(self, message: str, *, code: Code, path: tuple[str | int, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.path = path


def _tagged(
    tag: Tag,
    default: Any,
    description: str,
    unit: str | None,
    source: str | None,
    *,
    later: bool = False,
    **constraints: Any,
) -> Any:
    extra: dict[str, Any] = {"x-tag": tag}
    if later:
        extra["x-later"] = True
    if unit:
        extra["x-unit"] = unit
    if source:
        extra["x-source"] = source
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra, **constraints)
    return Field(default, description=description, json_schema_extra=extra, **constraints)


def training(
    default: Any,
    description: str,
    *,
    unit: str | None = None,
    source: str | None = None,
    later: bool = False,
    **constraints: Any,
) -> Any:
    """A field that may change the result of a stage: part of its key.

    Args:
        default: value, or a function that makes it.
        description: one sentence.
        unit: of numbers.
        source: where the default comes from.
        later: the field is younger than keys in use. With its default, which must mean what was done before,
            it is left out of the key: an upgrade re-runs nothing.
        **constraints: of pydantic's ``Field``.
    """
    return _tagged("training", default, description, unit, source, later=later, **constraints)


def operational(
    default: Any, description: str, *, unit: str | None = None, source: str | None = None, **constraints: Any
) -> Any:
    """A field that never changes a result: not part of any key."""
    return _tagged("operational", default, description, unit, source, **constraints)
