"""Looks into the local sources of the stages that will run. The first good record of a source is enough."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from zhongjing.codes import data as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage
from zhongjing.data.readers import read_object
from zhongjing.data.records import Rejected
from zhongjing.data.rejections import Rejections
from zhongjing.errors import DataError, MissingInputError
from zhongjing.pipeline.freeze import unknown_scheme
from zhongjing.pipeline.graph import read_sources
from zhongjing.storage.listing import expand, is_local, left_out_text, local_listing

SECONDS = 0.5  # spent on reading one source whose records are all bad
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
        DataError: a source of the stages has no record or no good one, or a file cannot be read.
    """
    fresh = [source for source in document.spec.sources if source.name not in known]
    listings = {source.name: local_listing(source.place) for source in fresh if is_local(source.place)}
    files = {name: listing.files for name, listing in listings.items()}
    for source in fresh:
        if source.name not in files and not source.place.startswith(_ELSEWHERE):
            raise unknown_scheme(source)
        if source.wait:
            continue
        if source.name in files and not files[source.name]:
            raise MissingInputError(
                f"nothing is at {expand(source.place)}",
                code=codes.SOURCE_NOT_FOUND,
                where=f"spec.sources.{source.name}.{source.place_field}",
                remedy="correct the path, or say wait: true if it is still to be made",
            )
        if empty_store and source.place.startswith("s3://"):
            raise outside(source)
    used = {name for stage in stages for name in read_sources(document, stage)}
    notes = [
        f"source {name}: left out {left_out_text(listing.left_out)}"
        for name, listing in listings.items()
        if listing.left_out and name in used
    ]
    for source in fresh:
        if source.name in used and files.get(source.name):
            notes += _judge(source, _look(source, files[source.name]))
    return notes


def outside(source: Source) -> MissingInputError:
    """The error for an s3:// source that the store of a local run does not have."""
    return MissingInputError(
        f"nothing is at {source.place}: a local run reads s3:// from the store of its own workdir",
        code=codes.SOURCE_NOT_FOUND,
        where=f"spec.sources.{source.name}.{source.place_field}",
        remedy="fetch the files from the other store and name their path, or use hf://datasets/owner/name",
    )


@dataclass(slots=True)
class _Look:
    """What was seen of a source until its first good record, its end, or the end of the time."""

    good: bool = False
    ended: bool = False  # all of it was read
    read: int = 0
    rejections: Rejections = field(default_factory=Rejections)


def _look(source: Source, files: Sequence[Path]) -> _Look:
    look = _Look()
    deadline = time.monotonic() + SECONDS
    for path in files:
        try:
            for record in read_object(str(path), source):
                look.read += 1
                if not isinstance(record, Rejected):
                    look.good = True
                    return look
                look.rejections.add(record)
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


def _judge(source: Source, look: _Look) -> list[str]:
    """Raises what a job would raise when it had read the source; returns what there is to note."""
    if look.good:
        return []
    if not look.ended:
        return [f"the first {look.read} records of source {source.name} cannot be used: {look.rejections}"]
    where = f"spec.sources.{source.name}"
    inspect = f"`{shlex.join(['zhongjing', 'data', 'inspect', source.place, '--kind', source.kind])}`"
    if not look.read:
        raise DataError(
            f"source {source.name} has no records: {source.place} is empty",
            code=codes.EMPTY_SOURCE,
            where=f"{where}.{source.place_field}",
            remedy=f"check what the uri names: {inspect}",
        )
    code = look.rejections.code
    raise DataError(
        f"none of the {look.read} records of source {source.name} (kind {source.kind}) can be used: "
        f"{look.rejections}",
        code=code,
        where=where,
        remedy=code.remedy if code is codes.TOO_FEW_ANSWERS else f"{code.remedy}; look with: {inspect}",
    )
