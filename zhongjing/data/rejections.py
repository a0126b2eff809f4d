"""When a source has too many records that cannot be used, and why: reasons with a place each, never text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from zhongjing.codes import Code
from zhongjing.codes import data as codes
from zhongjing.config.sources import Source
from zhongjing.data.records import Position, Record, Rejected
from zhongjing.errors import DataError
from zhongjing.storage.manifest import SourceCounts

if TYPE_CHECKING:
    from zhongjing.data.encoding import RecordEncoder

_SHOWN = 3  # reasons in a message; quarantine.jsonl has them all
# If every record of a source was rejected for one of these, it says more than NoGoodRecord.
_TELLING = (codes.UNKNOWN_LAYOUT, codes.AMBIGUOUS_RECORD, codes.TOO_FEW_ANSWERS, codes.REWRITTEN_ANSWERS)


class Rejections:
    """Rejected records of one source, counted by reason."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()
        self._first: dict[str, Position] = {}
        self._codes: set[Code] = set()

    def add(self, rejected: Rejected) -> None:
        """Counts a record."""
        self._codes.add(rejected.code)
        self._reasons[rejected.reason] += 1
        self._first.setdefault(rejected.reason, rejected.position)

    @property
    def code(self) -> Code:
        """What they have in common, if that says more than that none is good."""
        only = next(iter(self._codes)) if len(self._codes) == 1 else None
        return only if only in _TELLING and only is not None else codes.NO_GOOD_RECORD

    def __str__(self) -> str:
        """The commonest reasons, each with its number and its first place."""
        most = self._reasons.most_common(_SHOWN)
        text = "; ".join(f"{name} ({count}, first: {place(self._first[name])})" for name, count in most)
        more = len(self._reasons) - len(most)
        return text + (f"; and {more} other reasons" if more else "")


def place(position: Position) -> str:
    """Where a record stands, as people look it up: file and line, else the record's number from 1."""
    if position.line is not None:
        return f"{position.uri} line {position.line}"
    return f"{position.uri} record {position.index + 1}"


def check_source(source: Source, counts: SourceCounts, rejections: Rejections, quarantine_uri: str) -> None:
    """Ends the preparation of a stage where a source is not what it should be.

    ``rejections`` says why records were not read.

    Raises:
        DataError: it has no record, no good record, or more bad ones than it may have.
    """
    if not counts.read:
        raise DataError(f"source {source.name} has no records", code=codes.EMPTY_SOURCE, where=source.place)
    why = f": {rejections}" if str(rejections) else ""
    if counts.quarantined + counts.tied == counts.read:
        tied = f"; the answers of {counts.tied} all tie" if counts.tied else ""
        code = rejections.code
        raise DataError(
            f"none of the {counts.read} records of source {source.name} (kind {source.kind}) can be used"
            f"{why}{tied}",
            code=code,
            where=source.place,
            remedy=f"{code.remedy}; all are listed by `zhongjing data quarantine {quarantine_uri}`",
        )
    fraction = counts.quarantined / counts.read
    if fraction > source.max_quarantine_fraction:
        raise DataError(
            f"{counts.quarantined} of {counts.read} records ({fraction:.1%}) of source {source.name} "
            f"cannot be used, {source.max_quarantine_fraction:.1%} are allowed{why}",
            code=codes.TOO_MANY_BAD_RECORDS,
            where=source.place,
            remedy=f"see `zhongjing data quarantine {quarantine_uri}`; correct the source, then submit with "
            "--refresh-data; or name its keys under `columns`, or raise maxQuarantineFraction",
        )


def check_answers(source: Source, records: Iterable[Record | Rejected], encoder: RecordEncoder) -> None:
    """Checks a source against a template that cuts thoughts, as DeepSeek-R1's and its distillates' do.

    Their template writes of an answer only what stands behind ``</think>``, also where it is the one to be
    learned. Other templates cost nothing here; what else they rewrite is counted when it is tokenised.

    Raises:
        DataError: more records lose part of an answer than the source's maxQuarantineFraction allows.
    """
    if not encoder.cuts_thoughts:
        return
    read = rewritten = 0
    first: Position | None = None
    for record in records:
        read += 1
        if not isinstance(record, Rejected) and encoder.rewrites(record):
            rewritten += 1
            first = first or record.position
    if first is not None and rewritten / read > source.max_quarantine_fraction:
        raise DataError(
            f"the chat template cuts answers in {rewritten} of {read} records ({rewritten / read:.1%}) of "
            f"source {source.name}, {source.max_quarantine_fraction:.1%} are allowed (first: {place(first)})",
            code=codes.REWRITTEN_ANSWERS,
            where=source.place,
        )
