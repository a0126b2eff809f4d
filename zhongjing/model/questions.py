"""What a model is asked, and what it answers; light, for those who ask and hold no model."""

from __future__ import annotations

from dataclasses import dataclass

from zhongjing.data.records import Turn


@dataclass(frozen=True, slots=True)
class Question:
    """A prompt (a user turn last) and the seed of its answer. ``temperature`` 0 takes the likeliest token."""

    turns: tuple[Turn, ...]
    seed: int
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer's text, without marks. ``ended``: by the model itself, not by the limit of tokens."""

    text: str
    tokens: int
    ended: bool
