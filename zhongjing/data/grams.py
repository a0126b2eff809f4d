"""Runs of characters of a record, hashed: what near duplicates and test sets are told by.

Chinese has no blanks between words, so the runs are of characters, of a text without punctuation, white
space, width and case. That only letters and digits count is the rule of GPT-4's report (appendix C).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata

import numpy as np
from numpy.typing import NDArray

from zhongjing.data.records import Ranking, Record, TextRecord

Hashes = NDArray[np.uint64]

_UNSPOKEN = re.compile(r"[\W_]+")
_BASE = np.uint64(0x100000001B3)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def folded(text: str) -> str:
    """Letters and digits of a text, in one width and case."""
    return _UNSPOKEN.sub("", unicodedata.normalize("NFKC", text).casefold())


def words_of(record: Record) -> str:
    """All that a record says, folded: turns and answers one behind the other."""
    if isinstance(record, TextRecord):
        return folded(record.text)
    turns = record.prompt if isinstance(record, Ranking) else record.turns
    answers = record.answers if isinstance(record, Ranking) else ()
    return folded("".join([*(turn.content for turn in turns), *answers]))


def grams(text: str, length: int) -> Hashes:
    """Hashes of all runs of so many characters, in order; of a shorter text one of the whole.

    Equal in every process and on every machine.
    """
    data = text.encode("utf-32-le", "surrogatepass")
    codes = np.frombuffer(data, dtype="<u4").astype(np.uint64) + np.uint64(1)
    length = min(length, len(codes))
    if length == 0:
        return np.zeros(1, np.uint64)
    count = len(codes) - length + 1
    found = np.zeros(count, np.uint64)
    with np.errstate(over="ignore"):
        for place in range(length):
            found = found * _BASE + codes[place : place + count]
        # The last steps of SplitMix64 (Steele, Lea, Flood 2014): neighbours get unlike hashes.
        found = (found ^ (found >> np.uint64(30))) * _MIX_1
        found = (found ^ (found >> np.uint64(27))) * _MIX_2
    mixed: Hashes = found ^ (found >> np.uint64(31))
    return mixed


def content(text: str) -> bytes:
    """Hash (16 bytes) of a folded text."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
