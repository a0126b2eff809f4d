"""Stored records as bytes and back. Damage and newer versions are told apart, and both name the object."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.layout import made_by
from zhongjing.storage.manifest import Record

R = TypeVar("R", bound=Record)


def record_bytes(record: Record) -> bytes:
    """The stored form: UTF-8 JSON in camelCase. Equal records give equal bytes."""
    return record.model_dump_json(indent=2).encode()


def parse_json(data: bytes, uri: str) -> Any:
    """A JSON value.

    Raises:
        StorageError: ``data`` is not JSON.
    """
    try:
        return json.loads(data)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "not UTF-8"
        # From None: the decoder's error holds the whole text.
        raise damaged(f"the object is damaged: it is not valid JSON ({reason})", uri) from None


def parse_record(value: Any, kind: type[R], uri: str) -> R:
    """A record from its JSON value.

    Raises:
        StorageError: it is of a version that this program does not know, or is not such a record.
    """
    known = _versions(kind)
    if known and isinstance(value, dict) and value.get("version") is not None:
        check_version(value["version"], known, kind.__name__, uri)
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        # From None: pydantic's error holds the values.
        raise damaged(f"the object is not a valid {kind.__name__}: {place}: {first['msg']}", uri) from None


def check_version(version: object, known: Sequence[int], what: str, uri: str) -> None:
    """Refuses what this program cannot read, before anything else in it is looked at.

    A newer release may have added keys, and a message about the first of them would lead astray.

    Args:
        version: as it stands in the object.
        known: what this program reads.
        what: how messages call the object.
        uri: the object.

    Raises:
        StorageError: a newer release wrote it (``NewerVersion``), or no release did (``DamagedObject``).
    """
    if isinstance(version, int) and version in known:
        return
    if isinstance(version, int) and version > max(known):
        raise StorageError(
            f"{what} of version {version}; this program knows {', '.join(map(str, known))}",
            code=codes.NEWER_VERSION,
            where=uri,
        )
    raise damaged(f"{what} says that it is of version {version!r}, which no release writes", uri)


def damaged(message: str, uri: str) -> StorageError:
    """The error for an object that is not what was written; it says how to have it made anew."""
    stage = made_by(uri)
    return StorageError(
        message,
        code=codes.DAMAGED_OBJECT,
        where=uri,
        remedy="remove the object, so that it is made anew"
        if stage is None
        else f"run the stage that made it again: `zhongjing submit --pipeline NAME --rerun {stage}`",
    )


def _versions(kind: type[Record]) -> tuple[int, ...]:
    field = kind.model_fields.get("version")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)
