"""The two documents of a pipeline, desired state and status, and the records of its stages in the store.

On one machine both documents are objects of the store; on Kubernetes a TrainingPipeline is the first, and its
status the second. A write names the version that was read (If-Match), so no writer overwrites another's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

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
    value = store.find_record(uri, kind) if info is not None else None
    return Versioned(value, info.etag) if info is not None and value is not None else None


def write(store: ObjectStore, uri: str, value: R, etag: str | None) -> Versioned[R]:
    """Writes a document over the version ``etag``, or as the first (None).

    Raises:
        ConflictError: another writer was first.
    """
    return Versioned(value, store.put_record(uri, value, if_none_match=etag is None, if_match=etag))


def read_desired(store: ObjectStore, layout: Layout) -> Versioned[DesiredState] | None:
    """The desired state of a pipeline (``pipeline.json``)."""
    return read(store, layout.desired, DesiredState)


def read_status(store: ObjectStore, layout: Layout) -> Versioned[PipelineStatus] | None:
    """The status of a pipeline (``status.json``)."""
    return read(store, layout.status, PipelineStatus)


class Records(Protocol):
    """The two documents of one pipeline. Methods raise TransientError when their place does not answer."""

    def desired(self) -> DesiredState | None:
        """The desired state; None if the pipeline is gone."""

    def status(self) -> Versioned[PipelineStatus] | None:
        """The status and its version; None before the first pass."""

    def see(self, stage: Stage, progress: Progress) -> None:
        """Takes note of the live progress of an active attempt, once a pass."""

    def write_status(self, status: PipelineStatus, version: str | None) -> str:
        """Writes the status over ``version`` (None: the first) and returns the new version.

        Raises:
            ConflictError: another writer was first; nothing was written.
        """


class StoredRecords:
    """Both documents in the object store, fenced by If-Match."""

    def __init__(self, store: ObjectStore, layout: Layout) -> None:
        self._store = store
        self._layout = layout

    def desired(self) -> DesiredState | None:
        """``pipeline.json``."""
        found = read_desired(self._store, self._layout)
        return found.value if found is not None else None

    def status(self) -> Versioned[PipelineStatus] | None:
        """``status.json``; its version is the ETag."""
        return read_status(self._store, self._layout)

    def see(self, stage: Stage, progress: Progress) -> None:
        """Nothing to note: clients read progress from the store."""

    def write_status(self, status: PipelineStatus, version: str | None) -> str:
        """Writes ``status.json``. Raises ConflictError."""
        return write(self._store, self._layout.status, status, version).etag


def manifest_in_use(store: ObjectStore, layout: Layout, stage: Stage) -> StageManifest | None:
    """The manifest of the result of a stage that ``current.json`` names, or None if there is none."""
    try:
        current = store.get_json(layout.current(stage))
    except NotFoundError:
        return None
    return store.find_record(layout.stage(stage, str(current["key"])).manifest, StageManifest)


def done_stages(store: ObjectStore, layout: Layout, keys: dict[Stage, str | None]) -> dict[Stage, bool]:
    """Whether the result of each key exists.

    Raises:
        StorageError: a manifest is damaged, or of a newer release: no job is needed to find that out.
    """
    return {
        stage: key is not None
        and store.find_record(layout.stage(stage, key).manifest, StageManifest) is not None
        for stage, key in keys.items()
    }
