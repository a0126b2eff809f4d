"""Records: what sources are read into, whatever their format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue. ``learn``: whether an assistant's turn is a target where it is trained on."""

    role: Role
    content: str
    learn: bool = True


@dataclass(frozen=True, slots=True)
class Position:
    """Where a record stands: for messages and quarantine, never its text."""

    source: str
    uri: str
    index: int  # record number in the object, from 0
    line: int | None = None  # from 1, where the format has lines


@dataclass(frozen=True, slots=True)
class TextRecord:
    """A text or a section of a book."""

    text: str
    position: Position


@dataclass(frozen=True, slots=True)
class Dialogue:
    """System turn (optional), then user and assistant in turn, an assistant last."""

    turns: tuple[Turn, ...]
    position: Position
    department: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers to one prompt. ``ranks[i]`` is the rank of ``answers[i]``, 0 the best; equal ones tie."""

    prompt: tuple[Turn, ...]
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question, with its history; a user turn last."""

    turns: tuple[Turn, ...]
    position: Position


Record = TextRecord | Dialogue | Ranking | Prompt
