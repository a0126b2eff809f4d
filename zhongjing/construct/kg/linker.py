"""Finds the graph's names in text: Aho-Corasick over names and aliases, the longest match.

Width, case and script are folded character by character, so that a place in the folded text is the place in
the text. Traditional characters become simplified by opencc's table of single characters (``t2s``); names
are folded in the same way, so they meet whatever the table says.

pyahocorasick looks for a child of a node by a walk over its list of children, and a root with thousands
of Chinese first characters makes each step slow. In UTF-16 a character is two symbols of 256: four times
as fast.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import ahocorasick
import opencc

from zhongjing.construct.kg.graph import Graph

_SHORTEST = 2  # characters: single ones (痛, 热) are everywhere


@dataclass(frozen=True, slots=True)
class Mention:
    """A name in a text. ``names``: the entities that it may stand for, more than one for a shared alias."""

    start: int
    end: int
    names: tuple[str, ...]


class Linker:
    """Finds names and aliases of a graph in text.

    Args:
        graph: whose names to find.
        types: only entities with one of these types; None for all.
        shortest: names and aliases of fewer characters are left out.
    """

    def __init__(
        self, graph: Graph, types: Iterable[str] | None = None, *, shortest: int = _SHORTEST
    ) -> None:
        wanted = None if types is None else set(types)
        names: dict[str, dict[str, None]] = {}
        for entity in graph.entities():
            if wanted is None or wanted.intersection(entity.types):
                for surface in (entity.name, *entity.aliases):
                    # Lists have numbers among their names, too (21 among drugs).
                    if len(surface) >= shortest and any(map(str.isalpha, surface)):
                        names.setdefault(fold(surface), {})[entity.name] = None
        self._automaton = ahocorasick.Automaton()
        for surface, entities in names.items():
            self._automaton.add_word(_symbols(surface), (surface, tuple(entities)))
        if names:
            self._automaton.make_automaton()
        self._empty = not names

    def find(self, text: str) -> list[Mention]:
        """All mentions, in order, none within another and none overlapping."""
        return self.find_folded(fold(text))

    def find_folded(self, folded: str) -> list[Mention]:
        """As :meth:`find`, of a text that :func:`fold` gave."""
        if self._empty:
            return []
        encoded = _symbols(folded)
        found = []
        for end, (surface, names) in self._automaton.iter(encoded):
            if end % 2:  # a match that ends within a character is none
                stop = (end + 1) // 2
                found.append((stop - len(surface), stop, names))
        if len(encoded) != 2 * len(folded):
            found = list(_from_units(found, folded))
        return [Mention(*each) for each in _longest(found) if _whole_word(folded, each[0], each[1])]


def fold(text: str) -> str:
    """Half-width, lower case, simplified; one character for each."""
    return text.translate(_table())


@functools.cache
def _table() -> dict[int, int]:
    """Every character that folding changes."""
    table = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
    for code in range(0x80, 0x3000):
        lower = chr(code).lower()
        if len(lower) == 1 and lower != chr(code):
            table[code] = ord(lower)
    for code, narrow in list(table.items()):
        table[code] = ord(chr(narrow).lower())
    table |= {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
    ideographs = [chr(code) for first, last in _IDEOGRAPHS for code in range(first, last + 1)]
    # One a line: the converter knows phrases, and no phrase goes over a line.
    simplified = opencc.OpenCC("t2s").convert("\n".join(ideographs)).split("\n")
    for traditional, simple in zip(ideographs, simplified, strict=True):
        if len(simple) == 1 and simple != traditional:
            table[ord(traditional)] = ord(simple)
    # 薴 becomes 苧, and 苧 becomes 苎: folding once must do what folding twice does.
    for code, folded in table.items():
        table[code] = table.get(folded, folded)
    return table


_IDEOGRAPHS = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF))


def _symbols(text: str) -> str:
    """UTF-16 as a string of its bytes."""
    return text.encode("utf-16-be", "surrogatepass").decode("latin-1")


_Found = tuple[int, int, tuple[str, ...]]


def _from_units(found: Iterable[_Found], text: str) -> Iterator[_Found]:
    """Places in UTF-16 units as places in characters, for texts beyond the basic plane.

    A found name's start was counted in characters; it is the end that is right.
    """
    character_of = [number for number, each in enumerate(text) for _ in range(2 if ord(each) > 0xFFFF else 1)]
    for start, stop, names in found:
        last = character_of[stop - 1] + 1
        yield last - (stop - start), last, names


def _longest(found: list[_Found]) -> list[_Found]:
    """Of names that overlap the longest first, of equal ones the earlier; the rest as far as it is free."""
    found.sort(key=lambda each: each[0])
    kept: list[_Found] = []
    group: list[_Found] = []
    reach = -1
    for each in found:
        if each[0] >= reach and group:
            kept += group if len(group) == 1 else _resolve(group)
            group = []
        group.append(each)
        reach = max(reach, each[1])
    return kept + _resolve(group)


def _resolve(group: list[_Found]) -> list[_Found]:
    """A group of overlapping names: none within another one, and none over another one."""
    chosen: list[_Found] = []
    for each in sorted(group, key=lambda one: (one[0] - one[1], one[0])):
        if all(each[1] <= other[0] or each[0] >= other[1] for other in chosen):
            chosen.append(each)
    return sorted(chosen)


def _whole_word(text: str, start: int, end: int) -> bool:
    """Whether a name is no part of a longer Latin word or number: ``alt`` in ``salt``, ``b1`` in ``b12``."""
    if text[start] < "\x80" and text[start].isalnum() and start and _latin(text[start - 1]):
        return False
    return not (text[end - 1] < "\x80" and text[end - 1].isalnum() and end < len(text) and _latin(text[end]))


def _latin(character: str) -> bool:
    return character < "\x80" and character.isalnum()
