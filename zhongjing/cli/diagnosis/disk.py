"""Room on the disks: of the workdir, of the scratch folder, and what the environment takes."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from zhongjing.cli.diagnosis.finding import Finding, fine, gib, lacks, warn
from zhongjing.cli.diagnosis.situation import Situation, standing
from zhongjing.codes import machine
from zhongjing.train.job.scratch import VARIABLE

LEAST_BYTES = 2**30  # the tiny pipeline writes about 200 MB, and SeaweedFS stops at 256 MiB free
GOOD_BYTES = 5 * 2**30
LEAST_INODES = 20_000
_WALK_SECONDS = 4.0


@dataclass(frozen=True, slots=True)
class Facts:
    """A folder's file system.

    Attributes:
        path: the folder, which may not exist yet.
        free: bytes that this user may still write.
        total: bytes of the file system.
        inodes: files that may still be made; none where the file system does not count them.
        size: bytes that the folder takes, where that was asked for.
        whole: whether ``size`` counts everything, or time ran out.
    """

    path: str
    free: int
    total: int
    inodes: int | None
    size: int | None = None
    whole: bool = True


def check(situation: Situation) -> Iterable[Finding]:
    """Looks at the folders that a run writes to."""
    workdir = gather(situation.workdir, measure=situation.workdir.is_dir())
    yield judge("disk workdir", workdir, local=situation.local)
    scratch = scratch_folder(situation)
    if not (situation.local and same_disk(scratch, situation.workdir)):
        yield judge("disk scratch", gather(scratch), local=situation.local)
    yield judge_environment(gather(Path(sys.prefix), measure=True))


def scratch_folder(situation: Situation) -> Path:
    """Where stages keep what they may lose. Local runs have it in the workdir."""
    if situation.local:
        return situation.workdir / "scratch"
    return Path(situation.environment.get(VARIABLE) or Path(tempfile.gettempdir()) / "zhongjing-scratch")


def same_disk(one: Path, other: Path) -> bool:
    """Whether two folders, where they stand or will be made, are on one file system."""
    return standing(one).stat().st_dev == standing(other).stat().st_dev


def gather(folder: Path, *, measure: bool = False) -> Facts:
    """Asks a folder's file system, and with ``measure`` adds up the folder's files."""
    status = os.statvfs(standing(folder))
    size, whole = measured(folder) if measure else (None, True)
    return Facts(
        path=str(folder),
        free=status.f_frsize * status.f_bavail,
        total=status.f_frsize * status.f_blocks,
        inodes=status.f_favail if status.f_files else None,
        size=size,
        whole=whole,
    )


def measured(folder: Path, seconds: float = _WALK_SECONDS) -> tuple[int, bool]:
    """Bytes on disk below a folder, and whether all of it was seen within ``seconds``."""
    deadline = time.monotonic() + seconds
    total = 0
    waiting = [os.fspath(folder)]
    while waiting:
        if time.monotonic() > deadline:
            return total, False
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # removed meanwhile, or another user's
    return total, True


def judge(name: str, facts: Facts, *, local: bool) -> Finding:
    """Room for a run."""
    about = f"{gib(facts.free)} free of {gib(facts.total)} at {facts.path}{_size(facts)}"
    if facts.inodes is not None:
        about += f", {facts.inodes} inodes free"
    if facts.free < LEAST_BYTES or (facts.inodes is not None and facts.inodes < LEAST_INODES):
        return lacks(name, about, machine.LITTLE_DISK, serious=local)
    if facts.free < GOOD_BYTES:
        return warn(
            name, f"{about}; enough for the tiny pipeline, little for larger models", machine.LITTLE_DISK
        )
    return fine(name, about)


def judge_environment(facts: Facts) -> Finding:
    """What the Python environment takes: for information."""
    return fine("disk python", f"{gib(facts.free)} free at {facts.path}{_size(facts)}")


def _size(facts: Facts) -> str:
    if facts.size is None:
        return ""
    return f", which takes {'' if facts.whole else 'more than '}{gib(facts.size)}"
