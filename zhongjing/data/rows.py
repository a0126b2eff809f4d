"""Objects cut into raw records, one at a time, whatever the format. A damaged record does not end the rest.

The JSON reader is written here and not taken from ijson. It decodes one array element at a time with the
standard library's C decoder over a sliding window (85 MB/s where ``json.loads`` of the whole does 225, and
tokenising 0.8 to 1.9), so it needs no further package; and when an element is malformed it finds where the
element ends by its brackets and goes on with the next, which an event parser cannot.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TextIO

from zhongjing.codes import command as command_codes
from zhongjing.codes import data as data_codes
from zhongjing.data.formats import Detected, has_undecodable
from zhongjing.errors import DataError

_WINDOW = 1 << 20  # characters read at a time
_RECORD_LIMIT = 1 << 26  # characters; what is longer is no record but a bracket or quote that is not closed
_RUNAWAY_LINES = 5000  # a quoted field over more lines than this was never closed
_STRUCTURE = re.compile(r'["\[\]{}]')
_STRING_END = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_BETWEEN = re.compile(r"[ \t\r\n\ufeff,]*")


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


def iter_rows(stream: BinaryIO, detected: Detected) -> Iterator[Row | BadRow]:
    """Cuts an object into raw records.

    Args:
        stream: the object, from its beginning; closed by the caller.
        detected: how it is written. Text gives a row for each line that is not blank.

    Yields:
        Rows in the object's order, counted from 0, damaged ones among them.

    Raises:
        DataError: the object as a whole is damaged, so what follows cannot be told apart.
    """
    if detected.format == "parquet":
        yield from _parquet(stream)
        return
    text = open_text(stream, detected)
    try:
        readers = {"jsonl": _json_lines, "json": _json_values, "text": _lines}
        if detected.format == "csv":
            yield from _table(text, detected.delimiter or ",")
        else:
            yield from readers[detected.format](text)
    finally:
        text.detach()


def open_text(stream: BinaryIO, detected: Detected) -> io.TextIOWrapper:
    """The stream as text; bytes that do not decode become lone surrogates, so their record can be told."""
    return io.TextIOWrapper(
        stream, encoding=detected.encoding or "utf-8", errors="surrogateescape", newline=""
    )


def parse_json(raw: str, index: int, line: int | None) -> Row | BadRow:
    """One JSON value as a row."""
    if has_undecodable(raw):
        return BadRow(index, line, "bytes do not decode in the object's encoding", raw)
    try:
        return Row(index, line, json.loads(raw), raw)
    except ValueError as error:
        # The decoder's message has no text of the record; str(error) would add positions only.
        reason = getattr(error, "msg", "not a number that can be read")
        return BadRow(index, line, f"not JSON: {reason}", raw)
    except RecursionError:
        return BadRow(index, line, "not JSON: nested too deeply", raw)


def _numbered(text: TextIO) -> Iterator[tuple[int, str]]:
    return enumerate(text, start=1)


def _json_lines(text: TextIO) -> Iterator[Row | BadRow]:
    index = 0
    for line, raw in _numbered(text):
        content = raw.strip(" \t\r\n\ufeff")
        if content:
            yield parse_json(content, index, line)
            index += 1


def _lines(text: TextIO) -> Iterator[Row | BadRow]:
    index = 0
    for line, raw in _numbered(text):
        content = raw.strip()
        if not content:
            continue
        if has_undecodable(content):
            yield BadRow(index, line, "bytes do not decode in the object's encoding", content)
        else:
            yield Row(index, line, content, content)
        index += 1


class _Window:
    """A sliding window over text: ``data[at:]`` is what has not been consumed yet."""

    def __init__(self, text: TextIO) -> None:
        self._text = text
        self.data = ""
        self.at = 0
        self.line = 1
        self.ended = False

    def more(self) -> None:
        """Reads on. The window at least doubles, so that retrying a long record costs linear time."""
        kept = self.data[self.at :]
        piece = self._text.read(max(_WINDOW, len(kept)))
        self.ended = not piece
        self.data, self.at = kept + piece, 0

    def skip(self, pattern: re.Pattern[str]) -> None:
        """Passes what ``pattern`` matches, over the window's end if need be."""
        while True:
            match = pattern.match(self.data, self.at)
            assert match is not None
            self.advance(match.end())
            if self.at < len(self.data) or self.ended:
                return
            self.more()

    def advance(self, end: int) -> None:
        """Consumes up to ``end``."""
        self.line += self.data.count("\n", self.at, end)
        self.at = end


