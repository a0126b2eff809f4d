"""Checkpoints in the store, written while the training goes on.

``save`` lets each rank fill a local spool folder with its own part: that is all the training waits for. An
uploader a rank (:mod:`zhongjing.storage.uploader`) does the rest. Rank 0's writes the manifest when all parts
are in the store, so a checkpoint exists whole or not at all.
"""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from zhongjing.codes import storage as codes
from zhongjing.errors import NotFoundError, StorageError, TransientError
from zhongjing.storage.checkpoint_download import download
from zhongjing.storage.checkpoint_records import (
    MANIFEST,
    STEP,
    CheckpointManifest,
    Wanted,
    list_steps,
    remove_checkpoint,
)
from zhongjing.storage.documents import damaged, parse_json, parse_record, record_bytes
from zhongjing.storage.files import disk_error, is_disk_full
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.uploader import JOB, ORPHAN_SECONDS, Upload, UploadJob, error_of, is_uploading

logger = logging.getLogger(__name__)

# So many uploads in a row may fall to an outage of the store, or be killed, before the training is told.
TOLERATED_OUTAGES = 3

Meet: TypeAlias = "Callable[[Callable[[], Any]], list[Any]]"
"""Does a rank's work and returns every rank's result, by rank, once all have done theirs."""


def _alone(work: Callable[[], Any]) -> list[Any]:
    return [work()]


