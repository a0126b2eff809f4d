"""Bar charts as an SVG picture, which every browser shows and Word and LaTeX take; no package is needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from zhongjing.cli.display.text import count, width

_WIDTH = 760
_LINE = 22
_TITLE = 40
_LETTER = 7.2  # pixels of a narrow letter at 13 pixels; a Chinese character is two
_FONT = "'Noto Sans CJK SC','Source Han Sans SC','Microsoft YaHei','PingFang SC',sans-serif"
_MOST_LETTERS = 30
_ROOM = 120  # behind the longest bar, for its number and share


@dataclass(frozen=True, slots=True)
class Chart:
    """A title and values by label, in the order in which they are drawn."""

    title: str
    values: Sequence[tuple[str, int]]


def as_svg(charts: Sequence[Chart]) -> str:
    """The charts, one below the other, each bar with its number and its share."""
    parts: list[str] = []
    top = 8
    for chart in charts:
        parts += _chart(chart, top)
        top += _TITLE + _LINE * len(chart.values)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top + 8}" '
        f'viewBox="0 0 {_WIDTH} {top + 8}" font-family="{_FONT}" font-size="13" fill="#222">'
    )
    ground = '<rect width="100%" height="100%" fill="#fff"/>'
    return "\n".join([head, ground, *parts, "</svg>", ""])


def _chart(chart: Chart, top: int) -> Iterator[str]:
    labels = [_short(label) for label, _ in chart.values]
    left = round(max(width(label) for label in labels) * _LETTER) + 24
    total = sum(number for _, number in chart.values) or 1
    most = max(number for _, number in chart.values) or 1
    yield f'<text x="12" y="{top + 24}" font-size="15" font-weight="bold">{escape(chart.title)}</text>'
    for place, (label, (_, number)) in enumerate(zip(labels, chart.values, strict=True)):
        y = top + _TITLE + _LINE * place
        long = max(1.0, (_WIDTH - left - _ROOM) * number / most)
        told = f"{count(number)}  {number / total:.1%}"
        yield f'<text x="{left - 8}" y="{y + 4}" text-anchor="end">{escape(label)}</text>'
        yield f'<rect x="{left}" y="{y - 8}" width="{long:.1f}" height="15" fill="#3b76a8"/>'
        yield f'<text x="{left + long + 6:.1f}" y="{y + 4}" fill="#555">{told}</text>'


def _short(label: str) -> str:
    while width(label) > _MOST_LETTERS:
        label = label[:-2] + "…"
    return label
