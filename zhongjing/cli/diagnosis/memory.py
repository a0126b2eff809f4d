"""Main memory, the container's limit of it, shared memory and swap."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zhongjing.backends.local.cgroups import Limits, read_limits
from zhongjing.cli.diagnosis.finding import Finding, fine, gib, lacks, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine

DEMO_BYTES = 5 * 2**30  # the tiny pipeline with two workers, Ray and the S3 server, on a CPU
SHARED_BYTES = 256 * 2**20  # Ray's object store takes 200 MiB of it


@dataclass(frozen=True, slots=True)
class Facts:
    """Bytes of main memory and swap, and what the container allows."""

    total: int
    available: int
    swap: int
    swap_free: int
    limits: Limits


@dataclass(frozen=True, slots=True)
class SharedFacts:
    """Bytes of /dev/shm; none where there is no such file system."""

    total: int
    free: int


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at this machine."""
    yield judge(gather(), local=situation.local)
    shared = gather_shared()
    yield judge_shared(shared)


def gather() -> Facts:
    """Reads /proc/meminfo and the control groups."""
    return parse(Path("/proc/meminfo").read_text(encoding="ascii"), read_limits())


def parse(meminfo: str, limits: Limits) -> Facts:
    """The facts of a /proc/meminfo, whose sizes are in kB (1024 bytes)."""
    sizes = {name: int(size) * 1024 for name, size in re.findall(r"(?m)^(\w+):\s+(\d+) kB", meminfo)}
    return Facts(
        sizes["MemTotal"],
        sizes.get("MemAvailable", sizes["MemFree"]),
        sizes.get("SwapTotal", 0),
        sizes.get("SwapFree", 0),
        limits,
    )


def judge(facts: Facts, *, local: bool) -> Finding:
    """Enough for the tiny pipeline: at all, and now."""
    total, available = facts.total, facts.available
    limit = facts.limits.memory
    about = ""
    if limit is not None and limit < total:
        total, available = limit, min(available, limit - facts.limits.memory_used)
        about = f" (the container's limit; the machine has {gib(facts.total)})"
    swap = (
        f"{gib(facts.swap - facts.swap_free)} of {gib(facts.swap)} swap in use" if facts.swap else "no swap"
    )
    about = f"{gib(available)} available of {gib(total)}{about}, {swap}"
    if facts.limits.killed:
        times = "once" if facts.limits.killed == 1 else f"{facts.limits.killed} times"
        about += f"; a process of this container was killed for memory {times}"
    needs = f"the tiny pipeline takes about {gib(DEMO_BYTES)}"
    if total < DEMO_BYTES:
        return lacks("memory", f"{about}; {needs}", machine.LITTLE_MEMORY, serious=local)
    if available < DEMO_BYTES:
        return warn("memory", f"{about}; {needs}", machine.LITTLE_MEMORY)
    if facts.limits.killed:
        return warn("memory", about, machine.LITTLE_MEMORY)
    return fine("memory", about)


def gather_shared(folder: Path = Path("/dev/shm")) -> SharedFacts | None:  # noqa: S108 - Ray's own choice
    """Sizes of /dev/shm."""
    try:
        status = os.statvfs(folder)
    except OSError:
        return None
    return SharedFacts(status.f_frsize * status.f_blocks, status.f_frsize * status.f_bavail)


def judge_shared(facts: SharedFacts | None) -> Finding:
    """Room for Ray's object store."""
    name = "shared memory"
    if facts is None:
        return warn(
            name, "there is no /dev/shm: Ray and NCCL use the disk instead", machine.LITTLE_SHARED_MEMORY
        )
    about = f"{gib(facts.free)} free of {gib(facts.total)} at /dev/shm"
    if facts.free < SHARED_BYTES:
        return warn(name, f"{about}; Ray takes {gib(SHARED_BYTES)}", machine.LITTLE_SHARED_MEMORY)
    return fine(name, about)
