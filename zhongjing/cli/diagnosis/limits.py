"""Limits of this shell and of the container: open files, processes, sizes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zhongjing.backends.local.cgroups import Limits, read_limits
from zhongjing.cli.diagnosis.finding import Finding, fine, gib, lacks, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine

LEAST_FILES = 1024
GOOD_FILES = 4096  # Ray warns below; Ray and the S3 server raise the soft limit to the hard one themselves
LEAST_TASKS = 600
GOOD_TASKS = 1500


@dataclass(frozen=True, slots=True)
class Facts:
    """Limits; none where there is none.

    Attributes:
        files: open files, soft and hard.
        tasks: processes and threads that this user may have, and has.
        memory: bytes of address space.
        file: bytes of a file.
        group: of the container.
    """

    files: tuple[int | None, int | None]
    tasks: tuple[int | None, int]
    memory: int | None
    file: int | None
    group: Limits


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at this process's limits."""
    facts = gather()
    yield judge_files(facts, local=situation.local)
    yield judge_tasks(facts, local=situation.local)
    if facts.memory is not None or facts.file is not None:
        yield judge_sizes(facts, local=situation.local)


def gather() -> Facts:
    """Asks the kernel."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Facts(
        files=(_limit(soft), _limit(hard)),
        # Root may have any number, whatever the limit says.
        tasks=(_limit(resource.getrlimit(resource.RLIMIT_NPROC)[0]) if os.getuid() else None, _own_tasks()),
        memory=_limit(resource.getrlimit(resource.RLIMIT_AS)[0]),
        file=_limit(resource.getrlimit(resource.RLIMIT_FSIZE)[0]),
        group=read_limits(),
    )


def _limit(value: int) -> int | None:
    return None if value == resource.RLIM_INFINITY else value


def _own_tasks() -> int:
    """Threads of all processes of this user that can be seen."""
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if folder.stat().st_uid == os.getuid():
                total += len(list((folder / "task").iterdir()))
        except OSError:
            continue  # it has ended
    return total


def judge_files(facts: Facts, *, local: bool) -> Finding:
    """Enough open files: what counts is the hard limit."""
    soft, hard = facts.files
    if hard is None:
        return fine("open files", f"{soft or 'unlimited'}, without a hard limit")
    about = f"{soft if soft is not None else hard} (hard limit {hard})"
    remedy = "raise the hard limit (nofile in /etc/security/limits.conf, docker run --ulimit nofile=65536)"
    if hard < LEAST_FILES:
        return lacks("open files", about, machine.LOW_LIMIT, remedy, serious=local)
    if hard < GOOD_FILES:
        return warn("open files", f"{about}; Ray wants {GOOD_FILES}", machine.LOW_LIMIT, remedy)
    return fine("open files", about)


def judge_tasks(facts: Facts, *, local: bool) -> Finding:
    """Room for Ray's processes and threads, of the user's limit and of the container's."""
    rooms = []
    if facts.tasks[0] is not None:
        rooms.append((facts.tasks[0] - facts.tasks[1], facts.tasks[0], "of this user"))
    if facts.group.tasks is not None:
        rooms.append((facts.group.tasks - facts.group.tasks_used, facts.group.tasks, "of the container"))
    if not rooms:
        return fine("processes", "no limit")
    room, limit, whose = min(rooms)
    about = f"room for {max(room, 0)} more processes and threads (limit {whose}: {limit})"
    if room < LEAST_TASKS:
        return lacks("processes", about, machine.LOW_LIMIT, serious=local)
    if room < GOOD_TASKS:
        return warn("processes", f"{about}; Ray and two workers take several hundred", machine.LOW_LIMIT)
    return fine("processes", about)


def judge_sizes(facts: Facts, *, local: bool) -> Finding:
    """No limit of address space or of a file's size: torch and Ray reserve far more than they use."""
    parts = []
    if facts.memory is not None:
        parts.append(f"address space is limited to {gib(facts.memory)}")
    if facts.file is not None:
        parts.append(f"files are limited to {gib(facts.file)}")
    return lacks(
        "sizes",
        " and ".join(parts),
        machine.LOW_LIMIT,
        "ulimit -v unlimited; ulimit -f unlimited",
        serious=local,
    )
