"""Limits of the container: what control groups (versions 1 and 2) allow this process.

Inside a container /proc shows the host's memory and processors; what the process may use stands here.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_UNLIMITED = 2**60  # version 1 writes a number near 2**63 where there is no limit


@dataclass(frozen=True, slots=True)
class Limits:
    """What the control groups of a process allow; none where they limit nothing."""

    cpus: float | None = None  # processor time, in cores
    memory: int | None = None  # bytes
    memory_used: int = 0  # bytes of `memory` that are used, without what the kernel gives back on demand
    tasks: int | None = None  # processes and threads
    tasks_used: int = 0  # how many of `tasks` there are
    killed: int = 0  # how many processes of the group were killed because its memory was full


def read_limits(root: Path = Path("/")) -> Limits:
    """The limits of this process. Tests put another root of the file system."""
    memory, memory_used, killed = _memory(_folders(root, "memory"))
    tasks, tasks_used = _tasks(_folders(root, "pids"))
    cpus = _cpus(_folders(root, "cpu"))
    return Limits(cpus, memory, memory_used, tasks, tasks_used, killed)


def _memory(folders: list[Path]) -> tuple[int | None, int, int]:
    limit, used = None, 0
    killed = 0
    for folder in folders:
        found = _number(folder / "memory.max") or _number(folder / "memory.limit_in_bytes")
        if found is not None and found < _UNLIMITED and (limit is None or found < limit):
            limit = found
            taken = _number(folder / "memory.current") or _number(folder / "memory.usage_in_bytes") or 0
            statistics = _pairs(folder / "memory.stat")
            cached = statistics.get("total_inactive_file", statistics.get("inactive_file", 0))
            used = max(0, taken - cached)
        for name in ("memory.events", "memory.oom_control"):
            killed = max(killed, _pairs(folder / name).get("oom_kill", 0))
    return limit, used, killed


def _tasks(folders: list[Path]) -> tuple[int | None, int]:
    rooms = []
    for folder in folders:
        limit = _number(folder / "pids.max")
        if limit is not None:
            rooms.append((limit, _number(folder / "pids.current") or 0))
    return min(rooms, key=lambda pair: pair[0] - pair[1], default=(None, 0))


def _cpus(folders: list[Path]) -> float | None:
    found = []
    for folder in folders:
        words = _text(folder / "cpu.max").split()  # "200000 100000", "max 100000"
        if len(words) == 2 and words[0].isdigit() and int(words[1]) > 0:
            found.append(int(words[0]) / int(words[1]))
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and period and quota > 0:
            found.append(quota / period)
    return min(found, default=None)


def _folders(root: Path, controller: str) -> list[Path]:
    """Folders whose limits hold for this process and ``controller``: its group's and those above it."""
    groups: dict[str, str] = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), group)
    # A controller that version 1 names has its own tree; version 2 has one tree, named by nothing.
    kind, name = ("cgroup", controller) if controller in groups else ("cgroup2", "")
    for line in _text(root / "proc/self/mountinfo").splitlines():
        head, _, tail = line.partition(" - ")
        left, right = head.split(), tail.split()
        if len(left) < 5 or len(right) < 3 or right[0] != kind or name not in groups:
            continue
        if kind == "cgroup" and controller not in right[2].split(","):
            continue
        point = root / left[4].lstrip("/")
        inside = groups[name].removeprefix(left[3]) if left[3] != "/" else groups[name]
        folder = point / inside.lstrip("/")
        # Without a namespace of its own a container names its group as the host does, and cannot see it.
        while not folder.is_dir() and folder != point:
            folder = folder.parent
        return [each for each in (folder, *folder.parents) if each.is_relative_to(point)]
    return []


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file).strip()
    return int(text) if text.lstrip("-").isdigit() else None


def _pairs(file: Path) -> dict[str, int]:
    lines = [line.split() for line in _text(file).splitlines()]
    return {words[0]: int(words[1]) for words in lines if len(words) == 2 and words[1].isdigit()}
