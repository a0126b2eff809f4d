"""A step of data construction: what one record becomes.

A step sees one record at a time and nothing else, so records may be handled in any order and by any process,
and an interrupted run goes on where it was. Name, version and parameters go into the key of the output
(:func:`zhongjing.construct.manifest.key_of`): who changes what a step makes of a record raises its version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from zhongjing.codes import Code
from zhongjing.codes import data as codes
from zhongjing.data.records import Record, Rejected, record_texts


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step made of a record.

    Attributes:
        records: what goes on to the next step; none: the record is left out.
        counts: what was done, by a label of the step's own, e.g. ``{"phone": 2}``. They are summed up over
            all records and stand in the manifest: a label never holds text of a record.
        quarantined: why the record, or a part of it, is left out because it cannot be used. A record that is
            left out by design has a count instead.
    """

    records: tuple[Record, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    quarantined: Rejected | None = None


class Step(Protocol):
    """One step. Pure: the same record and parameters give the same outcome, in every process.

    It is pickled into other processes. What is large or cannot be pickled is made there, at the first use.
    """

    @property
    def name(self) -> str:
        """A word: ``deidentify``."""
        ...

    @property
    def version(self) -> int:
        """Raised with every change of what the step makes of a record."""
        ...

    def parameters(self) -> dict[str, object]:
        """All else that decides the outcome, as JSON; of a large file its digest. No secrets: it is kept."""
        ...

    def apply(self, record: Record) -> Outcome:
        """What becomes of a record. Records that it returns keep the position of the one that they come from.

        Raises:
            ZhongjingError: the step cannot work at all; the run ends. A record that cannot be used is
                ``quarantined`` instead.
        """
        ...


@runtime_checkable
class BatchStep(Step, Protocol):
    """A step that waits for others, so that it handles many records at a time. As pure as any."""

    def apply_all(self, records: Iterable[Record]) -> Iterator[Outcome]:
        """What becomes of each record, in their order. Raises as :meth:`Step.apply` does."""
        ...


@runtime_checkable
class GuardedStep(Step, Protocol):
    """A step that not every record may go through."""

    def admit(self, passed: Callable[[str], bool], source: str) -> None:
        """Called before anything is read.

        Args:
            passed: whether all records went through a step of that name before they come to this one: in the
                lineage of the source, or in this construction.
            source: its URI, for messages.

        Raises:
            ZhongjingError: they may not.
        """
        ...


@runtime_checkable
class FinishingStep(Step, Protocol):
    """A step that has something to tell, or to object to, once all records went through."""

    def finish(self, counts: Mapping[str, int], quarantined: Mapping[str, int]) -> dict[str, object]:
        """Notes for the manifest, which decide nothing. Called once, by the process that runs the whole.

        Args:
            counts: what the step did over all records, by label.
            quarantined: its records by reason.

        Returns:
            JSON without any record's text and without secrets.

        Raises:
            ZhongjingError: the source is not to be used: it gets no manifest. Its parts stay.
        """
        ...


def rejected(record: Record, reason: str, code: Code = codes.UNUSABLE_RECORD) -> Rejected:
    """The quarantine entry of a record that was read; it holds the texts, which the runner stores on request.

    Args:
        record: as the step was given it.
        reason: in a few words, without any of the record's text.
        code: from the catalogue.
    """
    text = "\n".join(record_texts(record))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Rejected(record.position, reason, digest, text, code)


def admit(steps: Sequence[Step], passed: Callable[[str], bool], source: str) -> None:
    """Asks each step whether the records may go through it.

    Args:
        steps: in their order.
        passed: whether all records of the source went through a step of that name.
        source: its URI, for messages.

    Raises:
        ZhongjingError: of the first step that lets them not.
    """
    for place, step in enumerate(steps):
        if isinstance(step, GuardedStep):
            before = {each.name for each in steps[:place]}
            step.admit(lambda name, before=before: name in before or passed(name), source)  # type: ignore[misc]
