"""How an object is written, told from its first bytes: names lie (a ``.json`` that holds JSON lines).

Encodings are tried in the order UTF-8, GB18030. GB18030 accepts nearly any bytes, and UTF-8 rejects nearly
everything that is not UTF-8, so UTF-8 wins unless more than a few bytes contradict it.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from dataclasses import dataclass
from typing import Literal

from zhongjing.codes import data as data_codes
from zhongjing.codes import document as document_codes
from zhongjing.errors import DataError

Format = Literal["json", "jsonl", "csv", "text", "parquet"]

SNIFF_BYTES = 1 << 18

# Among bytes above 127; GB18030 text read as UTF-8 contradicts it in a third of them or more.
_DAMAGE_TOLERATED = 0.05
_ASCII = bytes(range(128))
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
_DELIMITERS = (",", "\t", ";")
_ESCAPED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that does not decode
_HEADER_CELL = 40  # characters; longer ones are sentences, not names


@dataclass(frozen=True, slots=True)
class Detected:
    """Format and encoding of an object.

    ``format`` json is an array or a run of values of any layout; jsonl has a value on each line.
    ``delimiter`` is set for csv only, ``encoding`` is None for parquet.
    """

    format: Format
    encoding: str | None
    delimiter: str | None = None


def sniff(
    head: bytes, *, complete: bool = False, format_hint: str = "auto", encoding_hint: str = "auto"
) -> Detected:
    """Tells format and encoding from the first bytes of an object.

    Args:
        head: the first bytes, up to :data:`SNIFF_BYTES`.
        complete: whether ``head`` is the whole object.
        format_hint: ``format`` of the source; anything but auto is taken as it is.
        encoding_hint: ``encoding`` of the source; likewise.

    Returns:
        What was found.

    Raises:
        DataError: the object is compressed, binary, or the encoding given is unknown.
    """
    if format_hint == "parquet" or (format_hint == "auto" and head.startswith(b"PAR1")):
        return Detected("parquet", None)
    for magic, name in _COMPRESSED.items():
        if head.startswith(magic):
            raise DataError(
                f"what is to be read is compressed ({name})",
                code=data_codes.UNREADABLE_SOURCE,
                remedy="decompress it first; text compressed once by gzip, zstd or bzip2 is read as it is",
            )
    encoding = _known(encoding_hint) if encoding_hint != "auto" else detect_encoding(head, complete=complete)
    text = _decoder(encoding).decode(head, complete)
    if format_hint != "auto":
        chosen: Format = format_hint  # type: ignore[assignment]  # config's literal without auto
        if chosen != "csv":
            return Detected(chosen, encoding)
        header = text.split("\n", 1)[0]
        likely = _delimiter(text, complete) or max(_DELIMITERS, key=header.count)
        return Detected(chosen, encoding, likely)
    found = _json_format(text, complete)
    if found is not None:
        return Detected(found, encoding)
    delimiter = _delimiter(text, complete)
    return Detected("csv", encoding, delimiter) if delimiter else Detected("text", encoding)


def detect_encoding(head: bytes, *, complete: bool = False) -> str:
    """The codec of text: utf-8, utf-8-sig, utf-16 (with a mark) or gb18030.

    Raises:
        DataError: the bytes are neither.
    """
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise DataError("the object is binary, not text", code=data_codes.UNREADABLE_SOURCE)
    high = len(head.translate(None, _ASCII))
    if high == 0:
        return "utf-8"
    wrong = {name: _undecodable(head, name, complete) / high for name in ("utf-8", "gb18030")}
    if wrong["utf-8"] <= _DAMAGE_TOLERATED:
        return "utf-8"
    if wrong["gb18030"] <= _DAMAGE_TOLERATED:
        return "gb18030"
    raise DataError(
        "the object is neither UTF-8 nor GB18030 text",
        code=data_codes.UNREADABLE_SOURCE,
        remedy="name its codec under `encoding`",
    )


def has_undecodable(text: str) -> bool:
    """Whether ``text`` has lone surrogates: bytes that did not decode, or a broken JSON escape."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(encoding)("surrogateescape")


def _undecodable(head: bytes, encoding: str, complete: bool) -> int:
    text = _decoder(encoding).decode(head, complete)
    return len(_ESCAPED.findall(text))


def _known(encoding: str) -> str:
    try:
        return codecs.lookup(encoding).name
    except LookupError:
        raise DataError(
            f"no codec is named {encoding!r}",
            code=document_codes.INVALID_VALUE,
            remedy="use a name such as utf-8, gb18030 or big5",
        ) from None


def _json_format(text: str, complete: bool) -> Literal["json", "jsonl"] | None:
    start = text.lstrip("\ufeff \t\r\n")
    lines = [line.strip() for line in start[: SNIFF_BYTES // 2].split("\n", 50)[:50]]
    lines = [line for line in lines if line]
    if start.startswith("["):
        rest = start[1:].lstrip()
        if rest and rest[0] not in '{["]':
            return None
        arrays = [line.startswith("[") and _is_json(line) for line in lines[:2]]
        return "jsonl" if len(arrays) == 2 and all(arrays) else "json"
    if start.startswith("{"):
        rest = start[1:].lstrip()
        if rest and rest[0] not in '"}':
            return None
        if any(line.startswith("{") and _is_json(line) for line in lines):
            return "jsonl"
        return "jsonl" if len(lines) == 1 and not complete else "json"
    return None


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _delimiter(text: str, complete: bool) -> str | None:
    """The delimiter, if the text is a table with a header: short distinct names over rows as wide."""
    text = text.lstrip("\ufeff")
    header = text.split("\n", 1)[0]
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        names = [name.strip() for name in names]
        if len(names) < 2 or len(set(names)) < len(names) or not all(names):
            continue
        if max(map(len, names)) > _HEADER_CELL:
            continue
        try:
            lines = text.splitlines(keepends=True)
            rows = [row for row in itertools.islice(csv.reader(lines, delimiter=delimiter), 200) if row]
        except csv.Error:
            continue
        if not complete and len(rows) < 200:
            rows = rows[:-1]  # the window may have cut it
        body = rows[1:]
        fitting = sum(1 for row in body if len(row) == len(names))
        if body and fitting >= 0.9 * len(body):
            return delimiter
    return None
