"""Free space on the disk of a workdir. Its S3 server takes nothing any more when little is free.

The server answers 5xx then, as in any trouble: clients would wait for it to pass, and that a run has stopped
could not even be written. So who waits looks at the disk as well.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

from zhongjing.codes.storage import DISK_FULL
from zhongjing.config.quantity import from_bytes
from zhongjing.errors import StorageError
from zhongjing.storage.embedded import MIN_FREE_BYTES

PATIENCE_SECONDS = 60.0


def check_disk(workdir: Path) -> None:
    """Refuses a workdir on a disk that is full; the folder need not exist.

    Raises:
        StorageError: the S3 server could store nothing there.
    """
    free = _free(workdir)
    if free is not None and free < MIN_FREE_BYTES:
        raise StorageError(
            f"the disk is full: {from_bytes(free)} are free, and the S3 server of the workdir takes nothing "
            f"below {from_bytes(MIN_FREE_BYTES)}",
            code=DISK_FULL,
            where=str(workdir),
        )


class DiskWatch:
    """Says that the disk is full once it has been so for a while: space may just be being made."""

    def __init__(self, workdir: Path, now: Callable[[], float] = time.monotonic) -> None:
        self._workdir = workdir
        self._now = now
        self._since: float | None = None

    def check(self) -> None:
        """Looks; to be called again and again.

        Raises:
            StorageError: the disk has been full for :data:`PATIENCE_SECONDS`.
        """
        try:
            check_disk(self._workdir)
        except StorageError:
            self._since = self._since if self._since is not None else self._now()
            if self._now() - self._since >= PATIENCE_SECONDS:
                raise
        else:
            self._since = None


def _free(folder: Path) -> int | None:
    """Bytes that are free where a folder is or would be made; None where that cannot be told."""
    for place in (folder.absolute(), *folder.absolute().parents):
        if place.is_dir():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None
