"""Records on their way from the rows of a file to what a stage trains on, whatever their format and layout.

A file is cut into :class:`Row` or :class:`BadRow`, a row is read as :class:`Parsed`, and the source's kind
makes a :data:`Record` of that. What cannot be used is :class:`Rejected`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from zhongjing.codes import Code, find
from zhongjing.codes import data as codes
from zhongjing.config.sources import Kind
from zhongjing.errors import DataError

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a dialogue. ``learn``: whether an assistant's turn is a target where it is trained on."""

    role: Role
    content: str
    learn: bool = True


Turns = tuple[Turn, ...]


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

    turns: Turns
    position: Position
    department: str | None = None


@dataclass(frozen=True, slots=True)
class Ranking:
    """K answers to one prompt. ``ranks[i]`` is the rank of ``answers[i]``, 0 the best; equal ones tie."""

    prompt: Turns
    answers: tuple[str, ...]
    ranks: tuple[int, ...]
    position: Position


@dataclass(frozen=True, slots=True)
class Prompt:
    """A question, with its history; a user turn last."""

    turns: Turns
    position: Position


Record = TextRecord | Dialogue | Ranking | Prompt


@dataclass(frozen=True, slots=True)
class Row:
    """A raw record: ``value`` as the format gives it, ``raw`` as the object has it."""

    index: int
    line: int | None
    value: object
    raw: str

    @classmethod
    def of_text(cls, index: int, line: int | None, value: object, raw: str) -> Row | BadRow:
        """The row, unless bytes of it did not decode."""
        if has_undecodable(raw):
            return BadRow(index, line, "bytes do not decode in the object's encoding", raw)
        return cls(index, line, value, raw)


@dataclass(frozen=True, slots=True)
class BadRow:
    """A record that the format itself does not allow."""

    index: int
    line: int | None
    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record in neutral form: a text, or turns, with ranked answers beside them where there are any.

    ``layout`` tells how it was read, in a few words. ``turns`` are as published: they may end with a user's;
    ``system`` of a system turn is the first turn. ``unused``: characters of what the record held beside that,
    by key.
    """

    layout: str
    text: str | None = None
    turns: Turns = ()
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    department: str | None = None
    unused: Mapping[str, int] = field(default_factory=dict)

    @property
    def kind(self) -> Kind:
        """What the record looks like, whatever its source says."""
        if self.text is not None:
            return Kind.TEXT
        if self.answers:
            return Kind.RANKING
        answered = any(turn.role == "assistant" for turn in self.turns)
        return Kind.DIALOGUE if answered else Kind.PROMPTS


class RejectedError(Exception):
    """A record that cannot be used; the reason has none of its text."""

    def __init__(self, reason: str, code: Code = codes.UNUSABLE_RECORD) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


def unreadable(message: str, remedy: str) -> DataError:
    """An object that cannot be read as a whole."""
    return DataError(message, code=codes.UNREADABLE_SOURCE, remedy=remedy)


ALL_TIE = "all answers tie; there is nothing to compare"


@dataclass(frozen=True, slots=True)
class Rejected:
    """A record that was not read. ``text`` is its raw form, only where the source keeps text."""

    position: Position
    reason: str
    sha256: str  # of the raw record, UTF-8; of its texts, a line each, where it was read and then rejected
    text: str | None = None
    code: Code = codes.UNUSABLE_RECORD

    @property
    def is_tied(self) -> bool:
        """Whether it is a sound ranking that orders nothing: left out, and no fault of the source."""
        return self.reason == ALL_TIE

    def as_json(self) -> str:
        """One line of quarantine.jsonl, without a line break."""
        line: dict[str, object] = {
            "source": self.position.source,
            "uri": self.position.uri,
            "index": self.position.index,
            "line": self.position.line,
            "code": self.code.name,
            "reason": self.reason,
            "sha256": self.sha256,
        }
        if self.text is not None:
            line["text"] = self.text
        return json.dumps(line, ensure_ascii=True)

    @classmethod
    def from_json(cls, line: bytes) -> Rejected:
        """The record that a line of :meth:`as_json` names; a code of another release is UNUSABLE_RECORD."""
        told = json.loads(line)
        position = Position(told["source"], told["uri"], told["index"], told["line"])
        code = find(told.get("code", "")) or codes.UNUSABLE_RECORD
        return cls(position, told["reason"], told["sha256"], told.get("text"), code)


def record_texts(record: Record) -> Iterator[str]:
    """Every text of a record, in order."""
    if isinstance(record, TextRecord):
        yield record.text
        return
    turns = record.prompt if isinstance(record, Ranking) else record.turns
    yield from (turn.content for turn in turns)
    if isinstance(record, Ranking):
        yield from record.answers


def has_undecodable(text: str) -> bool:
    """Whether ``text`` has lone surrogates: bytes that did not decode, or a broken JSON escape."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
