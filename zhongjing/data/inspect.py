"""What is in a source, before anything is trained on it: formats, counts, lengths, what would be quarantined.

Works on local files with no object store, and shows no record's text.
"""

from __future__ import annotations

import itertools
import os
import statistics
from collections import Counter, deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from zhongjing.codes import data as data_codes
from zhongjing.config.sources import Kind, Source
from zhongjing.data.readers import HF_SCHEME, ReadStats, read_object
from zhongjing.data.records import Dialogue, Ranking, Record, Rejected, TextRecord, record_texts
from zhongjing.data.scenarios import scenario_of
from zhongjing.data.split import content_of, unit_of
from zhongjing.errors import DataError, MissingInputError
from zhongjing.storage.listing import expand as expand_path
from zhongjing.storage.listing import left_out_text, local_listing, stored_listing
from zhongjing.storage.manifest import Record as Document
from zhongjing.storage.manifest import Unused

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_PROBED = 50  # records that decide the kind of a source given without one
_LOCATED = 20  # rejections told with their place
_LOCATED_OF_ONE = 3  # of one reason
_TOKENISED_TOGETHER = 256


class Lengths(Document):
    """Distribution of a length."""

    total: int = 0
    smallest: int = 0
    mean: float = 0.0
    median: int = 0
    p95: int = 0
    largest: int = 0


class Located(Document):
    """A record that would be quarantined: its place and the reason, never its text."""

    uri: str
    index: int
    line: int | None
    reason: str
    sha256: str


class ObjectReport(Document):
    """How one object is written."""

    uri: str
    format: str
    encoding: str | None = None
    reading: str = Field(default="", description="how it is read, in a line")
    size: int | None = Field(default=None, description="bytes")


class SourceReport(Document):
    """One source."""

    name: str
    uri: str
    kind: Kind
    objects: list[ObjectReport]
    left_out: list[str] = Field(description="names of files of the folder that are about the data")
    layouts: dict[str, int]
    read: int = 0
    kept: int = 0
    duplicates: int = Field(default=0, description="equal in every turn to an earlier record of the source")
    same_opening: int = Field(
        default=0, description="records that open like an earlier one: same split, same unit"
    )
    truncated: int = Field(description="dialogues whose last question has no answer; it is left out")
    unused: dict[str, Unused] = Field(description="by key: what went into no record")
    private_use: int = Field(description="records with private-use characters: is the encoding right?")
    rejected: int = 0
    reasons: dict[str, int]
    examples: list[Located]
    limit: float = Field(description="fraction of rejected records above which a stage stops")
    turns: dict[int, int] = Field(description="dialogues and prompts by number of user turns")
    with_system: int = 0
    answers: dict[int, int] = Field(description="rankings by number of answers")
    ties: int = Field(default=0, description="rankings with a tie, of those kept")
    tied: int = Field(default=0, description="rankings left out: all their answers tie")
    departments: dict[str, int]
    without_department: int = 0
    scenarios: dict[str, int] = Field(
        default_factory=dict,
        description="dialogues by what is asked for, by rules (zhongjing.data.scenarios)",
    )
    characters: Lengths = Field(description="of a record, over all its texts")
    tokens: Lengths | None = Field(
        default=None, description="of a record's texts, without a template's tokens"
    )
    error: str | None = Field(
        default=None,
        description="why there is no more to read: the object is damaged, or the source is empty",
    )

    @property
    def over_limit(self) -> bool:
        """Whether a stage would stop over this source."""
        bad = self.rejected / self.read if self.read else 0.0
        return bad > self.limit or 0 < self.read == self.rejected + self.tied


class InspectReport(Document):
    """All sources that were asked for."""

    sources: list[SourceReport]

    @property
    def usable(self) -> bool:
        """Whether a stage could be trained on every one of them."""
        return not any(source.over_limit or source.error for source in self.sources)


