"""Counts, times and tables as short text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def count(value: float) -> str:
    """A large count: ``812``, ``12.3k``, ``4.56M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def clock(seconds: float) -> str:
    """Time since the start: ``00:07``, ``12:31``, ``1:02:03``."""
    whole = max(0, int(seconds))
    minutes = f"{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def filled(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """A table without the columns, the first two excepted, in which nothing stands."""
    shown = [column for column in range(len(header)) if column < 2 or any(row[column] for row in rows)]
    return table(
        [header[column] for column in shown],
        [[row[column] for column in shown] for row in rows],
        right=[place for place, column in enumerate(shown) if column in right],
    )


def table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """Lines of a table without borders.

    Args:
        header: titles of the columns.
        rows: cells; every row as long as the header.
        right: indices of right-aligned columns.
    """
    sizes = [max(width(row[column]) for row in (header, *rows)) for column in range(len(header))]
    lines = []
    for row in (header, *rows):
        cells = []
        for column, cell in enumerate(row):
            gap = " " * (sizes[column] - width(cell))
            cells.append(f"{gap}{cell}" if column in right else f"{cell}{gap}")
        lines.append("  ".join(cells).rstrip())
    return lines
