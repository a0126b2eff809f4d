"""Numbers, durations and tables as short text."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence


def number(value: float) -> str:
    """A metric in four significant digits: ``2.134``, ``0.0312``, ``1.2e-05``."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:.0f}"
    text = f"{value:.4g}"
    return f"{value:.1e}" if "e" in text else text


def count(value: float) -> str:
    """A large count: ``812``, ``12.3k``, ``4.56M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.0f}"


def duration(seconds: float) -> str:
    """A time span: ``8s``, ``1m20s``, ``2h05m``, ``3d04h``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02d}h"


def clock(seconds: float) -> str:
    """Time since the start: ``00:07``, ``12:31``, ``1:02:03``."""
    whole = max(0, int(seconds))
    minutes = f"{whole % 3600 // 60:02d}:{whole % 60:02d}"
    return f"{whole // 3600}:{minutes}" if whole >= 3600 else minutes


def width(text: str) -> int:
    """Columns that ``text`` takes on a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


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