def inspect_sources(
    targets: Sequence[Source | str],
    *,
    store: ObjectStore | None = None,
    kind: Kind | None = None,
    encoding: str = "auto",
    tokenizer_folder: Path | None = None,
    max_records: int | None = None,
    section_characters: int = 2000,
) -> InspectReport:
    """Looks at sources.

    Args:
        targets: sources of a document, or bare URIs: local path or glob, s3:// URI or glob, hf://datasets/...
        store: needed for s3:// only.
        kind: what bare URIs are read as; None: told from their first records.
        encoding: of bare URIs, as a source has it.
        tokenizer_folder: if given, lengths are counted in tokens too.
        max_records: stop after so many records of a source.
        section_characters: about how long sections of a book are.

    Returns:
        What was found. An object that is damaged as a whole ends its source with ``error`` set.

    Raises:
        MissingInputError: a path or glob matches nothing.
        DataError: a tokenizer cannot be loaded.
    """
    count = _token_counter(tokenizer_folder)
    reports: list[SourceReport] = []
    for target in targets:
        uri = target if isinstance(target, str) else target.place
        objects, left_out = expand(uri, store)
        source = target if isinstance(target, Source) else _guessed(uri, objects[0], store, kind, encoding)
        reports.append(
            _inspect(
                source,
                objects,
                store,
                count,
                left_out=left_out,
                max_records=max_records,
                section_characters=section_characters,
            )
        )
    return InspectReport(sources=reports)


def expand(uri: str, store: ObjectStore | None = None) -> tuple[list[str], list[str]]:
    """The objects that a URI, folder or glob names, by name: those that submit takes.

    Returns:
        The objects, and the names of those that are left out of a folder for being about the data.

    Raises:
        MissingInputError: there is none.
    """
    if uri.startswith(HF_SCHEME):
        return [uri], []
    if uri.startswith("s3://"):
        if store is None:
            raise MissingInputError(
                "reading s3:// needs an object store", code=data_codes.INVALID_URI, where=uri
            )
        stored, left_out = stored_listing(store, uri)
        found = [info.uri for info in stored]
    elif "://" in uri and not uri.startswith("file://"):
        scheme = uri.split("://", 1)[0]
        raise MissingInputError(
            f"{scheme}:// is generated by submit and cannot be read here",
            code=data_codes.INVALID_URI,
            where=uri,
            remedy="give a path or s3://",
        )
    else:
        path = expand_path(uri)
        listing = local_listing(uri)
        left_out = listing.left_out
        found = [str(file) if Path(path).is_absolute() else os.path.relpath(file) for file in listing.files]
    if not found:
        raise MissingInputError(
            f"nothing is there but {left_out_text(left_out)}" if left_out else "nothing is there",
            code=data_codes.SOURCE_NOT_FOUND,
            where=uri,
            remedy="check the path; globs must match files",
        )
    return found, left_out


def _guessed(uri: str, first: str, store: ObjectStore | None, kind: Kind | None, encoding: str) -> Source:
    """A source for a bare URI; its kind is what most of its first records look like."""
    stem = Path(uri.split("?", 1)[0]).stem.lower()
    name = (
        "".join(c if c.isascii() and c.isalnum() else "-" for c in stem).strip("-")[:63].strip("-")
        or "source"
    )
    if kind is not None:
        return Source(name=name, uri=uri, kind=kind, encoding=encoding)
    kind = Kind.TEXT
    # Reading as text accepts every layout; only a ranking's own reader knows answers in numbered columns.
    for tried in (Kind.TEXT, Kind.RANKING):
        stats = ReadStats()
        probe = read_object(
            first, Source(name=name, uri=uri, kind=tried, encoding=encoding), store, stats=stats
        )
        try:
            deque(itertools.islice(probe, _PROBED), maxlen=0)
        except DataError:
            break  # the inspection itself will tell
        kind = stats.kinds.most_common(1)[0][0] if stats.kinds else kind
        if kind is not Kind.PROMPTS:
            break
    return Source(name=name, uri=uri, kind=kind, encoding=encoding)


TokenCounter = Callable[[Sequence[str]], list[int]]


def _inspect(
    source: Source,
    objects: Sequence[str],
    store: ObjectStore | None,
    count: TokenCounter | None,
    *,
    left_out: list[str],
    max_records: int | None,
    section_characters: int,
) -> SourceReport:
    stats = ReadStats()
    seen = _Seen(count)
    error: str | None = None
    records = itertools.chain.from_iterable(
        read_object(uri, source, store, section_characters=section_characters, stats=stats) for uri in objects
    )
    try:
        for record in itertools.islice(records, max_records):
            seen.add(record)
    except DataError as damage:
        error = str(damage)
    if error is None and not seen.tally["read"]:
        error = "the source is empty: it has no records"
    return SourceReport(
        name=source.name,
        uri=source.place,
        kind=source.kind,
        objects=[_object_report(uri, stats, store) for uri in objects],
        left_out=left_out,
        layouts=dict(stats.layouts.most_common()),
        truncated=stats.truncated,
        unused=stats.unused.report(),
        private_use=stats.private_use,
        limit=source.max_quarantine_fraction,
        error=error,
        **seen.report(),
    )


