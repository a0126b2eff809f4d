"""Which records are trained on, held out or test data: decided by a hash of what a record is about.

The *unit* of a record decides: a section, or the question that a dialogue, ranking or prompt opens with. A
ranking's answers, the later turns of a dialogue, the file and the neighbours of a record play no part, so
nothing moves when records are added or files are reordered, and the pairs of one prompt stay together.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Literal

from zhongjing.data.records import Dialogue, Prompt, Ranking, Record, TextRecord, Turn

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

# A greeting is no unit: user turns are added until so many characters tell one opening from another.
_OPENING_CHARACTERS = 16


def bucket(text_key: str | bytes, salt: str) -> float:
    """A number of 53 bits in [0, 1), uniform over keys; ``salt`` tells independent decisions apart."""
    data = text_key.encode("utf-8") if isinstance(text_key, str) else text_key
    digest = hashlib.blake2b(data, digest_size=8, key=salt.encode("utf-8")).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def assign(
    unit: bytes, *, test_fraction: float, validation_fraction: float, test_only: bool = False
) -> Split:
    """The split of a unit (:func:`unit_of`); validation takes its part of what the test data leave."""
    if test_only or bucket(unit, "test") < test_fraction:
        return "test"
    return "validation" if bucket(unit, "validation") < validation_fraction else "train"


def unit_of(record: Record) -> bytes:
    """Hash (16 bytes) of what decides a record's split; equal units are never on two sides.

    Differences in white space, width and case do not count.
    """
    if isinstance(record, TextRecord):
        return _digest("text", normalise(record.text))
    turns = record.prompt if isinstance(record, Ranking) else record.turns
    return _digest("opening", opening(turns))


def opening(turns: tuple[Turn, ...]) -> str:
    """The user's first words, normalised: the first turn, and more while they are only a greeting."""
    words = ""
    for turn in turns:
        if turn.role == "user":
            words += normalise(turn.content) + "\n"
            if len(words) > _OPENING_CHARACTERS:
                break
    return words


def content_of(record: Record) -> bytes:
    """Hash (16 bytes) of everything in a record but its position and department: equal means duplicate."""
    if isinstance(record, TextRecord):
        return _digest("text", record.text)
    if isinstance(record, Ranking):
        graded = sorted(zip(record.ranks, record.answers, strict=True))
        parts = [*_told(record.prompt), *(f"{rank}\0{answer}" for rank, answer in graded)]
        return _digest("ranking", *parts)
    kinds = {Dialogue: "dialogue", Prompt: "prompt"}
    return _digest(kinds[type(record)], *_told(record.turns))


def normalise(text: str) -> str:
    """The text without white space, in one width and case (NFKC, casefold)."""
    return "".join(unicodedata.normalize("NFKC", text).casefold().split())


def _told(turns: tuple[Turn, ...]) -> list[str]:
    # A turn that is not to be learned makes another record of the same words.
    return [f"{turn.role}\0{turn.content}{'' if turn.learn else chr(0)}" for turn in turns]


def _digest(*parts: str) -> bytes:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode("utf-8")
        # The length goes in too, or the same text cut elsewhere would count as equal.
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.digest()