class CheckpointStore:
    """Checkpoints of one run of a stage.

    Any process may read. Only the ranks of the current attempt, all of them, call ``restore``, ``save`` and
    ``wait``, all at the same places.

    Args:
        store: the object store.
        layout: URIs of this run of the stage.
        spool: a local folder of the attempts of this run alone; what it holds may be lost.
        keep: how many of the latest checkpoints are kept, besides the best.
        attempt: number of this attempt; it stands in the manifests.
        rank: of this process.
        ranks: how many there are.
        meet: where they wait for one another.
    """

    def __init__(
        self,
        store: ObjectStore,
        layout: StageLayout,
        spool: Path,
        keep: int,
        attempt: int = 0,
        *,
        rank: int = 0,
        ranks: int = 1,
        meet: Meet = _alone,
    ) -> None:
        self.store = store
        self.layout = layout
        self.spool = spool
        self.keep = keep
        self.attempt = attempt
        self.rank = rank
        self.ranks = ranks
        self._meet = meet
        self._upload: Upload | None = None
        self._outages = 0
        self._completed: int | None = None

    # Writing

    def save(self, step: int, write: Callable[[Path], None], best: bool = False) -> None:
        """Keeps a checkpoint: ``write`` fills an empty local folder, the upload goes on behind.

        An upload that still runs is waited for: at most one snapshot waits on the local disk.

        Raises:
            StorageError: the previous upload failed for good (this checkpoint was not taken; another call
                would take it), or the local disk is full.
        """
        name = self._finish(tolerant=True)
        home = self.spool / f"{STEP}{step:08d}-{name}-{self.rank}"
        problem = next(filter(None, self._meet(lambda: self._snapshot(step, write, best, home))), None)
        if problem is not None:
            shutil.rmtree(home, ignore_errors=True)
            raise StorageError(
                f"the disk is full: the checkpoint of step {step} was not taken",
                code=codes.DISK_FULL,
                where=problem,
                remedy="free some space there, or move the scratch folder to a larger disk",
            )
        upload = Upload(step, home)
        try:
            upload.start()
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            raise disk_error(error, home) from error
        self._upload = upload

    def _snapshot(self, step: int, write: Callable[[Path], None], best: bool, home: Path) -> str | None:
        """Fills the folder of this rank; returns the place of a disk that is full."""
        folder = home / "files"
        try:
            folder.mkdir(parents=True)
            write(folder)
            job = UploadJob(
                storage=self.store.storage,
                root=self.layout.root,
                step=step,
                attempt=self.attempt,
                best=best,
                keep=self.keep,
                folder=str(folder.resolve()),
                snapshot=home.name.split("-")[2],
                rank=self.rank,
                ranks=self.ranks,
            )
            (home / JOB).write_bytes(record_bytes(job))
        except BaseException as error:
            full = is_disk_full(error) or _is_full(self.spool)
            shutil.rmtree(home, ignore_errors=True)
            if isinstance(error, Exception) and full:
                logger.warning("the disk is full: %s", error)
                return str(self.spool)
            if isinstance(error, OSError):
                raise disk_error(error, home) from error
            raise
        return None

    def wait(self) -> None:
        """Blocks until the checkpoint handed to ``save`` last is complete in the store.

        Raises:
            StorageError: it is not and will not be; after an outage, or when the uploader was killed, the
                upload was tried once more.
        """
        upload = self._upload
        try:
            self._finish(tolerant=False)
        except TransientError as outage:
            if upload is None or not self._meet(lambda: upload.is_left)[0]:
                raise
            logger.warning("the upload of step %d failed; trying once more: %s", upload.step, outage)
            self._upload = Upload(upload.step, upload.home)
            if self._upload.is_left:
                self._upload.start()
            self._finish(tolerant=False)

    def _finish(self, *, tolerant: bool) -> str:
        """Waits for the upload that goes on, on every rank; returns a name for the next snapshot."""
        upload, self._upload = self._upload, None

        def others() -> dict[str, Any] | None:
            return upload.settle() if upload is not None and self.rank else None

        def last() -> tuple[str, dict[str, Any] | None]:
            found = None
            if upload is not None and not self.rank:
                if failed is not None:
                    # Its manifest waits for a part that will not come.
                    upload.cancel()
                found = upload.settle()
            return uuid.uuid4().hex[:8], found and (failed or found)

        failed = next(filter(None, self._meet(others)), None) if self.ranks > 1 else None
        name, told = self._meet(last)[0]
        if upload is None:
            return str(name)
        if told is None:
            self._outages = 0
            self._completed = upload.step
            return str(name)
        error = error_of(told)
        if isinstance(error, TransientError):
            self._outages += 1
            if not tolerant:
                raise error
            if self._outages < TOLERATED_OUTAGES:
                # The snapshot that is about to be taken is newer and takes its place.
                logger.warning("the checkpoint of step %d was not stored: %s", upload.step, error)
                shutil.rmtree(upload.home, ignore_errors=True)
                return str(name)
        shutil.rmtree(upload.home, ignore_errors=True)
        self._outages = 0
        raise error

    @property
    def completed(self) -> int | None:
        """Step of the latest checkpoint that this attempt knows to be complete; asks no store."""
        if self._upload is not None and self._upload.has_ended_well:
            self._completed = self._upload.step
        return self._completed

    # Reading

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(step for step, complete in self._listing().items() if complete)

    def latest(self) -> int | None:
        """Step of the latest complete checkpoint, not checked beyond its manifest."""
        return max(self.steps(), default=None)

    def manifest(self, step: int) -> CheckpointManifest:
        """Manifest of a checkpoint.

        Raises:
            NotFoundError: there is no such checkpoint.
            StorageError: the manifest is damaged.
        """
        return self.store.get_record(f"{self.layout.checkpoint(step)}/{MANIFEST}", CheckpointManifest)

    def fetch(self, step: int, folder: Path, wanted: Wanted | None = None) -> None:
        """Downloads what this rank needs of a checkpoint into ``folder`` and checks it.

        Args:
            step: of the checkpoint.
            folder: where to; what is there already is removed.
            wanted: what it needs of weights and moments; None for everything.

        Raises:
            NotFoundError: there is no such checkpoint.
            StorageError: a file is missing or damaged, or the local disk is full.
        """
        shutil.rmtree(folder, ignore_errors=True)
        manifest = self.manifest(step)
        problem = download(self.store, self.layout.checkpoint(step), manifest.files, folder, wanted)
        if problem is not None:
            shutil.rmtree(folder, ignore_errors=True)
            raise damaged(problem, self.layout.checkpoint(step))

    def restore(self, folder: Path, wanted: Wanted | None = None) -> int | None:
        """Where this attempt goes on: the latest checkpoint that is whole, down to every byte that is needed.

        All ranks call it, once, before the first ``save``; each fetches its own part. What dead attempts left
        is removed first. A checkpoint that is damaged for one rank is reported and loses its manifest, so
        that it is not met again; all go back to the one before it. Later ones, of steps that will be done
        again, are removed.

        Args:
            folder: of this rank; where its part goes.
            wanted: what it needs of weights and moments; None for everything.

        Returns:
            The step, the same on every rank; None where there is no checkpoint to go on from.
        """
        self._meet(lambda: None if self.rank else self.clean())
        while True:
            step = self._meet(lambda: None if self.rank else self._last_whole())[0]
            if step is None:
                self._meet(partial(self._forget_after, -1))
                return None
            told = self._meet(partial(self._fetch_or_give_up, step, folder, wanted))
            problem = next(filter(None, told), None)
            if problem is None:
                self._meet(partial(self._forget_after, step))
                self._completed = step
                return int(step)
            shutil.rmtree(folder, ignore_errors=True)
            if not self.rank:
                uri = self.layout.checkpoint(step)
                logger.error("checkpoint %s cannot be used (%s); going back to the one before", uri, problem)
                self.store.delete(f"{uri}/{MANIFEST}")

    def _last_whole(self) -> int | None:
        """The latest step whose checkpoint an attempt may go on from, by the manifests alone."""
        return next((step for step in reversed(self.steps()) if not self._is_weights_only(step)), None)

    def _forget_after(self, step: int) -> None:
        """Removes checkpoints of steps that this attempt will do again.

        A best one of which only weights are left would pass for the best, and for one of the last.
        """
        for later in [] if self.rank else self.steps():
            if later > step:
                logger.warning("removing the checkpoint of step %d: it goes on from step %d", later, step)
                remove_checkpoint(self.store, self.layout.checkpoint(later))

    def _is_weights_only(self, step: int) -> bool:
        with contextlib.suppress(StorageError):
            return self.manifest(step).weights_only
        return False  # what is wrong with it is told when it is fetched

    def _fetch_or_give_up(self, step: int, folder: Path, wanted: Wanted | None) -> str | None:
        """Fetches a checkpoint; what the store cannot give while it does give all else is damaged, too.

        A store whose disk lost what it had acknowledged (a power cut) answers with a failure for just these
        objects, for ever. An outage fails the listing as well, and is raised.
        """
        for last in (False, True):
            try:
                return self._fetch(step, folder, wanted)
            except TransientError as error:
                self._listing()
                if last:
                    return f"the store lists it and cannot give it: {error}"
        raise AssertionError("unreachable")

    def _fetch(self, step: int, folder: Path, wanted: Wanted | None) -> str | None:
        """Downloads and checks a checkpoint; returns what is wrong with *it*. Other errors are raised."""
        uri = self.layout.checkpoint(step)
        try:
            data = self.store.get(f"{uri}/{MANIFEST}")
        except NotFoundError:
            return "it has just been removed"
        try:
            manifest = parse_record(
                parse_json(data, f"{uri}/{MANIFEST}"), CheckpointManifest, f"{uri}/{MANIFEST}"
            )
        except StorageError as error:
            if error.code is codes.NEWER_VERSION:
                raise  # its writer can use it: it must not be removed
            return error.message
        shutil.rmtree(folder, ignore_errors=True)
        return download(self.store, uri, manifest.files, folder, wanted)

    def clean(self) -> None:
        """Removes what dead attempts left: snapshots on the local disk, uploads without a manifest.

        An uploader of theirs that still runs on this machine may finish first (half a minute).
        """
        self.clean_spool()
        for step, complete in self._listing().items():
            if not complete:
                removed = self.store.delete_folder(self.layout.checkpoint(step))
                logger.info("removed the incomplete checkpoint of step %d (%d objects)", step, removed)

    def clean_spool(self) -> None:
        """The same on this machine's disk alone; for one rank of a machine that rank 0 is not on."""
        deadline = time.monotonic() + ORPHAN_SECONDS
        for home in sorted(self.spool.iterdir()) if self.spool.is_dir() else []:
            while is_uploading(home) and time.monotonic() < deadline:
                time.sleep(0.1)
            if not is_uploading(home):
                shutil.rmtree(home, ignore_errors=True)

    def _listing(self) -> dict[int, bool]:
        return list_steps(self.store, self.layout)


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < 2**20
    return False
