"""Which of several wordings a record gets: drawn by a hash, so that it is the same in every process."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Choice:
    """Draws for one item.

    Args:
        seed: of the whole construction.
        key: what the item is about. Equal items draw alike, wherever they stand.
    """

    def __init__(self, seed: int, key: str) -> None:
        self._key = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=16).digest()

    def number(self, what: str, below: int) -> int:
        """A number from 0 up to ``below``, without it; ``what`` tells the draws of an item apart."""
        digest = hashlib.blake2b(what.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") % below

    def one(self, what: str, options: Sequence[T]) -> T:
        """One of the options."""
        return options[self.number(what, len(options))]

    def order(self, what: str, options: Sequence[T]) -> list[T]:
        """The options in an order that is drawn."""
        drawn = [(self.number(f"{what} {place}", 1 << 60), place) for place in range(len(options))]
        return [options[place] for _, place in sorted(drawn)]
