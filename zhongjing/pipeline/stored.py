"""Reading and writing a pipeline's documents, with If-Match: nobody overwrites what they did not read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from zhongjing.config.stages import Stage
from zhongjing.errors import NotFoundError
from zhongjing.pipeline.state import DesiredState, PipelineStatus
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import Record, StageManifest
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Progress

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Versioned(Generic[R]):
    """A document with the ETag that a later write must name."""

    value: R
    etag: str


def read(store: ObjectStore, uri: str, kind: type[R]) -> Versioned[R] | None:
    """A document, or None if there is none.

    The ETag is asked for first: should the object change in between, a write with it is refused.
    """
    info = store.head(uri)
    if info is None:
        return None
    try:
        return Versioned(store.get_record(uri, kind), info.etag)
    except NotFoundError:
        return None


def write(store: ObjectStore, uri: str, value: R, etag: str | None) -> Versioned[R]:
    """Writes a document over the version ``etag``, or as the first (None).

    Raises:
        ConflictError: somebody else wrote in between.
    """
    if etag is None:
        return Versioned(value, store.put_record(uri, value, if_none_match=True))
    return Versioned(value, store.put_record(uri, value, if_match=etag))


def read_desired(store: ObjectStore, layout: Layout) -> Versioned[DesiredState] | None:
    """What is wanted of a pipeline."""
    return read(store, layout.desired, DesiredState)


def read_status(store: ObjectStore, layout: Layout) -> Versioned[PipelineStatus] | None:
    """What is so of a pipeline."""
    return read(store, layout.status, PipelineStatus)


def find_record(store: ObjectStore, uri: str, kind: type[R]) -> R | None:
    """A record, or None if there is none."""
    try:
        return store.get_record(uri, kind)
    except NotFoundError:
        return None


def read_progress(store: ObjectStore, layout: Layout, stage: Stage, key: str) -> Progress | None:
    """Live progress of a run of a stage, of whichever attempt wrote last."""
    return find_record(store, layout.stage(stage, key).progress, Progress)


def read_manifest(store: ObjectStore, layout: Layout, stage: Stage, key: str) -> StageManifest | None:
    """The manifest of a run of a stage: None means that it is not done."""
    return find_record(store, layout.stage(stage, key).manifest, StageManifest)


def manifest_in_use(store: ObjectStore, layout: Layout, stage: Stage) -> StageManifest | None:
    """The manifest of the result of a stage that ``current.json`` names, or None if there is none."""
    try:
        current = store.get_json(layout.current(stage))
    except NotFoundError:
        return None
    return read_manifest(store, layout, stage, str(current["key"]))


def done_stages(store: ObjectStore, layout: Layout, keys: dict[Stage, str | None]) -> dict[Stage, bool]:
    """Whether the result of each key exists.

    Raises:
        StorageError: a manifest is damaged, or of a newer release: no job is needed to find that out.
    """
    return {
        stage: key is not None and read_manifest(store, layout, stage, key) is not None
        for stage, key in keys.items()
    }