def _json_values(text: TextIO) -> Iterator[Row | BadRow]:
    """Elements of one array, or of a run of values without brackets around it."""
    window = _Window(text)
    window.more()
    window.skip(_BLANK)
    in_array = window.data.startswith("[", window.at)
    if in_array:
        window.advance(window.at + 1)
    index = 0
    while True:
        window.skip(_BETWEEN)
        if window.at >= len(window.data):
            if in_array:
                raise DataError(
                    f"the JSON array has no end: the object is cut off after record {index}",
                    code=data_codes.UNREADABLE_SOURCE,
                    remedy="publish the whole file again",
                )
            return
        if in_array and window.data[window.at] == "]":
            return
        end = _value_end(window)
        if end is None:
            raise DataError(
                f"record {index} (line {window.line}) has no end: the object is cut off or damaged there",
                code=data_codes.UNREADABLE_SOURCE,
                remedy="mend the file, or write one record a line so that damage stays in its line",
            )
        yield parse_json(window.data[window.at : end], index, window.line)
        window.advance(end)
        index += 1


_SCALAR = re.compile(r"[^,\[\]{}\"\s]+")
_DECODER = json.JSONDecoder()


def _value_end(window: _Window) -> int | None:
    """Where the value at the window's position ends; None if it has no end."""
    while True:
        start = window.at
        if window.data[start] in '{["':
            end = _bracketed_end(window.data, start)
        else:
            match = _SCALAR.match(window.data, start)
            # A stray bracket is a value of its own: it is rejected, and the next one is tried.
            end = match.end() if match else start + 1
            if end >= len(window.data) and not window.ended:
                end = None
        if end is not None:
            return end
        if window.ended or len(window.data) - window.at > _RECORD_LIMIT:
            return None
        window.more()


def _bracketed_end(data: str, start: int) -> int | None:
    """End of the object, array or string at ``start``. First by the C decoder, else by its brackets."""
    try:
        return _DECODER.raw_decode(data, start)[1]
    except (ValueError, RecursionError):
        pass
    depth, position = 0, start
    while True:
        match = _STRUCTURE.search(data, position)
        if match is None:
            return None
        position = match.end()
        mark = match.group()
        if mark == '"':
            string = _STRING_END.match(data, position)
            if string is None:
                return None
            position = string.end()
        else:
            depth += 1 if mark in "[{" else -1
        if depth <= 0:
            return position


def _table(text: TextIO, delimiter: str) -> Iterator[Row | BadRow]:
    csv.field_size_limit(1 << 30)
    recorder = _LineRecorder(text)
    reader = csv.reader(recorder, delimiter=delimiter)
    header = next((row for row in reader if row), None)
    if header is None:
        return
    names = [name.strip().lstrip("\ufeff") for name in header]
    index = 0
    recorder.take()
    for fields in reader:
        line, raw = recorder.take()
        if not fields:
            continue
        if has_undecodable(raw):
            yield BadRow(index, line, "bytes do not decode in the object's encoding", raw)
        elif len(fields) != len(names):
            reason = f"the row has {len(fields)} fields, the header {len(names)}"
            yield BadRow(index, line, reason, raw)
        else:
            yield Row(index, line, dict(zip(names, fields, strict=True)), raw)
        index += 1


class _LineRecorder:
    """Hands lines to the csv reader and keeps those of the record being read."""

    def __init__(self, text: TextIO) -> None:
        self._lines = iter(text)
        self._taken: list[str] = []
        self._line = 1

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if len(self._taken) > _RUNAWAY_LINES:
            raise DataError(
                f"the quote that opens in line {self._line} is not closed within {_RUNAWAY_LINES} lines",
                code=data_codes.UNREADABLE_SOURCE,
                remedy="mend the quotes of that line",
            )
        line = next(self._lines)
        self._taken.append(line)
        return line

    def take(self) -> tuple[int, str]:
        """Number of the first line and text of the lines since the last call."""
        line, raw = self._line, "".join(self._taken)
        self._line += len(self._taken)
        self._taken = []
        return line, raw


def _parquet(stream: BinaryIO) -> Iterator[Row | BadRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise DataError("reading parquet needs pyarrow", code=command_codes.MISSING_PACKAGE) from None
    try:
        index = 0
        for batch in ParquetFile(stream).iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                yield mapping_row(value, index)
                index += 1
    except ArrowException as error:
        raise DataError(
            f"the parquet file is damaged ({type(error).__name__})", code=data_codes.UNREADABLE_SOURCE
        ) from None  # arrow may quote values, and tracebacks are kept


def mapping_row(value: object, index: int) -> Row:
    """A record that comes as a mapping; its raw form is canonical JSON."""
    return Row(index, None, value, json.dumps(value, ensure_ascii=False, sort_keys=True, default=str))
