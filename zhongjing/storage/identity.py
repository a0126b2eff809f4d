"""Telling a process from a later one that was given the same id."""

from __future__ import annotations

from pathlib import Path


def start_mark(pid: int) -> str | None:
    """What tells this process from every other of the same id, or None if there is none (a zombie is none).

    The kernel's tick count at the process's start, and the boot that it counts from. Never a time of day: the
    kernel derives that from the clock, so it moves when the clock is set, and a live process would be taken
    for dead.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] == "Z" else f"{boot[:8]}-{fields[19]}"  # field 22 of proc(5)
