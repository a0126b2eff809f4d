"""Stored records as bytes and back. Damage and newer versions are told apart, and both name the object."""

from __future__ import annotations

import json
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
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
        raise StorageError(
            f"the object is damaged: it is not valid JSON ({reason})",
            code=codes.DAMAGED_OBJECT,
            where=uri,
            remedy="remove the object, so that it is made anew",
        ) from None  # the decoder's error holds the whole text


def parse_record(value: Any, kind: type[R], uri: str) -> R:
    """A record from its JSON value.

    Raises:
        StorageError: it is of a version that this program does not know, or is not such a record.
    """
    known = _versions(kind)
    version = value.get("version") if isinstance(value, dict) else None
    if known and version is not None and version not in known:
        raise StorageError(
            f"{kind.__name__} of version {version!r}; this program knows {', '.join(map(str, known))}",
            code=codes.NEWER_VERSION,
            where=uri,
        )
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "document"
        raise StorageError(
            f"the object is not a valid {kind.__name__}: {place}: {first['msg']}",
            code=codes.DAMAGED_OBJECT,
            where=uri,
            remedy="it is damaged, or of another release of zhongjing; remove it to have it made anew",
        ) from None  # pydantic's error holds the values


def _versions(kind: type[Record]) -> tuple[Any, ...]:
    field = kind.model_fields.get("version")
    if field is None or get_origin(field.annotation) is not Literal:
        return ()
    return get_args(field.annotation)