class _Seen:
    """What has been seen of one source, counted by the names of :class:`SourceReport`."""

    def __init__(self, count: TokenCounter | None) -> None:
        self.tally: Counter[str] = Counter()
        self._count = count
        self._reasons: Counter[str] = Counter()
        self._examples: list[Located] = []
        self._turns: Counter[int] = Counter()
        self._answers: Counter[int] = Counter()
        self._departments: Counter[str] = Counter()
        self._scenarios: Counter[str] = Counter()
        self._characters: list[int] = []
        self._tokens: list[int] = []
        self._pending: list[str] = []
        self._contents: set[bytes] = set()
        self._units: set[bytes] = set()

    def add(self, record: Record | Rejected) -> None:
        """Takes the next record."""
        self.tally["read"] += 1
        if isinstance(record, Rejected) and record.is_tied:
            self.tally["tied"] += 1
            return
        if isinstance(record, Rejected):
            self.tally["rejected"] += 1
            self._reasons[record.reason] += 1
            if len(self._examples) < _LOCATED and self._reasons[record.reason] <= _LOCATED_OF_ONE:
                at = record.position
                told = {"reason": record.reason, "sha256": record.sha256}
                self._examples.append(Located(uri=at.uri, index=at.index, line=at.line, **told))
            return
        content, unit = content_of(record), unit_of(record)
        if content in self._contents:
            self.tally["duplicates"] += 1
            return
        self.tally["kept"] += 1
        self.tally["same_opening"] += unit in self._units
        self._contents.add(content)
        self._units.add(unit)
        self._shape(record)
        texts = list(record_texts(record))
        self._characters.append(sum(map(len, texts)))
        if self._count is not None:
            self._pending.append("\n".join(texts))
            if len(self._pending) >= _TOKENISED_TOGETHER:
                self._count_tokens(self._count)

    def _count_tokens(self, count: TokenCounter) -> None:
        if self._pending:
            self._tokens += count(self._pending)
            self._pending = []

    def _shape(self, record: Record) -> None:
        if isinstance(record, TextRecord):
            return
        turns = record.prompt if isinstance(record, Ranking) else record.turns
        self.tally["with_system"] += turns[0].role == "system"
        self._turns[sum(turn.role == "user" for turn in turns)] += 1
        if isinstance(record, Ranking):
            self._answers[len(record.answers)] += 1
            self.tally["ties"] += len(set(record.ranks)) < len(record.ranks)
        if isinstance(record, Dialogue):
            self.tally["without_department"] += record.department is None
            self._scenarios[scenario_of(record.turns)] += 1
            self._departments.update([record.department] if record.department is not None else [])

    def report(self) -> dict[str, Any]:
        """The fields of a :class:`SourceReport` that tell of records."""
        if self._count is not None:
            self._count_tokens(self._count)
        return {
            **self.tally,
            "reasons": dict(self._reasons.most_common()),
            "examples": self._examples,
            "turns": dict(sorted(self._turns.items())),
            "answers": dict(sorted(self._answers.items())),
            "departments": dict(self._departments.most_common()),
            "scenarios": dict(self._scenarios.most_common()),
            "characters": lengths(self._characters),
            "tokens": None if self._count is None else lengths(self._tokens),
        }


def lengths(values: Sequence[int]) -> Lengths:
    """The distribution of some lengths."""
    if not values:
        return Lengths()
    ordered = sorted(values)
    return Lengths(
        total=sum(ordered),
        smallest=ordered[0],
        mean=round(statistics.fmean(ordered), 1),
        median=ordered[len(ordered) // 2],
        p95=ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))],
        largest=ordered[-1],
    )


def _object_report(uri: str, stats: ReadStats, store: ObjectStore | None) -> ObjectReport:
    detected = stats.detected.get(uri)
    size: int | None = None
    if uri.startswith("s3://") and store is not None:
        info = store.head(uri)
        size = None if info is None else info.size
    elif not uri.startswith(HF_SCHEME):
        size = Path(uri).stat().st_size
    if detected is None:
        return ObjectReport(uri=uri, format="dataset" if uri.startswith(HF_SCHEME) else "not read", size=size)
    return ObjectReport(
        uri=uri, format=detected.format, encoding=detected.encoding, reading=detected.reading, size=size
    )


def _token_counter(folder: Path | None) -> TokenCounter | None:
    if folder is None:
        return None
    # Imported here: without a tokenizer the inspection needs no torch and no transformers.
    from zhongjing.data.tokenizer_folder import load_tokenizer

    tokenizer = load_tokenizer(folder)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]

    return count
