"""The uploader of one snapshot: a niced process, or for a small one a thread of this process.

In a thread of the training process the upload made CPU training five times slower, as a niced process 1.4
times. A small one (PPO's adapters after every iteration) is uploaded in a thread all the same: that takes
less than a process takes to start. Both hold a lock on the job's file for as long as they live.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pydantic import Field

import zhongjing
from zhongjing import errors
from zhongjing.codes import find
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import StorageError, TransientError
from zhongjing.storage.files import folder_bytes
from zhongjing.storage.heartbeat import beat
from zhongjing.storage.manifest import Record

logger = logging.getLogger(__name__)

JOB, ERROR = "job.json", "error.json"
CANCELLED, BEATS = "cancelled", "beats"  # beside the job: to the uploader, and from it
# Up to this size a checkpoint is uploaded in a thread.
THREAD_BYTES = 8 * 2**20
# How long a new attempt waits for the uploader of a dead one on the same machine.
ORPHAN_SECONDS = 30.0
_LOOK_SECONDS = 0.02


class UploaderKilledError(StorageError, TransientError):
    """The uploading process was killed; the upload may be tried again."""


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


class Upload:
    """The upload of a snapshot.

    Args:
        step: of the checkpoint.
        home: folder in the spool, with the job and its files.
    """

    def __init__(self, step: int, home: Path) -> None:
        self.step = step
        self.home = home
        self.process: subprocess.Popen[bytes] | _Thread | None = None  # None: this part was stored before

    @property
    def has_ended_well(self) -> bool:
        """Whether this rank's part is in the store; rank 0's: the checkpoint is complete."""
        return self.process is not None and self.process.poll() == 0

    @property
    def is_left(self) -> bool:
        """Whether the job is still there: one that ended well has removed it."""
        return (self.home / JOB).exists()

    def start(self) -> None:
        """Starts the uploader, again if it has failed."""
        for left in (ERROR, CANCELLED):
            (self.home / left).unlink(missing_ok=True)
        if folder_bytes(self.home / "files") <= THREAD_BYTES:
            self.process = _Thread(self.home / JOB)
            return
        environment = dict(os.environ)
        # The uploader runs the very code that runs here, wherever this was imported from.
        source = str(Path(zhongjing.__file__).resolve().parent.parent)
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [source, environment.get("PYTHONPATH")]))
        with (self.home / JOB).open("rb") as job, (self.home / "upload.log").open("ab") as log:
            # The child inherits the lock and keeps it as long as it lives, from its first moment on.
            fcntl.flock(job, fcntl.LOCK_EX)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "zhongjing.storage.checkpoint_upload", str(self.home / JOB)],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=[job.fileno()],
            )

    def cancel(self) -> None:
        """Tells rank 0's uploader that a part will not come."""
        (self.home / CANCELLED).touch()

    def settle(self) -> dict[str, Any] | None:
        """Waits for the end; what is moved counts as this process's work. Returns its error."""
        if self.process is None:
            return None
        told, pause = "", _LOOK_SECONDS / 8
        while (code := self.process.poll()) is None:
            with contextlib.suppress(OSError):
                moved = (self.home / BEATS).read_text()
                if moved != told:
                    told = moved
                    beat()
            time.sleep(pause)
            pause = min(2 * pause, _LOOK_SECONDS)
        if code == 0:
            return None
        with contextlib.suppress(OSError, ValueError):
            left: dict[str, Any] = json.loads((self.home / ERROR).read_text())
            return left
        reason = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        with contextlib.suppress(OSError):
            lines = (self.home / "upload.log").read_text().splitlines()[-5:]
            reason += "".join(f"\n{line}" for line in lines)
        kind = UploaderKilledError if code < 0 else StorageError
        return kind(
            f"the process that uploads the checkpoint of step {self.step} {reason}",
            code=codes.CHECKPOINT_LOST,
            where=str(self.home),
            remedy="signal 9 is often the out-of-memory killer; the checkpoint before this one is complete",
        ).as_dict()


def error_of(told: dict[str, Any]) -> StorageError:
    """The error that an uploader left, on this rank or another."""
    kind = getattr(errors, told["error"], StorageError)
    if told["error"] == UploaderKilledError.__name__:
        kind = UploaderKilledError
    elif not issubclass(kind, StorageError):
        kind = StorageError
    code = find(told["code"]) or codes.CHECKPOINT_LOST
    error: StorageError = kind(told["message"], code=code, where=told["where"], remedy=told["remedy"])
    return error


def is_uploading(home: Path) -> bool:
    """Whether a snapshot's uploader, of whatever process, lives; ``home`` is its folder in the spool."""
    try:
        with (home / JOB).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


class _Thread:
    """A thread that looks like the process that uploads a large snapshot."""

    def __init__(self, job: Path) -> None:
        self._job = job
        self._code: int | None = None
        # As the process's: gone with this process, whatever it dies of.
        self._lock = job.open("rb")
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
