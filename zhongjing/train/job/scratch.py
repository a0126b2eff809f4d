"""Where a node keeps what it may lose: downloaded models, snapshots on their way to S3.

On a cluster every pod has a disk of its own, so a job clears up where it runs: what attempts that are over
left on this node, of whatever pipeline. Which of them live is told by locks, which end with their processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError
from zhongjing.storage.manifest import StageRequest
from zhongjing.storage.uploader import is_uploading

VARIABLE = "ZHONGJING_SCRATCH"
SIZE_VARIABLE = "ZHONGJING_SCRATCH_SIZE"
"""What may be used of it, as Kubernetes writes it (``400Gi``). An emptyDir's limit shows nowhere in the pod,
and a pod that passes it is evicted."""
_ATTEMPT = re.compile(r".+-a\d+")
_SPOOL = "-checkpoints"
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)(?:([KkMGTP])(i)?)?")


class FolderLock:
    """Says that this process uses a folder, until it is given back or the process ends."""

    def __init__(self, folder: Path) -> None:
        self._descriptor: int | None = None
        while True:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue  # swept between the two lines
            try:
                fcntl.flock(descriptor, fcntl.LOCK_SH)
            except OSError:  # a file system without locks: nothing is swept there either
                os.close(descriptor)
                return
            if os.path.exists(folder) and os.path.samestat(os.fstat(descriptor), folder.stat()):  # noqa: PTH110
                self._descriptor = descriptor
                return
            os.close(descriptor)

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Gives the folder back; it may be gone by then."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def scratch_root() -> Path:
    """The node's scratch folder: ``ZHONGJING_SCRATCH`` (a fast local disk), else a temporary one."""
    root = Path(os.environ.get(VARIABLE) or Path(tempfile.gettempdir()) / "zhongjing-scratch")
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    return root


def keep_downloads_in_scratch() -> None:
    """Sends what the hub's client downloads to the scratch folder, before that client is imported.

    A pod's home folder is small. Where nothing was said of scratch, the user's own cache is used, and a cache
    that was named always.
    """
    if os.environ.get(VARIABLE):
        os.environ.setdefault("HF_HOME", str(scratch_root() / "huggingface"))


def scratch_folder(submission_id: str) -> Path:
    """The folder of one attempt, made if needed."""
    folder = scratch_root() / submission_id
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def checkpoint_folder(request: StageRequest) -> Path:
    """The folder of checkpoints on their way to the store, the same for all attempts of a run of a stage."""
    document = request.document
    return scratch_folder(f"{document.namespace}-{document.name}-{request.stage}-{request.key}{_SPOOL}")


def remove_earlier(submission_id: str) -> None:
    """Removes what attempts left here that are over.

    Of the same stage none of the earlier ones lives any more. Of other stages and pipelines, only folders
    that no process has locked.
    """
    prefix, _, number = submission_id.rpartition("-a")
    for folder in scratch_root().iterdir():
        other = folder.name.removeprefix(f"{prefix}-a")
        if other != folder.name and other.isdigit():
            if int(other) < int(number):
                shutil.rmtree(folder, ignore_errors=True)
        elif folder.name.endswith(_SPOOL):
            remove_spool(folder)
        elif _ATTEMPT.fullmatch(folder.name):
            if_unlocked(folder, partial(shutil.rmtree, folder, ignore_errors=True))


def remove_spool(folder: Path) -> None:
    """Removes a folder of snapshots, unless it is locked or one is on its way to the store."""
    if not _uploads(folder):
        if_unlocked(folder, partial(shutil.rmtree, folder, ignore_errors=True))


def _uploads(spool: Path) -> bool:
    """Whether a checkpoint is still on its way: the uploader outlives the training that started it."""
    try:
        return any(is_uploading(home) for home in spool.iterdir())
    except OSError:
        return False


def room(folder: Path) -> int:
    """Bytes that may still be written below ``folder``, a folder of the scratch folder."""
    free = shutil.disk_usage(folder).free
    limit = os.environ.get(SIZE_VARIABLE)
    if not limit:
        return free
    used = 0
    for place, _, names in os.walk(scratch_root()):
        for name in names:
            with contextlib.suppress(OSError):  # gone by now
                used += os.lstat(os.path.join(place, name)).st_blocks * 512  # noqa: PTH118
    return max(min(free, parse_size(limit) - used), 0)


def parse_size(text: str) -> int:
    """Bytes of a Kubernetes quantity: ``400Gi``, ``1.5T``, ``1000000``.

    Raises:
        ConfigError: it is none.
    """
    found = _QUANTITY.fullmatch(text.strip())
    if found is None:
        raise ConfigError(
            "this is no size",
            code=INVALID_OPTION,
            where=f"{SIZE_VARIABLE}={text}",
            remedy="write 400Gi, 1.5T or a number of bytes",
        )
    number, prefix, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** " KMGTP".index((prefix or " ").upper()))


def if_unlocked(folder: Path, action: Callable[[], None]) -> bool:
    """Runs ``action`` while no process can lock ``folder``; False if one has."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        action()
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True
