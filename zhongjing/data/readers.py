"""Sources read into records. What cannot be read is named and counted; nothing is dropped silently."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import parse_qs, urlsplit

from zhongjing.codes import Code
from zhongjing.codes import command as command_codes
from zhongjing.codes import data as data_codes
from zhongjing.config.sources import Columns, Kind, Source
from zhongjing.data.compression import decompressed
from zhongjing.data.fields import UnusedKeys
from zhongjing.data.formats import PRIVATE_USE, SNIFF_BYTES, Detected, sniff
from zhongjing.data.key_names import unknown_keys
from zhongjing.data.layouts import parse
from zhongjing.data.ranked_rows import RankedRows
from zhongjing.data.records import (
    ALL_TIE,
    BadRow,
    Dialogue,
    Parsed,
    Position,
    Prompt,
    Ranking,
    Record,
    Rejected,
    RejectedError,
    Row,
    TextRecord,
    Turn,
    Turns,
    record_texts,
    unreadable,
)
from zhongjing.data.rows import iter_rows, mapping_row, open_text
from zhongjing.data.sections import cut_sections
from zhongjing.data.streams import open_object
from zhongjing.errors import DataError, ZhongjingError

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_NO_ANSWER = "the dialogue has no answer"
_NO_RANKING = "the record has no ranked answers"
HF_SCHEME = "hf://datasets/"


@dataclass(slots=True)
class ReadStats:
    """What was seen while reading; filled in as records are taken."""

    detected: dict[str, Detected] = field(default_factory=dict)  # by URI
    layouts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[Kind] = field(default_factory=Counter)  # what the records look like, whatever is asked for
    unused: UnusedKeys = field(default_factory=UnusedKeys)
    ranked_rows: RankedRows = field(default_factory=RankedRows)
    private_use: int = 0  # records with characters of no meaning of their own: a sign of a wrong encoding
    truncated: int = 0  # dialogues that lost a last user turn without an answer
    stream: BinaryIO | None = None  # the object being read: its position tells how far reading has come


def read_object(
    uri: str,
    source: Source,
    store: ObjectStore | None = None,
    *,
    section_characters: int = 2000,
    forbidden: re.Pattern[str] | None = None,
    stats: ReadStats | None = None,
) -> Generator[Record | Rejected]:
    """Reads one object of a source.

    Args:
        uri: s3:// URI, local path, or hf://datasets/owner/name[@revision][?config=..&split=..].
        source: how its records are to be read.
        store: needed for s3://.
        section_characters: about how long sections of a book (kind text, format text) are.
        forbidden: records whose text matches are rejected (special tokens of a tokenizer).
        stats: is told what was seen.

    Yields:
        Records and rejections, in the object's order.

    Raises:
        DataError: the object as a whole cannot be read; ``where`` is its URI.
        MissingInputError: there is no such object.
    """
    stats = ReadStats() if stats is None else stats
    reading = _Reading(uri, source, forbidden, stats)
    if uri.startswith(HF_SCHEME):
        yield from reading.rows(_hub_rows(uri))
        return
    with open_object(uri, store) as stream:
        stats.stream = stream
        try:
            yield from reading.stream(stream, section_characters)
        except DataError as error:
            raise DataError(
                error.message, code=error.code, where=error.where or uri, remedy=error.remedy
            ) from None
        finally:
            stats.stream = None


def read_rows(
    uri: str, rows: Iterable[Row | BadRow], source: Source, stats: ReadStats | None = None
) -> Iterator[Record | Rejected]:
    """Reads raw records as those of the object ``uri``; else as :func:`read_object`."""
    return _Reading(uri, source, None, ReadStats() if stats is None else stats).rows(iter(rows))


@dataclass(slots=True)
class _Reading:
    """Raw records of one object, on their way to becoming records."""

    uri: str
    source: Source
    forbidden: re.Pattern[str] | None
    stats: ReadStats

    def stream(self, stored: BinaryIO, section_characters: int) -> Iterator[Record | Rejected]:
        stream = decompressed(stored)
        head = stream.read(SNIFF_BYTES)
        stream.seek(0)
        hints = {"format_hint": self.source.format, "encoding_hint": self.source.encoding}
        detected = sniff(head, complete=len(head) < SNIFF_BYTES, **hints)
        self.stats.detected[self.uri] = detected
        if detected.format == "parquet" and stream is not stored:
            raise unreadable(
                "the object is a compressed parquet file, which cannot be read from its end",
                "decompress it first; parquet compresses its own pages",
            )
        if detected.format != "text" or self.source.kind is not Kind.TEXT:
            yield from self.rows(iter_rows(stream, detected))
            return
        text = open_text(stream, detected)
        try:
            sections = enumerate(cut_sections(text, section_characters))
            rows = (Row.of_text(index, one.line, {"text": one.text}, one.text) for index, one in sections)
            yield from self.rows(rows, layout="sections")
        finally:
            text.detach()

    def rows(self, rows: Iterator[Row | BadRow], layout: str | None = None) -> Iterator[Record | Rejected]:
        columns = None if layout is not None or self.source.columns == Columns() else self.source.columns
        for row in rows:
            position = Position(self.source.name, self.uri, row.index, row.line)
            if isinstance(row, BadRow):
                yield self._rejected(position, row.reason, row.raw)
                continue
            try:
                parsed = parse(row.value, columns, self.source.kind, self.source.role_marks)
                self.stats.kinds[parsed.kind] += 1
                record = self._record(parsed, position)
                if self.forbidden is not None and any(
                    self.forbidden.search(text) for text in record_texts(record)
                ):
                    raise RejectedError("its text contains a special token of the tokenizer")
                if isinstance(record, Dialogue):
                    self.stats.ranked_rows.check(row.value, record, parsed.unused)
            except RejectedError as error:
                reason = error.reason
                if reason in (_NO_ANSWER, _NO_RANKING):
                    reason += unknown_keys(row.value, self.source.kind)
                yield self._rejected(position, reason, row.raw, error.code)
                continue
            self.stats.layouts[layout or parsed.layout] += 1
            self.stats.unused.add({**parsed.unused, **_without_place(parsed, self.source.kind)})
            self.stats.private_use += any(PRIVATE_USE.search(text) for text in record_texts(record))
            yield record

    def _rejected(
        self, position: Position, reason: str, raw: str, code: Code = data_codes.UNUSABLE_RECORD
    ) -> Rejected:
        # surrogateescape gives the object's own bytes back; surrogatepass is for broken JSON escapes.
        try:
            data = raw.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            data = raw.encode("utf-8", "surrogatepass")
        text = data.decode("utf-8", "replace") if self.source.keep_text else None
        return Rejected(position, reason, hashlib.sha256(data).hexdigest(), text, code)

    def _record(self, parsed: Parsed, position: Position) -> Record:
        kind = self.source.kind
        if kind is Kind.TEXT:
            return TextRecord(_as_text(parsed), position)
        if parsed.text is not None and kind is not Kind.PROMPTS:
            raise RejectedError(
                f"the record is plain text; the source is of kind {kind}", data_codes.UNKNOWN_LAYOUT
            )
        if kind is Kind.RANKING:
            return _as_ranking(parsed, position)
        if kind is Kind.PROMPTS:
            return _as_prompt(parsed, position)
        if parsed.answers:
            raise RejectedError(
                "the record ranks answers; the source is of kind dialogue", data_codes.UNKNOWN_LAYOUT
            )
        turns = check_turns(parsed.turns)
        if turns[-1].role == "user":
            turns = turns[:-1]
            if not any(turn.role == "assistant" for turn in turns):
                raise RejectedError(_NO_ANSWER)
            self.stats.truncated += 1
        if not any(turn.learn for turn in turns if turn.role == "assistant"):
            raise RejectedError("every answer is marked not to be trained on")
        return Dialogue(turns, position, parsed.department)


def check_turns(turns: Sequence[Turn]) -> Turns:
    """The turns, if they are a system turn (or none), then user and assistant by turns.

    Raises:
        RejectedError: they are not.
    """
    rest = turns[1:] if turns and turns[0].role == "system" else turns
    if not rest:
        raise RejectedError("the dialogue has no turns")
    for index, turn in enumerate(rest):
        if turn.role == "system":
            raise RejectedError("a system turn comes after the first turn")
        if turn.role != ("user", "assistant")[index % 2]:
            raise RejectedError("roles are out of order: user and assistant must alternate, user first")
    return tuple(turns)


def _without_place(parsed: Parsed, kind: Kind) -> dict[str, int]:
    """Characters of a record that was read which its source's kind has no place for."""
    if kind is Kind.TEXT and parsed.text is None:
        return _told("(answers but the best)", [each for each in parsed.answers if each != _best(parsed)])
    if kind is Kind.PROMPTS and parsed.text is None:
        last = [turn.content for turn in parsed.turns[-1:] if turn.role == "assistant"]
        return _told("(answers to the last question)", [*last, *parsed.answers])
    return {}


