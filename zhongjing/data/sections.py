"""Books cut into sections, the unit that is trained on or held out as a whole."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_SENTENCE_END = re.compile(r"[。！？!?；;…]+[”’」』)）]*|\.(?=\s)")


@dataclass(frozen=True, slots=True)
class Section:
    """A section and the line (from 1) that it begins in."""

    line: int
    text: str


def cut_sections(lines: Iterable[str], characters: int) -> Iterator[Section]:
    """Cuts a text at paragraph ends into sections of about ``characters``.

    A section ends with a paragraph whose hash says so, between half and one and a half times the length
    asked for. So the cuts follow from the text near them: what is added or changed at one place of a book
    moves no section elsewhere, and none of them changes sides between training and held-out.

    Paragraphs are lines; blank ones are left out. One that is too long is cut at sentence ends.
    """
    paragraphs: list[str] = []
    length, first = 0, 1
    for number, line in enumerate(lines, start=1):
        for paragraph in _pieces(line.strip(), characters):
            if paragraphs and length + len(paragraph) > 1.5 * characters:
                yield Section(first, "\n".join(paragraphs))
                paragraphs, length = [], 0
            if not paragraphs:
                first = number
            paragraphs.append(paragraph)
            length += len(paragraph) + 1
            if length >= 0.5 * characters and _ends_section(paragraph, characters):
                yield Section(first, "\n".join(paragraphs))
                paragraphs, length = [], 0
    if paragraphs:
        yield Section(first, "\n".join(paragraphs))


def _ends_section(paragraph: str, characters: int) -> bool:
    # The chance grows with the paragraph's length, so that over half a section is passed on
    # average before one ends it, be the paragraphs long or short.
    chance = min(1.0, 1.6 * (len(paragraph) + 1) / characters)
    return zlib.crc32(paragraph.encode("utf-8", "replace")) < chance * 2**32


def _pieces(paragraph: str, characters: int) -> Iterator[str]:
    """The paragraph, cut at sentence ends where it is longer than a section."""
    start = 0  # a book on one line is cut without a copy of the rest for each piece
    while len(paragraph) - start > characters:
        window = paragraph[start : start + characters]
        ends = [match.end() for match in _SENTENCE_END.finditer(window)]
        end = ends[-1] if ends and ends[-1] >= characters // 4 else characters
        yield window[:end].strip()
        start += end
        while paragraph[start : start + 1].isspace():
            start += 1
    if start < len(paragraph):
        yield paragraph[start:].strip()
