"""Tables with a header (CSV, TSV) cut into rows.

Quotes are those of RFC 4180: a field that begins with one ends with one, and between them delimiters and line
ends are text. So a single stray quote swallows the rows up to the next one. Where what it spans cannot be a
field, or looks like rows of the table, every line of it is a bad row: what was swallowed is counted.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import TextIO

from zhongjing.data.records import BadRow, Row, unreadable

_RUNAWAY_LINES = 5000  # a quoted field over more lines than this was never closed
_ROWS_IN_A_FIELD = 2  # lines that look like rows; a single one may be a sentence with a comma in it


def table_rows(text: TextIO, delimiter: str) -> Iterator[Row | BadRow]:
    """The rows below the header, as mappings by its names; a nameless column is ``column 3``.

    Raises:
        DataError: the header cannot be read or names two columns alike, or a quote is never closed.
    """
    csv.field_size_limit(1 << 30)
    recorder = _LineRecorder(text)
    reader = csv.reader(recorder, delimiter=delimiter, strict=True)
    names = _header(reader)
    recorder.take()
    index = 0
    while names:
        fields, reason = _next_row(reader)
        line, lines = recorder.take()
        if not lines:
            return
        if not fields and not reason:
            continue  # a blank line
        raw = "".join(lines)
        if not reason and len(fields) != len(names):
            reason = f"the row has {len(fields)} fields, the header {len(names)}"
            swallows = _look_like_rows(lines, delimiter, len(names))
        else:
            swallows = len(lines) > 1 and (bool(reason) or _look_like_rows(lines, delimiter, len(names)))
        if swallows:
            reason = f"a quoted field spans lines {line} to {line + len(lines) - 1}, which look like rows" + (
                f"; {reason}" if reason else ""
            )
            for offset, one in enumerate(lines):
                yield BadRow(index + offset, line + offset, reason, one)
            index += len(lines)
            continue
        if reason:
            yield BadRow(index, line, reason, raw)
        else:
            yield Row.of_text(index, line, dict(zip(names, fields, strict=True)), raw)
        index += 1


def _header(reader: Iterator[list[str]]) -> list[str]:
    """Names of the columns; none in a table without a line."""
    fields: list[str] = []
    while not fields:
        try:
            fields = next(reader)
        except StopIteration:
            return []
        except csv.Error:
            raise unreadable(
                "the header of the table has a quote that is not closed", "correct the table's first line"
            ) from None
    stripped = [name.strip().lstrip("\ufeff") for name in fields]
    names = [name or f"column {number}" for number, name in enumerate(stripped, start=1)]
    if len(set(names)) < len(names):
        raise unreadable(
            "two columns of the table have the same name: one of them would be lost",
            "give every column its own name in the table's first line",
        )
    return names


def _next_row(reader: Iterator[list[str]]) -> tuple[list[str], str]:
    """The fields of the next row, or why it has none; neither at the table's end."""
    try:
        return next(reader), ""
    except StopIteration:
        return [], ""
    except csv.Error as error:
        # Only the kind of error is told: csv's own message may quote the line.
        behind = "expected after" in str(error)
        return [], "text follows a closing quote" if behind else "a quote is not closed"


def _look_like_rows(lines: Sequence[str], delimiter: str, width: int) -> bool:
    """Whether the lines of one row are rows themselves, but for a quote: all between the first and last."""
    looks = [
        line.count(delimiter) == width - 1
        # In a sentence or a list a space follows the comma.
        and all(cell.strip() and cell[:1] not in " \t" for cell in line.split(delimiter))
        for line in lines[1:]
    ]
    return sum(looks) >= _ROWS_IN_A_FIELD and all(looks[:-1])


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
            raise unreadable(
                f"the quote that opens in line {self._line} is not closed within {_RUNAWAY_LINES} lines",
                "correct the quotes of that line",
            )
        line = next(self._lines)
        self._taken.append(line)
        return line

    def take(self) -> tuple[int, list[str]]:
        """Number of the first line, and the lines since the last call."""
        line, lines = self._line, self._taken
        self._line += len(lines)
        self._taken = []
        return line, lines
