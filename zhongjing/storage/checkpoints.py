"""Checkpoints in the store, written while the training goes on.

``save`` lets each rank fill a local spool folder with its own part: that is all the training waits for. A
niced process a rank (:mod:`zhongjing.storage.checkpoint_upload`) uploads it: in a thread of the training
process the upload made CPU training five times slower, as a niced process 1.4 times. A small one (PPO's
adapters after every iteration) is uploaded in a thread all the same: that takes less than a process takes to
start. Rank 0's writes the manifest when all parts are in the store, so a checkpoint exists whole or not at
all; each file's sha256 stands in it, and of weights and moments that of each block of 16 MiB, so that a
rank reads and checks only the blocks that it needs::

    step-00000010/<file>                       of rank 0
                 /parts/<snapshot>/<file>      of the others
                 /parts/<snapshot>/part-00001.json   that rank's files, written after them
                 /manifest.json                all files, written last
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

from pydantic import Field

import zhongjing
from zhongjing import errors
from zhongjing.codes import find
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import NotFoundError, StorageError, TransientError
from zhongjing.storage.client import PART_BYTES, TRANSFERS
from zhongjing.storage.documents import damaged, parse_json, parse_record, record_bytes
from zhongjing.storage.files import (
    disk_error,
    folder_bytes,
    is_disk_full,
    is_intact,
    path_inside,
    write_at,
)
from zhongjing.storage.heartbeat import beat
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.manifest import ModelFile, Record
from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
CANCELLED, BEATS = "cancelled", "beats"  # beside the job: to the uploader, and from it
# So many uploads in a row may fall to an outage of the store, or be killed, before the training is told.
TOLERATED_OUTAGES = 3
# Up to this size a checkpoint is uploaded in a thread.
THREAD_BYTES = 8 * 2**20
# How long a new attempt waits for the uploader of a dead one on the same machine.
ORPHAN_SECONDS = 30.0
# Files that only a run that goes on needs: the best checkpoint loses them when it is no longer a latest one.
MOMENTS_SUFFIX = "-moments.bin"
WEIGHTS_SUFFIX = "-weights.bin"
BLOCK_BYTES = PART_BYTES  # what is read and checked at a time of weights and moments
_STEP = "step-"
_LOOK_SECONDS = 0.02


class UploaderKilledError(StorageError, TransientError):
    """The uploading process was killed; the upload may be tried again."""


class CheckpointFile(ModelFile):
    """A file of a checkpoint."""

    blocks: list[str] = Field(
        default_factory=list, description="sha256 of each 16 MiB; none: the file is read as a whole"
    )


class CheckpointManifest(Record):
    """Completion of a checkpoint, written last."""

    version: Literal[1, 2] = 2
    step: int
    attempt: int
    best: bool
    created: str
    weights_only: bool = False
    files: list[CheckpointFile]


class CheckpointPart(Record):
    """Completion of one rank's part."""

    files: list[CheckpointFile] = Field(description="names from the checkpoint's folder on")


class UploadJob(Record):
    """What the uploading process is told; it has no secrets, those come through the environment."""

    storage: Storage
    root: str
    step: int
    attempt: int
    best: bool
    keep: int
    folder: str
    snapshot: str = Field(description="name of this snapshot, the same for all ranks")
    rank: int = 0
    ranks: int = 1


@dataclass(slots=True)
class _Upload:
    step: int
    home: Path
    process: subprocess.Popen[bytes] | _UploadThread | None  # None: this rank's part was stored before


Meet: TypeAlias = "Callable[[Callable[[], Any]], list[Any]]"
"""Does a rank's work and returns every rank's result, by rank, once all have done theirs."""


Ranges: TypeAlias = dict[str, list[tuple[int, int]]]
"""First byte and the byte behind the last, by the file's name from the checkpoint's folder on."""

Wanted: TypeAlias = "Callable[[Path], Ranges]"
"""What of weights and moments a rank needs; it is given a folder with the checkpoint's other files."""


