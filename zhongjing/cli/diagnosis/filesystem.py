"""What the file systems of the workdir and of the temporary folder can do, tried on files of our own.

A lock (flock) keeps a workdir to one supervisor, a rename replaces its record, and Ray's processes meet at
Unix sockets, whose paths must be short.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from zhongjing.cli.diagnosis.finding import Finding, fine, lacks, warn
from zhongjing.cli.diagnosis.situation import Situation, standing
from zhongjing.codes import local as local_codes
from zhongjing.codes import machine

# A socket's path may have 107 bytes. Ray adds 70 to its folder, and other libraries up to 45 to TMPDIR
# (zhongjing.backends.local.temporary).
RAY_BYTES = 107 - 70
TEMPORARY_BYTES = 107 - 45
FALLBACK = Path("/tmp")  # noqa: S108 - where both go when the workdir's path is long
_NETWORK = re.compile(
    r"nfs|cifs|smb|9p|afs|ceph|lustre|gpfs|beegfs|gluster|fuse|drvfs|virtiofs|vboxsf|prl_fs"
)


@dataclass(frozen=True, slots=True)
class Facts:
    """A folder's file system.

    Attributes:
        path: the folder that was tried.
        kind: its type, as the kernel calls it.
        broken: what did not work, with the reason; empty when all did.
        sockets: what a Unix socket in it met; none when it worked.
    """

    path: str
    kind: str
    broken: tuple[str, ...]
    sockets: str | None = None


def check(situation: Situation) -> Iterable[Finding]:
    """Tries the workdir, or the folder that it will be made in, and the temporary folder."""
    yield judge("file system", gather(standing(situation.workdir)), local=situation.local)
    ray, others = socket_folders(situation.workdir)
    tried = [gather(standing(folder)) for folder in dict.fromkeys((ray, others))]
    yield judge_sockets(tried, moved=ray == FALLBACK, local=situation.local)
    yield judge_temporary(gather(Path(tempfile.gettempdir())))


def socket_folders(workdir: Path) -> tuple[Path, Path]:
    """Where Ray's sockets will be, and those of the libraries that workers use."""
    workdir = workdir.absolute()
    ray = workdir if len(os.fsencode(workdir / "ray")) <= RAY_BYTES else FALLBACK
    others = workdir if len(os.fsencode(workdir / "tmp")) <= TEMPORARY_BYTES else FALLBACK
    return ray, others


def gather(folder: Path) -> Facts:
    """Tries locks, renames and sockets in a folder of our own below ``folder``."""
    kind = kind_of(folder, _mountinfo())
    try:
        trial = Path(tempfile.mkdtemp(prefix=".zj-", dir=folder))
    except OSError as error:
        said = error.strerror or str(error)
        return Facts(str(folder), kind, (f"cannot be written ({said})",), said)
    try:
        broken = [problem for attempt in (_lock, _rename) for problem in attempt(trial)]
        return Facts(str(folder), kind, tuple(broken), _socket(trial))
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _lock(folder: Path) -> Iterable[str]:
    with (folder / "lock").open("w") as one, (folder / "lock").open("w") as other:
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            yield f"has no locks ({error.strerror})"
            return
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        yield "gives one lock to two"


def _rename(folder: Path) -> Iterable[str]:
    old, new = folder / "old", folder / "new"
    try:
        old.write_text("old")
        new.write_text("new")
        new.replace(old)
        if old.read_text() != "new" or new.exists():
            yield "does not replace a file by a rename"
    except OSError as error:
        yield f"does not replace a file by a rename ({error.strerror})"


def _socket(folder: Path) -> str | None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server, contextlib.ExitStack() as stack:
        # A relative path, so that only the file system counts and not the length.
        here = os.open(folder, os.O_RDONLY)
        stack.callback(os.close, here)
        try:
            server.bind(f"/proc/self/fd/{here}/s")
            server.listen(1)
        except OSError as error:
            return error.strerror or str(error)
    return None


def _mountinfo() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def kind_of(folder: Path, mountinfo: str) -> str:
    """The type of the file system that holds ``folder``; ``unknown`` where it cannot be told."""
    best, kind = -1, "unknown"
    for line in mountinfo.splitlines():
        head, _, tail = line.partition(" - ")
        if len(head.split()) < 5 or not tail:
            continue
        point = re.sub(r"\\(\d{3})", lambda found: chr(int(found[1], 8)), head.split()[4])
        # Of two at one point the later covers the earlier.
        if folder.resolve().is_relative_to(point) and len(point) >= best:
            best, kind = len(point), tail.split()[0]
    return kind


def judge(name: str, facts: Facts, *, local: bool) -> Finding:
    """Locks and renames, on a disk that stays."""
    about = f"{facts.kind} at {facts.path}"
    if facts.broken:
        return lacks(
            name,
            f"{about} {', '.join(facts.broken)}",
            local_codes.UNUSABLE_WORKDIR if "written" in facts.broken[0] else machine.UNUSABLE_FILE_SYSTEM,
            serious=local,
        )
    if _NETWORK.search(facts.kind):
        return warn(
            name,
            f"{about} works, but is a network or shared file system: locks and speed depend on its server",
            machine.UNUSABLE_FILE_SYSTEM,
            "keep the workdir on a local disk (--workdir)",
        )
    if facts.kind in ("tmpfs", "ramfs"):
        return warn(
            name,
            f"{about} works, but lives in memory: runs take memory there and are gone after a restart",
            machine.UNUSABLE_FILE_SYSTEM,
            "keep the workdir on a disk (--workdir)",
        )
    return fine(name, f"{about} has locks and atomic renames")


def judge_sockets(tried: Sequence[Facts], *, moved: bool, local: bool) -> Finding:
    """Places for sockets; the first of ``tried`` is Ray's."""
    why = f" (the workdir's path is longer than the {RAY_BYTES - 4} bytes that fit)" if moved else ""
    for facts in tried:
        if facts.sockets is not None:
            return lacks(
                "sockets",
                f"Unix sockets are needed at {facts.path}{why}, which cannot hold any ({facts.sockets})",
                machine.UNUSABLE_FILE_SYSTEM,
                f"give a --workdir on a local disk, with a path of at most {RAY_BYTES - 4} bytes",
                serious=local,
            )
    return fine("sockets", f"Ray's sockets fit at {tried[0].path}{why}")


def judge_temporary(facts: Facts) -> Finding:
    """A temporary folder that can be written."""
    unwritable = [problem for problem in facts.broken if "written" in problem]
    if unwritable:
        return warn("temporary", f"{facts.path} {unwritable[0]}", machine.UNUSABLE_FILE_SYSTEM)
    return fine("temporary", f"{facts.path} ({facts.kind}) can be written")
