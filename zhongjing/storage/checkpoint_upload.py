"""Uploads one checkpoint from the spool: the low-priority process beside the training.

Started by :class:`zhongjing.storage.checkpoints.CheckpointStore` as
``python -m zhongjing.storage.checkpoint_upload JOB``; credentials come through the environment. Files first,
the manifest last, then rotation. An error is left as ``error.json`` beside the job.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from zhongjing.codes import storage as codes
from zhongjing.errors import ConflictError, NotFoundError, StorageError, TransientError, ZhongjingError
from zhongjing.storage.checkpoints import MANIFEST, CheckpointManifest, UploadJob, list_steps
from zhongjing.storage.documents import parse_json, parse_record, record_bytes
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore, open_store

logger = logging.getLogger("zhongjing.checkpoint_upload")

NICENESS = 15


def main(arguments: list[str]) -> int:
    """Uploads what the job file describes. Returns 0, or the exit code of the error."""
    os.nice(NICENESS)  # before the client starts its threads, which inherit it
    # Ctrl-C reaches the whole process group; the training then wants its last checkpoint stored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return perform(Path(arguments[0]))


def perform(path: Path) -> int:
    """Uploads what a job file describes; its folder is removed when the checkpoint is complete.

    Returns:
        0, or the exit code of the error, which is left as ``error.json`` beside the job.
    """
    try:
        job = parse_record(parse_json(path.read_bytes(), str(path)), UploadJob, str(path))
        upload(open_store(job.storage), job)
    except ZhongjingError as error:
        (path.parent / "error.json").write_text(json.dumps(error.as_dict()))
        logger.error("%s", error)
        return error.exit_code
    shutil.rmtree(path.parent, ignore_errors=True)
    return 0


def upload(store: ObjectStore, job: UploadJob) -> None:
    """Uploads the files, then the manifest, then removes what need not be kept.

    Raises:
        ConflictError: a later attempt completed this step; this one is a straggler.
        StorageError: the files or the store cannot be used.
    """
    layout = StageLayout(job.root)
    uri = layout.checkpoint(job.step)
    _make_way(store, uri, job)
    files = store.upload_folder(Path(job.folder), uri)
    if not files:
        raise StorageError(
            f"the checkpoint of step {job.step} has no files", code=codes.UNUSABLE_FILE, where=job.folder
        )
    manifest = CheckpointManifest(
        step=job.step,
        attempt=job.attempt,
        best=job.best,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        files=files,
    )
    store.put_once(f"{uri}/{MANIFEST}", record_bytes(manifest))
    logger.info("step %d is complete: %d bytes", job.step, sum(file.size for file in files))
    rotate(store, layout, job.keep)


def rotate(store: ObjectStore, layout: StageLayout, keep: int) -> list[int]:
    """Removes all complete checkpoints but the last ``keep`` and the best; returns their steps."""
    steps = sorted(step for step, complete in list_steps(store, layout).items() if complete)
    kept = set(steps[-keep:])
    for step in reversed(steps):
        # The best is marked when it is saved, so the latest that bears the mark is the best.
        if _is_best(store, layout, step):
            kept.add(step)
            break
    removed = [step for step in steps if step not in kept]
    for step in removed:
        _remove(store, layout.checkpoint(step))
    return removed


def _is_best(store: ObjectStore, layout: StageLayout, step: int) -> bool:
    try:
        return store.get_record(f"{layout.checkpoint(step)}/{MANIFEST}", CheckpointManifest).best
    except TransientError:
        raise
    except StorageError as error:
        # Gone or damaged: no reason to fail the checkpoint that has just been completed.
        logger.warning("%s", error)
        return False


def _make_way(store: ObjectStore, uri: str, job: UploadJob) -> None:
    """Removes an earlier attempt's checkpoint of the same step: this attempt went back behind it."""
    try:
        standing = store.get_record(f"{uri}/{MANIFEST}", CheckpointManifest)
    except NotFoundError:
        return
    if standing.attempt > job.attempt:
        raise ConflictError(
            f"attempt {standing.attempt} stored step {job.step} while attempt {job.attempt} still ran",
            code=codes.SUPERSEDED,
            where=uri,
        )
    _remove(store, uri)


def _remove(store: ObjectStore, uri: str) -> None:
    # The manifest first: a checkpoint is never listed while it lacks files.
    store.delete(f"{uri}/{MANIFEST}")
    store.delete_folder(uri)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
