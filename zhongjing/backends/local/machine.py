"""What this machine has: cores, memory, GPUs, as far as this process may use them."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

import psutil

from zhongjing.backends.local.cgroups import read_limits

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
    program = shutil.which("nvidia-smi")
    if program is None:
        devices = [path for pattern in _GPU_DEVICES for path in Path("/dev").glob(pattern)]
        return None if devices else 0
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        # A driver that does not answer: whether torch finds a GPU, its own check says.
        return None
    lines = done.stdout.splitlines()
    # Slices of a partitioned GPU stand below it, indented, and only they can be used.
    slices = sum(line.lstrip().startswith("MIG ") for line in lines)
    found = slices or sum(line.startswith("GPU ") for line in lines)
    if listed is not None:
        found = min(found, len([name for name in listed.split(",") if name.strip()]))
    return found


def gpu_memory() -> int | None:
    """Bytes of a GPU of this machine, as its driver counts them; None where that cannot be told.

    Nothing is said of GPUs of several sizes, nor of partitioned ones: which a job gets is not known here.
    nvidia-smi gives ``memory.total`` in MiB (``nvidia-smi --help-query-gpu``).
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=memory.total,mig.mode.current", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    sizes = []
    for line in done.stdout.splitlines():
        size, _, partitioned = (part.strip() for part in line.partition(","))
        if not size.isdecimal() or partitioned == "Enabled":
            return None
        sizes.append(int(size) * 2**20)
    return sizes[0] if sizes and len(set(sizes)) == 1 else None
