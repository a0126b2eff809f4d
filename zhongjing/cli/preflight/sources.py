"""Looks into the local sources of the stages that will run. The first good record of a source is enough."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zhongjing.codes import Code
from zhongjing.codes import data as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage
from zhongjing.data.readers import Rejected, read_object
from zhongjing.errors import DataError, MissingInputError
from zhongjing.pipeline.freeze import expand, local_files, unknown_scheme

SECONDS = 0.5  # spent on reading one source whose records are all bad
_REASONS = 3  # shown of a bad source
_ELSEWHERE = ("s3://", "hf://", "example://")


def check_sources(
    document: TrainingPipeline,
    stages: Iterable[Stage],
    *,
    known: Collection[str] = (),
    empty_store: bool = False,
) -> list[str]:
    """Checks the sources that can be looked at without a service.

    Args:
        document: resolved.
        stages: those that will run.
        known: names of sources that were frozen before: the run has its own copy of them.
        empty_store: nothing was ever stored where the run will look for s3:// sources.

    Returns:
        Notes on sources that look bad but are too large to be read here to the end.

    Raises:
        ConfigError: nothing can read a source of this scheme.
        MissingInputError: a source is not there, and is not waited for. All sources of the document count.
        DataError: a stage would find nothing to train on, or a file cannot be read.
    """
    fresh = [source for source in document.spec.sources if source.name not in known]
    files = {source.name: local_files(source.uri) for source in fresh if _is_local(source)}
    for source in fresh:
        if source.name not in files and not source.uri.startswith(_ELSEWHERE):
            raise unknown_scheme(source)
        if source.wait:
            continue
        if source.name in files and not files[source.name]:
            raise MissingInputError(
                f"nothing is at {expand(source.uri)}",
                code=codes.SOURCE_NOT_FOUND,
                where=f"spec.sources.{source.name}.uri",
                remedy="correct the path, or say wait: true if it is still to be made",
            )
        if empty_store and source.uri.startswith("s3://"):
            raise outside(source)
    looks: dict[str, _Look] = {}
    notes: list[str] = []
    for stage in stages:
        settings = document.spec.stages.get(stage)
        assert settings is not None, "the stages have been checked against the document"
        sources = [document.spec.source(name) for name in dict.fromkeys(ref.source for ref in settings.data)]
        for source in sources:
            if source.name not in looks:
                looks[source.name] = look = _look(source, files.get(source.name) or ())
                notes += _notes(source, look)
        _judge(stage, [(source, looks[source.name]) for source in sources])
    return notes


def outside(source: Source) -> MissingInputError:
    """The error for an s3:// source that the store of a local run does not have."""
    return MissingInputError(
        f"nothing is at {source.uri}: a local run reads s3:// from the store of its own workdir",
        code=codes.SOURCE_NOT_FOUND,
        where=f"spec.sources.{source.name}.uri",
        remedy="fetch the files from the other store and name their path, or use hf://datasets/owner/name",
    )


@dataclass(slots=True)
class _Look:
    """What was seen of a source until its first good record, its end, or the end of the time."""

    good: bool = False
    ended: bool = False  # all of it was read
    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)  # by reason: where it came first

    @property
    def all_bad(self) -> bool:
        """Whether it has records, and none can be used, for sure."""
        return self.ended and not self.good and self.read > 0

    @property
    def empty(self) -> bool:
        """Whether it has no record, for sure."""
        return self.ended and self.read == 0

    def add(self, path: Path, record: Rejected) -> None:
        """Counts a bad record."""
        at = record.position
        place = f"line {at.line}" if at.line is not None else f"record {at.index}"
        self.reasons[record.reason] += 1
        self.first.setdefault(record.reason, f"{path.name}, {place}")

    def told(self) -> str:
        """The commonest reasons, each with how often and where first. No text of a record is in them."""
        common = self.reasons.most_common(_REASONS)
        return "; ".join(f"{reason} ({number}, first: {self.first[reason]})" for reason, number in common)

    def code(self) -> Code:
        """What the commonest reason stands for."""
        [(reason, _)] = self.reasons.most_common(1)
        if reason.startswith("only one answer"):
            return codes.TOO_FEW_ANSWERS
        if reason.startswith("no known layout"):
            return codes.UNKNOWN_LAYOUT
        return codes.NO_GOOD_RECORD


def _is_local(source: Source) -> bool:
    return "://" not in source.uri.removeprefix("file://")


def _look(source: Source, files: Sequence[Path]) -> _Look:
    look = _Look()
    if not files:
        return look  # of another place, known, or still to come
    deadline = time.monotonic() + SECONDS
    for path in files:
        try:
            for record in read_object(str(path), source):
                look.read += 1
                if not isinstance(record, Rejected):
                    look.good = True
                    return look
                look.add(path, record)
                if time.monotonic() > deadline:
                    return look
        except OSError as error:
            raise DataError(
                f"the file cannot be read: {error.strerror or error}",
                code=codes.UNREADABLE_SOURCE,
                where=str(path),
            ) from error
    look.ended = True
    return look


def _notes(source: Source, look: _Look) -> list[str]:
    if look.good or look.ended or not look.read:
        return []
    return [f"the first {look.read} records of source {source.name} cannot be used: {look.told()}"]


def _judge(stage: Stage, looks: Sequence[tuple[Source, _Look]]) -> None:
    """Raises what the job of a stage would find when it had read its sources."""
    for source, look in looks:
        # More bad records than the source allows end the job, whatever its other sources hold.
        if look.all_bad and source.max_quarantine_fraction < 1:
            raise _unusable(source, look)
    if not all(look.all_bad or look.empty for _, look in looks):
        return
    for source, look in looks:
        if look.all_bad:
            raise _unusable(source, look)
    source = looks[0][0]
    one = len(looks) == 1
    raise DataError(
        f"{' and '.join(source.uri for source, _ in looks)} {'has' if one else 'have'} no records: "
        f"there is nothing to train {stage} on",
        code=codes.EMPTY_SOURCE,
        where=f"spec.sources.{source.name}.uri" if one else f"spec.stages.{stage}.data",
        remedy=f"check what the uri names: {_inspect(source)}",
    )


def _unusable(source: Source, look: _Look) -> DataError:
    code = look.code()
    if code is codes.UNKNOWN_LAYOUT:
        remedy = f"name the keys under the source's `columns`, or correct its kind; see {_inspect(source)}"
    elif code is codes.TOO_FEW_ANSWERS:
        remedy = code.remedy
    else:
        remedy = f"correct the source's kind, its columns or the data; see {_inspect(source)}"
    return DataError(
        f"none of the {look.read} records of {source.uri} can be used as {source.kind}: {look.told()}",
        code=code,
        where=f"spec.sources.{source.name}",
        remedy=remedy,
    )


def _inspect(source: Source) -> str:
    return f"zhongjing data inspect {source.uri} --kind {source.kind}"
