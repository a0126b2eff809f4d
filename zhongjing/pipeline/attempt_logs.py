"""What the store keeps of an attempt that ends: the driver's log, and where it hung.

Both are read between passes, in the one thread that serves all pipelines, so both are bounded in time.
"""

from __future__ import annotations

import logging
import time
from collections import deque

from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, StorageError
from zhongjing.pipeline.actions import RequestStop
from zhongjing.pipeline.backend import Backend
from zhongjing.pipeline.state import PipelineStatus, StopReason
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

LOG_BYTES = 8 * 2**20  # of a driver's log that is kept: its end, which has the reason
LOG_SECONDS = 20.0  # for the logs of a pass


def driver_log(layout: Layout, stage: Stage, key: str, attempt: int) -> str:
    """Where the driver's log of an attempt is kept after its end."""
    return f"{layout.stage(stage, key).logs}/driver-a{attempt}.log"


def keep_logs(
    store: ObjectStore, layout: Layout, backend: Backend, before: PipelineStatus, after: PipelineStatus
) -> None:
    """Copies the driver's log of each attempt that just ended: a backend forgets, the store does not.

    A job stores its log itself when it ends in order; one that was killed does not. A log that takes longer
    than LOG_SECONDS is kept as far as it was read.
    """
    deadline = time.monotonic() + LOG_SECONDS
    for stage, entry in before.stages.items():
        ended = entry.state.is_active and not after.stage(stage).state.is_active
        if not ended or entry.submission_id is None or entry.key is None:
            continue
        try:
            if backend.describe(entry.submission_id).state.is_terminal:
                uri = driver_log(layout, stage, entry.key, entry.attempt)
                store.put(uri, _tail(backend, entry.submission_id, deadline))
        except (BackendError, StorageError) as error:
            logger.warning("the log of %s could not be kept: %s", entry.submission_id, error)


def keep_stacks(
    store: ObjectStore, layout: Layout, backend: Backend, status: PipelineStatus, action: RequestStop
) -> None:
    """Stores where an attempt hangs, before it is ended: afterwards nothing could tell."""
    job = status.stage(action.stage).submission_id
    if action.reason is not StopReason.HUNG or job is None:
        return
    uri = f"{layout.stage(action.stage, action.key).logs}/stacks-a{action.attempt}.txt"
    try:
        store.put(uri, backend.stacks(job).encode())
    except StorageError as error:
        logger.warning("the stacks of %s could not be kept: %s", job, error)


def _tail(backend: Backend, submission_id: str, deadline: float) -> bytes:
    lines: deque[bytes] = deque()
    size = 0
    for line in backend.tail_logs(submission_id):
        lines.append(line.encode(errors="replace") + b"\n")
        size += len(lines[-1])
        while size > LOG_BYTES and len(lines) > 1:
            size -= len(lines.popleft())
        if time.monotonic() > deadline:
            lines.append(b"[cut here: reading the rest took too long]\n")
            break
    return b"".join(lines)[-LOG_BYTES:]
