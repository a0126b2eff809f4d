"""What the rules for names and places know: surnames, characters of given names, places."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class Lexicon:
    """Attributes are sets of single characters unless they say otherwise.

    Attributes:
        surnames: of one character.
        compound: surnames of two characters.
        given: frequent in given names.
        common: frequent in medical dialogue and rare in given names.
    """

    surnames: frozenset[str]
    compound: frozenset[str]
    given: frozenset[str]
    common: frozenset[str]

    def without(self, surnames: Iterable[str]) -> Lexicon:
        """The same, not knowing these surnames: what a measurement on names that are not listed needs."""
        taken = frozenset(surnames)
        return replace(self, surnames=self.surnames - taken, compound=self.compound - taken)


@cache
def load_lexicon() -> Lexicon:
    """The lists that are shipped."""
    listed = words("surnames")
    return Lexicon(
        surnames=frozenset(each for each in listed if len(each) == 1),
        compound=frozenset(each for each in listed if len(each) == 2),
        given=frozenset("".join(words("given_characters"))),
        common=frozenset("".join(words("common_characters"))),
    )


def words(name: str) -> tuple[str, ...]:
    """The words of a list, by white space; lines that begin with ``#`` are comments."""
    text = resources.files(__package__).joinpath("lists", f"{name}.txt").read_text(encoding="utf-8")
    return tuple(word for line in text.splitlines() if not line.startswith("#") for word in line.split())
