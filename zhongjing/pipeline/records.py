"""Where a reconciler finds what is wanted of a pipeline and keeps what is so.

On one machine both are objects of the store; on Kubernetes a TrainingPipeline is the first, and its status
the second. Nothing else differs.
"""

from __future__ import annotations

from typing import Protocol

from zhongjing.pipeline.state import DesiredState, PipelineStatus
from zhongjing.pipeline.stored import Versioned, read_desired, read_status, write
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore


class Records(Protocol):
    """The two documents of one pipeline. Methods raise TransientError when their place does not answer."""

    def desired(self) -> DesiredState | None:
        """What is wanted, or None if the pipeline is gone."""
        ...

    def status(self) -> Versioned[PipelineStatus] | None:
        """What is so, with its version; None if nobody has looked at the pipeline yet."""
        ...

    def write_status(self, status: PipelineStatus, version: str | None) -> str:
        """Writes what is so over ``version`` (None: the first) and returns the new version.

        Raises:
            ConflictError: somebody else wrote in between; nothing was written.
        """
        ...


class StoredRecords:
    """Both documents in the object store, fenced by If-Match.

    Args:
        store: where they are.
        layout: the pipeline.
    """

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

    def write_status(self, status: PipelineStatus, version: str | None) -> str:
        """Writes ``status.json``. Raises ConflictError."""
        return write(self._store, self._layout.status, status, version).etag
