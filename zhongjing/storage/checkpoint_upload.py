"""Uploads one checkpoint from the spool: the low-priority process beside the training.

Started by :class:`zhongjing.storage.uploader.Upload`, one a rank, as
``python -m zhongjing.storage.checkpoint_upload JOB``; credentials come through the environment.
Files first, then word that this rank's part is there; rank 0's waits for the others' word, writes the
manifest, and rotates. An error is left as ``error.json`` beside the job.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from zhongjing.codes import storage as codes
from zhongjing.errors import ConflictError, NotFoundError, StorageError, TransientError, ZhongjingError
from zhongjing.storage.checkpoint_records import (
    BLOCK_BYTES,
    MANIFEST,
    MOMENTS_SUFFIX,
    CheckpointFile,
    CheckpointManifest,
    CheckpointPart,
    is_ranged,
    list_steps,
    remove_checkpoint,
)
from zhongjing.storage.documents import parse_json, parse_record, record_bytes
from zhongjing.storage.files import block_digests
from zhongjing.storage.heartbeat import HEARTBEAT
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.uploader import BEATS, CANCELLED, ERROR, ORPHAN_SECONDS, UploaderKilledError, UploadJob

logger = logging.getLogger("zhongjing.checkpoint_upload")

NICENESS = 15
BEAT_SECONDS = 1.0


def main(arguments: list[str]) -> int:
    """Uploads what the job file describes. Returns 0, or the exit code of the error."""
    os.nice(NICENESS)  # before the client starts its threads, which inherit it
    # Ctrl-C reaches the whole process group; the training then wants its last checkpoint stored.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    path = Path(arguments[0])
    threading.Thread(target=_tell_beats, args=(path.with_name(BEATS),), daemon=True).start()
    return perform(path)


def _tell_beats(path: Path) -> None:
    """Tells the training what this process has done: it may have to wait, and is watched."""
    told = 0
    while True:
        time.sleep(BEAT_SECONDS)
        if HEARTBEAT.count != told:
            told = HEARTBEAT.count
            with suppress(OSError):  # gone with the upload
                path.write_text(str(told))


def perform(path: Path) -> int:
    """Uploads what a job file describes; its folder is removed when the checkpoint is complete.

    Returns:
        0, or the exit code of the error, which is left as ``error.json`` beside the job.
    """
    try:
        job = parse_record(parse_json(path.read_bytes(), str(path)), UploadJob, str(path))
        upload(open_store(job.storage), job, path.with_name(CANCELLED))
    except ZhongjingError as error:
        path.with_name(ERROR).write_text(json.dumps(error.as_dict()))
        logger.error("%s", error)
        return error.exit_code
    shutil.rmtree(path.parent, ignore_errors=True)
    return 0


def upload(store: ObjectStore, job: UploadJob, cancelled: Path) -> None:
    """Uploads a rank's files; rank 0's then completes the checkpoint and removes what need not be kept.

    Raises:
        ConflictError: a later attempt completed this step; this one is a straggler.
        StorageError: the files or the store cannot be used, or another rank's part did not come.
    """
    if job.rank:
        _upload_part(store, job)
        return
    layout = StageLayout(job.root)
    uri = layout.checkpoint(job.step)
    _make_way(store, uri, job)
    files = _upload_files(store, Path(job.folder), uri)
    if not files:
        raise StorageError(
            f"the checkpoint of step {job.step} has no files", code=codes.UNUSABLE_FILE, where=job.folder
        )
    files.extend(_other_parts(store, uri, job, cancelled))
    manifest = CheckpointManifest(
        step=job.step,
        attempt=job.attempt,
        best=job.best,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        files=files,
    )
    store.put_once(f"{uri}/{MANIFEST}", record_bytes(manifest))
    logger.info("step %d is complete: %d bytes", job.step, sum(file.size for file in files))
    if job.ranks > 1:
        store.delete_folder(uri, keep=[MANIFEST, *(file.name for file in files)])
    rotate(store, layout, job.keep)


def _parts(job: UploadJob) -> str:
    return f"parts/{job.snapshot}"


def _upload_files(store: ObjectStore, folder: Path, uri: str) -> list[CheckpointFile]:
    return [
        CheckpointFile(
            **file.model_dump(),
            blocks=block_digests(folder / file.name, BLOCK_BYTES) if is_ranged(file.name) else [],
        )
        for file in store.upload_folder(folder, uri)
    ]


def _upload_part(store: ObjectStore, job: UploadJob) -> None:
    uri = StageLayout(job.root).checkpoint(job.step)
    files = _upload_files(store, Path(job.folder), f"{uri}/{_parts(job)}")
    named = [file.model_copy(update={"name": f"{_parts(job)}/{file.name}"}) for file in files]
    store.put_record(f"{uri}/{_parts(job)}/part-{job.rank:05d}.json", CheckpointPart(files=named))


def _other_parts(store: ObjectStore, uri: str, job: UploadJob, cancelled: Path) -> list[CheckpointFile]:
    """Files of the other ranks, once each has said that its own are there."""
    files: list[CheckpointFile] = []
    pause, parent, orphaned = 0.02, os.getppid(), None
    for rank in range(1, job.ranks):
        place = f"{uri}/{_parts(job)}/part-{rank:05d}.json"
        while True:
            with suppress(NotFoundError):
                files.extend(store.get_record(place, CheckpointPart).files)
                break
            if os.getppid() != parent and orphaned is None:
                orphaned = time.monotonic()  # the training died, and other ranks' uploaders may have
            lost = orphaned is not None and time.monotonic() - orphaned > ORPHAN_SECONDS
            if cancelled.exists() or lost:
                raise UploaderKilledError(
                    f"the part of rank {rank} of step {job.step} was not stored",
                    code=codes.CHECKPOINT_LOST,
                    where=place,
                )
            time.sleep(pause)
            pause = min(2 * pause, 1.0)
    return files


def rotate(store: ObjectStore, layout: StageLayout, keep: int) -> list[int]:
    """Removes all complete checkpoints but the last ``keep`` and the best; returns their steps.

    Of a best one that is not among the last, only the weights stay. One that is among them is also what a
    resumed attempt may go on from, so it keeps its moments for as long.
    """
    steps = sorted(step for step, complete in list_steps(store, layout).items() if complete)
    kept = set(steps[-keep:])
    for step in reversed(steps):
        # The best is marked when it is saved, so the latest that bears the mark is the best.
        manifest = _manifest(store, layout, step)
        if manifest is not None and manifest.best:
            if step not in kept:
                kept.add(step)
                _strip(store, layout.checkpoint(step), manifest)
            break
    removed = [step for step in steps if step not in kept]
    for step in removed:
        remove_checkpoint(store, layout.checkpoint(step))
    return removed


def _strip(store: ObjectStore, uri: str, manifest: CheckpointManifest) -> None:
    """Leaves a checkpoint its weights. The manifest first: it never names what is not there."""
    moments = [file.name for file in manifest.files if file.name.endswith(MOMENTS_SUFFIX)]
    if manifest.weights_only or not moments:
        return
    files = [file for file in manifest.files if file.name not in moments]
    store.put_record(f"{uri}/{MANIFEST}", manifest.model_copy(update={"weights_only": True, "files": files}))
    store.delete([f"{uri}/{name}" for name in moments])


def _manifest(store: ObjectStore, layout: StageLayout, step: int) -> CheckpointManifest | None:
    try:
        return store.get_record(f"{layout.checkpoint(step)}/{MANIFEST}", CheckpointManifest)
    except TransientError:
        raise
    except StorageError as error:
        # Gone or damaged: no reason to fail the checkpoint that has just been completed.
        logger.warning("%s", error)
        return None


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
    store.delete(f"{uri}/{MANIFEST}")
    # Other ranks may have begun with their parts of the new one.
    own = f"{uri}/{_parts(job)}/"
    store.delete([info.uri for info in store.list(uri) if not info.uri.startswith(own)])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
