"""What this machine has: cores, memory, GPUs, disk, as far as this process may use them."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import psutil

from zhongjing.backends.local.cgroups import read_limits
from zhongjing.codes.storage import DISK_FULL
from zhongjing.config.quantity import from_bytes
from zhongjing.errors import StorageError
from zhongjing.storage.embedded import MIN_FREE_BYTES

# Device files by which a GPU can be told where nvidia-smi is missing: NVIDIA, WSL, AMD.
_GPU_DEVICES = ("nvidia[0-9]*", "dxg", "kfd")


def cores() -> int:
    """Logical CPUs that this process may run on, the quota of its control groups included. At least 1."""
    found = len(os.sched_getaffinity(0))
    quota = read_limits().cpus
    return max(1, found if quota is None else min(found, math.ceil(quota)))


def memory() -> int:
    """Bytes of memory that this process and its children may use: the machine's, or its control groups'."""
    found = int(psutil.virtual_memory().total)
    limit = read_limits().memory
    return found if limit is None else min(found, limit)


def gpus() -> int | None:
    """GPUs that CUDA would show to a program started here; None where that cannot be told.

    ``nvidia-smi`` is asked, not torch: it answers in a tenth of a second, and from outside of any process
    that trains.
    """
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None and listed.strip() in ("", "-1"):
        return 0
    answer = nvidia_smi("-L")
    if answer is None and shutil.which("nvidia-smi") is None:
        devices = [path for pattern in _GPU_DEVICES for path in Path("/dev").glob(pattern)]
        return None if devices else 0
    if answer is None:
        # A driver that does not answer: whether torch finds a GPU, its own check says.
        return None
    lines = answer.splitlines()
    # Slices of a partitioned GPU stand below it, indented, and only they can be used.
    slices = sum(line.lstrip().startswith("MIG ") for line in lines)
    found = slices or sum(line.startswith("GPU ") for line in lines)
    if listed is not None:
        found = min(found, len([name for name in listed.split(",") if name.strip()]))
    return found


def nvidia_smi(*arguments: str) -> str | None:
    """What the driver's program prints; None where it is missing, fails or does not answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    try:
        done = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def gpu_memory() -> int | None:
    """Bytes of a GPU of this machine, as its driver counts them; None where that cannot be told.

    Nothing is said of GPUs of several sizes, nor of partitioned ones: which a job gets is not known here.
    nvidia-smi gives ``memory.total`` in MiB (``nvidia-smi --help-query-gpu``).
    """
    answer = nvidia_smi("--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits")
    if answer is None:
        return None
    sizes = []
    for line in answer.splitlines():
        size, _, partitioned = (part.strip() for part in line.partition(","))
        if not size.isdecimal() or partitioned == "Enabled":
            return None
        sizes.append(int(size) * 2**20)
    return sizes[0] if sizes and len(set(sizes)) == 1 else None


# Disk: the S3 server of a workdir answers 5xx when little is free, as in any trouble: clients would wait for
# it to pass, and that a run has stopped could not even be written. So who waits looks at the disk as well.

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
