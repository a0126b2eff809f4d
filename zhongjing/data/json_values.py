"""JSON that isn't one value a line: arrays of records, objects one behind the other, any mixture of both.

Read here and not by ijson. One record at a time is decoded by the standard library's C decoder over a sliding
window (60 MB/s where ``json.loads`` of the whole does 175, and tokenising 0.8 to 1.9), so it needs no further
package; and when a record is malformed its end is found by its brackets, and the next one is read, which an
event parser cannot. A file is a run of values (several arrays, an array with lines appended to it): what
stands around them is an error that names its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import TextIO

from zhongjing.data import published_keys as keys
from zhongjing.data.records import BadRow, Row, has_undecodable, unreadable
from zhongjing.errors import DataError

_WINDOW = 1 << 20  # characters read at a time
_RECORD_LIMIT = 1 << 26  # characters; what is longer is no record but a bracket or quote that is not closed
_BLANK = re.compile(r"[ \t\r\n\ufeff]*")
_BETWEEN = re.compile(r"[ \t\r\n\ufeff,]*")
_COLON = re.compile(r"[ \t\r\n:]*")
_STRAY = re.compile(r"[^,\[\]{}\"\r\n]+")
_STRUCTURE = re.compile(r'["\[\]{}]')
_STRING_END = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_DECODER = json.JSONDecoder()


class _RepeatedKeyError(ValueError):
    """An object has a key twice: of two values one would be lost."""


def value_end(data: str, start: int) -> int | None:
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


def is_turn(value: object) -> bool:
    """Whether a value is a turn of a dialogue, and not a record."""
    return (
        isinstance(value, Mapping)
        and any(key in value for key in keys.ROLES)
        and any(key in value for key in keys.CONTENTS if key != "text")
    )


def parse_json(raw: str, index: int, line: int | None) -> Row | BadRow:
    """One JSON value as a row."""
    if has_undecodable(raw):
        return BadRow(index, line, "bytes do not decode in the object's encoding", raw)
    try:
        return Row(index, line, json.loads(raw, object_pairs_hook=_once), raw)
    except _RepeatedKeyError:
        return BadRow(index, line, "a key occurs twice in an object", raw)
    except ValueError as error:
        # The decoder's message has no text of the record; str(error) would add positions only.
        reason = getattr(error, "msg", "not a number that can be read")
        return BadRow(index, line, f"not JSON: {reason}", raw)
    except RecursionError:
        return BadRow(index, line, "not JSON: nested too deeply", raw)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _RepeatedKeyError
    return found


def json_values(text: TextIO) -> Iterator[Row | BadRow]:
    """Elements of arrays, and values outside of any, in the object's order.

    Raises:
        DataError: an array or value has no end, or something stands around the values; it names the line.
    """
    window = _Window(text)
    window.more()
    window.skip(_BLANK)
    index = 0
    while window.at < len(window.data):
        if window.data[window.at] != "[" or _holds_turns(window):
            if window.data[window.at] not in '[{"':
                raise _outside(window)
            yield window.value(index)
            index += 1
        else:
            opened = window.line
            window.advance(window.at + 1)
            for row in _elements(window, index, opened):
                yield row
                index += 1
        window.skip(_BETWEEN)


def json_members(text: TextIO) -> Iterator[Row | BadRow]:
    """Values of one object that holds all records by their names, in the object's order; names are dropped.

    Raises:
        DataError: it is no such object, or has no end; it names the line.
    """
    window = _Window(text)
    window.more()
    window.skip(_BLANK)
    if window.data[window.at : window.at + 1] != "{":
        raise unreadable(
            "the file is not one JSON object with the records in it", "publish it as it was made"
        )
    window.advance(window.at + 1)
    index = 0
    while True:
        window.skip(_BETWEEN)
        mark = window.data[window.at : window.at + 1]
        if mark == "}":
            return
        if mark != '"':
            what = "has no end" if not mark else f"has no name for record {index + 1}"
            raise unreadable(f"line {window.line}: the JSON object {what}", "publish the whole file again")
        window.value(index)  # the name
        window.skip(_COLON)
        if not window.data[window.at : window.at + 1] or window.data[window.at] in "}]:":
            raise unreadable(f"line {window.line}: a name has no record", "publish the whole file again")
        yield window.value(index)
        index += 1


def _elements(window: _Window, index: int, opened: int) -> Iterator[Row | BadRow]:
    """Elements of the array that the window stands in, its closing bracket passed at the end."""
    while True:
        window.skip(_BETWEEN)
        if window.at >= len(window.data):
            raise unreadable(
                f"the JSON array that opens in line {opened} has no end: the object is cut off after record "
                f"{index}",
                "publish the whole file again",
            )
        if window.data[window.at] == "]":
            window.advance(window.at + 1)
            return
        yield window.value(index)
        index += 1


def _holds_turns(window: _Window) -> bool:
    """Whether the array at the window's position is a record: a list of turns."""
    while True:
        first = _blank_end(window.data, window.at + 1)
        if first < len(window.data):
            if window.data[first] != "{":
                return False
            end = value_end(window.data, first)
            if end is not None:
                row = parse_json(window.data[first:end], 0, None)
                return isinstance(row, Row) and is_turn(row.value)
        if window.ended or len(window.data) - window.at > _RECORD_LIMIT:
            return False
        window.more()


def _blank_end(data: str, start: int) -> int:
    match = _BLANK.match(data, start)
    assert match is not None
    return match.end()


def _outside(window: _Window) -> DataError:
    what = {"]": "a bracket that closes no array", "}": "a brace that closes no object"}
    return unreadable(
        f"line {window.line}: {what.get(window.data[window.at], 'text')} is outside the JSON values",
        "correct the file there or, if it has a value on each line, set `format: jsonl`",
    )


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

    def value(self, index: int) -> Row | BadRow:
        """Takes the value at the position, or the text that stands in its place.

        Raises:
            DataError: it has no end.
        """
        while True:
            start = self.at
            if self.data[start] in '{["':
                end = value_end(self.data, start)
            else:
                match = _STRAY.match(self.data, start)
                # A stray bracket is a record of its own: it is rejected, and the next one is tried.
                end = match.end() if match else start + 1
                if end >= len(self.data) and not self.ended:
                    end = None
            if end is not None:
                break
            if self.ended or len(self.data) - self.at > _RECORD_LIMIT:
                raise unreadable(
                    f"record {index + 1} (line {self.line}) has no end: "
                    "the object is cut off or damaged there",
                    "correct the file, or write one record a line so that damage stays in its line",
                )
            self.more()
        row = parse_json(self.data[start:end], index, self.line)
        self.advance(end)
        return row