def _told(label: str, texts: Sequence[str]) -> dict[str, int]:
    return {label: sum(map(len, texts))} if texts else {}


def _as_text(parsed: Parsed) -> str:
    if parsed.text is not None:
        return parsed.text
    if not all(turn.learn for turn in parsed.turns):
        raise RejectedError("a turn is marked not to be trained on; as text every turn would be")
    best = _best(parsed)
    return "\n".join([*(turn.content for turn in parsed.turns), *([] if best is None else [best])])


def _best(parsed: Parsed) -> str | None:
    """The best of the ranked answers, the first of several; None where there are none."""
    return min(zip(parsed.ranks, parsed.answers, strict=True), key=lambda each: each[0], default=(0, None))[1]


def _as_ranking(parsed: Parsed, position: Position) -> Ranking:
    if not parsed.answers:
        raise RejectedError(_NO_RANKING, data_codes.UNKNOWN_LAYOUT)
    if len(parsed.answers) == 1:
        raise RejectedError("only one answer is ranked; a comparison needs two", data_codes.TOO_FEW_ANSWERS)
    if len(set(parsed.answers)) < len(parsed.answers):
        raise RejectedError("two of the answers are equal")
    if len(set(parsed.ranks)) == 1:
        raise RejectedError(ALL_TIE)
    prompt = check_turns(parsed.turns)
    if prompt[-1].role != "user":
        raise RejectedError("the prompt does not end with a user turn")
    return Ranking(prompt, parsed.answers, parsed.ranks, position)


