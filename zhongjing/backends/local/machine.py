"""What this machine has: cores, memory, GPUs, as far as this process may use them."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path

import psutil

_CGROUPS = Path("/sys/fs/cgroup")
# Device files by which a GPU can be told where nvidia-smi is missing: NVIDIA, WSL, AMD.
_GPU_DEVICES = ("nvidia[0-9]*", "dxg", "kfd")


def cores() -> int:
    """Logical CPUs that this process may run on, the quota of its control group included. At least 1."""
    found = len(os.sched_getaffinity(0))
    for folder in _own_groups("cpu"):
        quota = _quota(folder)
        if quota is not None:
            found = min(found, math.ceil(quota))
    return max(1, found)


def memory() -> int:
    """Bytes of memory that this process and its children may use: the machine's, or its control group's."""
    found = int(psutil.virtual_memory().total)
    for folder in _own_groups("memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name)
            if text.isdigit():
                found = min(found, int(text))
    return found


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


def _own_groups(controller: str) -> list[Path]:
    """Folders of the control groups that limit this process, innermost first; versions 1 and 2."""
    found: list[Path] = []
    for line in _read(Path("/proc/self/cgroup")).splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers == "":
            root = _CGROUPS
        elif controller in controllers.split(","):
            root = _CGROUPS / controller
        else:
            continue
        folder = root / path.lstrip("/")
        # In a container the path may be the host's, which is not mounted: its own group is the root then.
        while folder != root and root in folder.parents:
            found.append(folder)
            folder = folder.parent
        found.append(root)
    return found


def _quota(folder: Path) -> float | None:
    """CPUs that a group may use, None without a limit."""
    both = _read(folder / "cpu.max").split()
    quota, period = both if len(both) == 2 else ("", "")
    if not both:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota.isdigit() or not period.isdigit() or int(period) == 0:
        return None  # "max" or -1: no limit
    return int(quota) / int(period)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
