"""Whether a chat template keeps the answers of a source as they stand, told before any is tokenised."""

from __future__ import annotations

from collections.abc import Iterable

from zhongjing.codes import data as codes
from zhongjing.config.sources import Source
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.records import Position, Record, Rejected
from zhongjing.data.rejections import place
from zhongjing.errors import DataError


def check_answers(source: Source, records: Iterable[Record | Rejected], encoder: RecordEncoder) -> None:
    """Checks a source against a template that cuts thoughts, as DeepSeek-R1's and its distillates' do.

    Their template writes of an answer only what stands behind ``</think>``, also where it is the one to be
    learned. Other templates cost nothing here; what else they rewrite is counted when it is tokenised.

    Args:
        source: the source.
        records: all its records.
        encoder: configured for the stage.

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
            where=source.uri,
        )
