"""Raw records: what an object is cut into, before anybody asks what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A raw record: ``value`` as the format gives it, ``raw`` as it stands in the object."""

    index: int
    line: int | None
    value: object
    raw: str


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that the format itself does not allow."""

    index: int
    line: int | None
    reason: str
    raw: str


def is_turn(value: object) -> bool:
    """Whether a value is a turn of a dialogue, and not a record."""
    return (
        isinstance(value, Mapping)
        and ("role" in value or "from" in value)
        and ("content" in value or "value" in value)
    )