def is_ranged(name: str) -> bool:
    """Whether a file of a checkpoint is read in parts."""
    return name.endswith((WEIGHTS_SUFFIX, MOMENTS_SUFFIX))


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
        self._upload: _Upload | None = None
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
        home = self.spool / f"{_STEP}{step:08d}-{name}-{self.rank}"
        problem = next(filter(None, self._meet(lambda: self._snapshot(step, write, best, home))), None)
        if problem is not None:
            shutil.rmtree(home, ignore_errors=True)
            raise StorageError(
                f"the disk is full: the checkpoint of step {step} was not taken",
                code=codes.DISK_FULL,
                where=problem,
                remedy="free some space there, or move the scratch folder to a larger disk",
            )
        try:
            process = _start(home)
        except OSError as error:
            shutil.rmtree(home, ignore_errors=True)
            raise disk_error(error, home) from error
        self._upload = _Upload(step, home, process)

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
            (home / "job.json").write_bytes(record_bytes(job))
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
            if upload is None or not self._meet((upload.home / "job.json").exists)[0]:
                raise
            logger.warning("the upload of step %d failed; trying once more: %s", upload.step, outage)
            again = (upload.home / "job.json").exists()
            self._upload = _Upload(upload.step, upload.home, _start(upload.home) if again else None)
            self._finish(tolerant=False)

    def _finish(self, *, tolerant: bool) -> str:
        """Waits for the upload that goes on, on every rank; returns a name for the next snapshot."""
        upload, self._upload = self._upload, None

        def others() -> dict[str, Any] | None:
            return _settle(upload) if upload is not None and self.rank else None

        def last() -> tuple[str, dict[str, Any] | None]:
            found = None
            if upload is not None and not self.rank:
                if failed is not None:
                    # Its manifest waits for a part that will not come.
                    (upload.home / CANCELLED).touch()
                found = _settle(upload)
            return uuid.uuid4().hex[:8], found and (failed or found)

        failed = next(filter(None, self._meet(others)), None) if self.ranks > 1 else None
        name, told = self._meet(last)[0]
        if upload is None:
            return str(name)
        if told is None:
            self._outages = 0
            self._completed = upload.step
            return str(name)
        error = _error_of(upload.step, told)
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
        process = self._upload.process if self._upload is not None else None
        if self._upload is not None and process is not None and process.poll() == 0:
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
            folder: where to; what is there already is removed. Files that are read in parts have their true
                size, and nothing where nothing was asked for.
            wanted: the parts; None for everything.

        Raises:
            NotFoundError: there is no such checkpoint.
            StorageError: a file is missing or damaged, or the local disk is full.
        """
        shutil.rmtree(folder, ignore_errors=True)
        manifest = self.manifest(step)
        problem = self._fetch_files(manifest.files, self.layout.checkpoint(step), folder, wanted)
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
            files = _parse(data, f"{uri}/{MANIFEST}").files
        except StorageError as error:
            if error.code is codes.NEWER_VERSION:
                raise  # its writer can use it: it must not be removed
            return error.message
        shutil.rmtree(folder, ignore_errors=True)
        return self._fetch_files(files, uri, folder, wanted)

    def _fetch_files(
        self, files: list[CheckpointFile], uri: str, folder: Path, wanted: Wanted | None
    ) -> str | None:
        """Fetches whole files, then the parts of the others; returns what is missing or damaged."""
        for file in files:
            if file.blocks:
                continue
            path = path_inside(folder, file.name, uri)
            try:
                self.store.get_file(f"{uri}/{file.name}", path)
            except NotFoundError:
                return f"{file.name} is missing"
            if not is_intact(path, file):
                return f"{file.name} is damaged"
        ranges = None if wanted is None else wanted(folder)
        for file in files:
            parts = [(0, file.size)] if ranges is None else ranges.get(file.name, [])
            if file.blocks and parts:
                try:
                    self._fetch_blocks(file, f"{uri}/{file.name}", path_inside(folder, file.name, uri), parts)
                except NotFoundError:
                    return f"{file.name} is missing"
                except StorageError as error:
                    if error.code is not codes.DAMAGED_OBJECT:
                        raise
                    return f"{file.name} is damaged"
        return None

    def _fetch_blocks(self, file: CheckpointFile, uri: str, path: Path, parts: list[tuple[int, int]]) -> None:
        """Fetches the blocks that ``parts`` touch, four at a time, into a file of the true size."""

        def fetch(block: int) -> None:
            start = block * BLOCK_BYTES
            data = self.store.get_range(uri, start, min(BLOCK_BYTES, file.size - start))
            if hashlib.sha256(data).hexdigest() != file.blocks[block]:
                raise damaged(f"block {block} is not what its manifest says", uri)
            write_at(descriptor, data, start)

        blocks = sorted(
            {block for start, end in parts for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))}
        )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as out:
                out.truncate(file.size)
                descriptor = out.fileno()
                with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="restore") as pool:
                    try:
                        for _ in pool.map(fetch, blocks):
                            pass
                    except BaseException:
                        pool.shutdown(wait=True, cancel_futures=True)
                        raise
        except OSError as error:
            raise disk_error(error, path) from error

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


def remove_checkpoint(store: ObjectStore, uri: str) -> None:
    """Removes a checkpoint, its manifest first: one is never listed while it lacks files."""
    store.delete(f"{uri}/{MANIFEST}")
    store.delete_folder(uri)


def list_steps(store: ObjectStore, layout: StageLayout) -> dict[int, bool]:
    """Steps that have objects, and whether their checkpoint is complete."""
    found: dict[int, bool] = {}
    for info in store.list(layout.checkpoints):
        name, _, rest = info.uri.removeprefix(f"{layout.checkpoints}/").partition("/")
        if name.startswith(_STEP) and name.removeprefix(_STEP).isdigit():
            step = int(name.removeprefix(_STEP))
            found[step] = found.get(step, False) or rest == MANIFEST
    return found


def _parse(data: bytes, uri: str) -> CheckpointManifest:
    return parse_record(parse_json(data, uri), CheckpointManifest, uri)


class _UploadThread:
    """The upload of a small checkpoint; to its owner it looks like the process that uploads a large one."""

    def __init__(self, home: Path) -> None:
        self._job = home / "job.json"
        self._code: int | None = None
        # As the process's: gone with this process, whatever it dies of.
        self._lock = self._job.open("rb")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._thread = threading.Thread(target=self._run, name="checkpoint", daemon=True)
        self._thread.start()

    def poll(self) -> int | None:
        """The exit code, or None while the upload goes on."""
        return None if self._thread.is_alive() else self._code

    def _run(self) -> None:
        from zhongjing.storage.checkpoint_upload import perform

        try:
            self._code = perform(self._job)
        except Exception:
            logger.exception("the upload of %s failed", self._job)
            self._code = 1
        finally:
            self._lock.close()


def _start(home: Path) -> subprocess.Popen[bytes] | _UploadThread:
    for left in ("error.json", CANCELLED):
        (home / left).unlink(missing_ok=True)
    if folder_bytes(home / "files") <= THREAD_BYTES:
        return _UploadThread(home)
    environment = dict(os.environ)
    # The uploader runs the very code that runs here, wherever this was imported from.
    source = str(Path(zhongjing.__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
    with (home / "job.json").open("rb") as job, (home / "upload.log").open("ab") as log:
        # The child inherits the lock and keeps it as long as it lives, from its first moment on.
        fcntl.flock(job, fcntl.LOCK_EX)
        return subprocess.Popen(
            [sys.executable, "-m", "zhongjing.storage.checkpoint_upload", str(home / "job.json")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[job.fileno()],
        )


def _settle(upload: _Upload) -> dict[str, Any] | None:
    """Waits for an uploader's end; what it moves counts as this process's work. Returns its error."""
    process = upload.process
    if process is None:
        return None
    told, pause = "", _LOOK_SECONDS / 8
    while (code := process.poll()) is None:
        with contextlib.suppress(OSError):
            moved = (upload.home / BEATS).read_text()
            if moved != told:
                told = moved
                beat()
        time.sleep(pause)
        pause = min(2 * pause, _LOOK_SECONDS)
    if code == 0:
        return None
    with contextlib.suppress(OSError, ValueError):
        left: dict[str, Any] = json.loads((upload.home / "error.json").read_text())
        return left
    reason = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    tail = ""
    with contextlib.suppress(OSError):
        tail = "".join(f"\n{line}" for line in (upload.home / "upload.log").read_text().splitlines()[-5:])
    return {"killed": code < 0, "reason": reason + tail, "where": str(upload.home)}


def _error_of(step: int, told: dict[str, Any]) -> StorageError:
    if "error" in told:
        kind = getattr(errors, told["error"], StorageError)
        if not issubclass(kind, StorageError):
            kind = StorageError
        result: StorageError = kind(
            told["message"],
            code=find(told["code"]) or codes.CHECKPOINT_LOST,
            where=told["where"],
            remedy=told["remedy"],
        )
        return result
    kind = UploaderKilledError if told["killed"] else StorageError
    return kind(
        f"the process that uploads the checkpoint of step {step} {told['reason']}",
        code=codes.CHECKPOINT_LOST,
        where=told["where"],
        remedy="signal 9 is often the out-of-memory killer; the checkpoint before this one is complete",
    )


def is_uploading(home: Path) -> bool:
    """Whether a snapshot's uploader, of whatever process, lives; ``home`` is its folder in the spool."""
    try:
        with (home / "job.json").open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _is_full(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return shutil.disk_usage(folder).free < 2**20
    return False
