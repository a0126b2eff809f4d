"""How an object is written, told from its first bytes: names lie (a ``.json`` that holds JSON lines).

UTF-8 rejects nearly everything that is not UTF-8, so it wins unless more than a few bytes contradict it.
GB18030 and Big5 accept much of each other: there the reading wins that makes common characters of the bytes.
Where two readings fit, the object is refused, with the field of the source that decides.
"""

from __future__ import annotations

import codecs
import csv
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from zhongjing.codes import data as data_codes
from zhongjing.codes import document as document_codes
from zhongjing.data.json_values import is_turn, value_end
from zhongjing.data.records import unreadable
from zhongjing.errors import DataError

Format = Literal["json", "jsonl", "csv", "text", "parquet"]

SNIFF_BYTES = 1 << 18

# Among bytes above 127; GB18030 text read as UTF-8 contradicts it in a third of them or more.
_DAMAGE_TOLERATED = 0.05
# Share of common characters. Of Chinese text 0.93 and more are common ones in its own encoding, of
# traditional text in GB18030 0.7; read in the other encoding 0.6 and less, in another language's 0.
_COMMON_ALONE, _COMMON_BEST, _COMMON_LEAD = 0.5, 0.7, 0.15
_COUNTED_BYTES = 1 << 16
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
# What is said to be in these is written by programs that know more characters of the same codes (as in the
# Encoding Standard, "Names and labels").
_SUPERSETS = {"big5": "cp950", "gb2312": "gb18030", "gbk": "gb18030"}
_ESCAPED = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of a byte that does not decode
PRIVATE_USE = re.compile("[\ue000-\uf8ff]")
"""Characters without a meaning of their own: now and then a hospital's own glyphs, often a wrong encoding."""
# So many lines with as many commas are no chance; but a paragraph may have many, and the same one come again.
_HEADLESS_ROWS, _HEADLESS_COLUMNS = 20, 12
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

    @property
    def reading(self) -> str:
        """How the object is read, in a line: where it was guessed wrongly, one sees it."""
        marks = {",": "commas", "\t": "tabs", ";": "semicolons"}
        between = marks.get(self.delimiter or "", repr(self.delimiter))
        told = {
            "json": "JSON arrays or objects, of any number of lines",
            "jsonl": "JSON lines, a record each",
            "csv": f"table with {between}, its first line the header",
            "text": "plain text",
            "parquet": "parquet",
        }[self.format]
        return told + (f", {self.encoding}" if self.encoding else "")


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
            raise unreadable(
                f"the object is compressed ({name})",
                "decompress it first; text compressed once by gzip, zstd or bzip2 is read as it is",
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
    """The codec of text: utf-8, utf-8-sig, utf-16 (with a mark), gb18030 or cp950 (Big5).

    Raises:
        DataError: the bytes are none of them, or as well of one as of another.
    """
    if head.startswith(codecs.BOM_UTF8):
        return "utf-8-sig"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if b"\0" in head:
        raise unreadable(
            "the object is binary, not text", "if it is UTF-16 without a mark, set `encoding: utf-16-le`"
        )
    high = len(head.translate(None, _ASCII))
    if high == 0 or _undecodable(head, "utf-8", complete) / high <= _DAMAGE_TOLERATED:
        return "utf-8"
    fitting = {
        codec: _common_share(head, codec)
        for codec in ("gb18030", "cp950")
        if _undecodable(head, codec, complete) / high <= _DAMAGE_TOLERATED
    }
    fitting = {codec: share for codec, share in fitting.items() if share >= _COMMON_ALONE}
    if not fitting:
        raise unreadable(
            "the object is neither UTF-8 nor GB18030 nor Big5 text", "name its codec under `encoding`"
        )
    (best, share), *others = sorted(fitting.items(), key=lambda item: -item[1])
    if others and (share < _COMMON_BEST or share - others[0][1] < _COMMON_LEAD):
        raise DataError(
            "the object may be GB18030 or Big5 text",
            code=data_codes.AMBIGUOUS_READING,
            remedy="set `encoding: gb18030` or `encoding: big5` at the source; of a bare file "
            "give --encoding",
        )
    return best


def _common_share(head: bytes, codec: str) -> float:
    """Common characters among those beyond ASCII: those of GB 2312's first level, or of Big5's, and marks.

    Source: both standards have common characters first: GB 2312 rows 1 to 9 (marks) and 16 to 55, Big5 A140
    to A3BF (marks) and A440 to C67E.
    """
    text = [char for char in _decoder(codec).decode(head[:_COUNTED_BYTES]) if char > "\x7f"]
    common = 0
    for char in text:
        try:
            pair = char.encode("gb2312" if codec == "gb18030" else "big5")
        except UnicodeEncodeError:
            continue
        if codec == "gb18030":
            common += 0xA1 <= pair[0] <= 0xA9 or 0xB0 <= pair[0] <= 0xD7
        else:
            common += 0xA140 <= pair[0] << 8 | pair[-1] <= 0xC67E
    return common / max(1, len(text))


def _decoder(encoding: str) -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder(encoding)("surrogateescape")


def _undecodable(head: bytes, encoding: str, complete: bool) -> int:
    text = _decoder(encoding).decode(head, complete)
    if encoding != "utf-8":  # what neither standard gives a meaning is no text of it
        return len(_ESCAPED.findall(text)) + len(PRIVATE_USE.findall(text))
    return len(_ESCAPED.findall(text))


def _known(encoding: str) -> str:
    try:
        name = codecs.lookup(encoding).name
        name = _SUPERSETS.get(name, name)
        _decoder(name).decode(b"", True)  # some of Python's make no text of bytes, or bear no damage
        return name
    except (LookupError, ValueError, TypeError, AssertionError):
        raise DataError(
            f"no codec is named {encoding!r}",
            code=document_codes.INVALID_VALUE,
            remedy="use a name such as utf-8, gb18030 or big5",
        ) from None


def _json_format(text: str, complete: bool) -> Literal["json", "jsonl"] | None:
    """JSON or JSON lines, told from the first value: whether it is the whole of its line."""
    start = text.lstrip("\ufeff \t\r\n")
    if not start.startswith(("[", "{")):
        return None
    inner = start[1:].lstrip()
    if inner and inner[0] not in ('{["]' if start[0] == "[" else '"}'):
        return None
    lines = [line.rstrip() for line in start[: SNIFF_BYTES // 2].split("\n", 50)[:50]]
    lines = [line for line in lines if line.strip()]
    if start[0] == "[":
        return _array_format(lines)
    end = value_end(start, 0)
    one_line = end is not None and "\n" not in start[:end]
    if one_line:
        assert end is not None
        return "jsonl" if not start[end:].split("\n", 1)[0].strip() else "json"
    if len(lines) == 1 and not complete:
        return "jsonl"  # a record longer than what was looked at
    # Over several lines, or damaged. An object inside another one may have a line for itself, too.
    whole = sum(line.startswith("{") and _parsed(line) is not None for line in lines)
    damaged = end is None or _parsed(start[:end]) is None
    return "jsonl" if damaged and 2 * whole >= len(lines) - 1 > 0 else "json"


def _array_format(lines: Sequence[str]) -> Literal["json", "jsonl"]:
    """Whether an array on a line is a record (turns, values), or records are its elements."""
    first = [_parsed(line) for line in lines[:2]]
    if len(first) < 2 or not all(isinstance(one, list) for one in first):
        return "json"
    turns = [is_turn(item) for one in first if isinstance(one, list) for item in one]
    records = [
        isinstance(item, dict) and not is_turn(item) for one in first if isinstance(one, list) for item in one
    ]
    if any(turns) and any(records):
        raise DataError(
            "a line may be a dialogue (a list of turns) or an array of records",
            code=data_codes.AMBIGUOUS_READING,
            remedy="set `format: jsonl` (a record on each line) or `format: json` (arrays of records)",
        )
    return "json" if any(records) else "jsonl"


def _parsed(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _delimiter(text: str, complete: bool) -> str | None:
    """The delimiter, if the text is a table with a header: short distinct names over rows as wide.

    Raises:
        DataError: its rows are as wide as each other, and the first one is no header.
    """
    text = text.lstrip("\ufeff")
    header = text.split("\n", 1)[0]
    headless = False
    for delimiter in _DELIMITERS:
        names = next(csv.reader([header], delimiter=delimiter), [])
        names = [name.strip() for name in names]
        if len(names) < 2:
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
        # pandas writes its index under no name, as the first column.
        if len(set(names)) == len(names) and all(names[1:]) and max(map(len, names)) <= _HEADER_CELL:
            if body and fitting >= 0.9 * len(body):
                return delimiter
        elif len(names) <= _HEADLESS_COLUMNS and fitting == len(body):
            headless = headless or len(set(map(tuple, body))) >= _HEADLESS_ROWS
    if headless:
        raise DataError(
            "the object is a table without a header, or text with as many commas on each line",
            code=data_codes.AMBIGUOUS_READING,
            remedy="write the names of the columns into its first line, or set `format: text`",
        )
    return None