def _as_prompt(parsed: Parsed, position: Position) -> Prompt:
    if parsed.text is not None:
        return Prompt((Turn("user", parsed.text),), position)
    turns = check_turns(parsed.turns)
    if turns[-1].role == "assistant":
        turns = turns[:-1]
    if not turns or turns[-1].role != "user":
        raise RejectedError("the record has no question")
    return Prompt(turns, position)


def _hub_rows(uri: str) -> Iterator[Row | BadRow]:
    """Rows of ``hf://datasets/owner/name[@revision][?config=..&split=..]``, streamed."""
    try:
        from datasets import load_dataset
    except ImportError:
        raise DataError(
            "reading hf:// needs the package datasets",
            code=command_codes.MISSING_PACKAGE,
            where=uri,
        ) from None
    parts = urlsplit(uri)
    name, _, revision = parts.path.lstrip("/").partition("@")
    query = {key: values[-1] for key, values in parse_qs(parts.query, keep_blank_values=True).items()}
    unknown = set(query) - {"config", "split"}
    if unknown or not name:
        raise DataError(
            "the URI is not hf://datasets/owner/name[@revision][?config=..&split=..]",
            code=data_codes.INVALID_URI,
            where=uri,
        )
    try:
        rows = load_dataset(
            name,
            query.get("config"),
            split=query.get("split", "train"),
            revision=revision or None,
            streaming=True,
        )
        for index, value in enumerate(rows):
            yield mapping_row(value, index)
    except ZhongjingError:
        raise
    except Exception as error:
        # datasets raises errors of a dozen packages; their text may quote records, so only the class is told,
        # and the error is kept out of the traceback.
        raise DataError(
            f"the data set could not be read ({type(error).__name__})",
            code=data_codes.UNREADABLE_SOURCE,
            where=uri,
            remedy="check its name, config and split, and that the hub can be reached from here",
        ) from None
