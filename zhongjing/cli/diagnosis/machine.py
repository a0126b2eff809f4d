"""This machine: cores, memory, disk, limits, ports, and what the workdir's file system can do."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import socket
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from zhongjing.backends.local.cgroups import Limits, read_limits
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, gib, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import local as local_codes
from zhongjing.codes import machine as codes

NEEDED_CORES = 2  # the tiny pipeline has two workers
NEEDED_MEMORY = 5 * 2**30  # bytes: the tiny pipeline with two workers, Ray and the S3 server, on a CPU
SHARED_MEMORY = 256 * 2**20  # bytes: Ray's object store takes 200 MiB of it
LEAST_DISK = 2**30  # bytes: the tiny pipeline writes about 200 MB, and SeaweedFS stops at 256 MiB free
GOOD_DISK = 5 * 2**30
LEAST_INODES = 20_000
LEAST_FILES = 1024
GOOD_FILES = 4096  # Ray warns below; Ray and the S3 server raise the soft limit to the hard one themselves
LEAST_TASKS = 600
GOOD_TASKS = 1500
PORTS = 24  # of Ray, and some to choose from
_NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "afs",
    "ceph",
    "lustre",
    "gpfs",
    "beegfs",
    "fuse",
    "drvfs",
    "virtiofs",
)


# Cores and memory


def check_cores(situation: Situation) -> Iterable[Finding]:
    """Counts cores."""
    from zhongjing.backends.local import machine

    yield judge_cores(machine.cores(), os.cpu_count() or 1, os.getloadavg()[0])


def judge_cores(cores: int, machine: int, load: float) -> Finding:
    """Enough cores, and not too busy.

    Args:
        cores: that this process may use.
        machine: that there are.
        load: of a minute. It counts the whole machine's programs, not only the container's.
    """
    about = f"{cores} core{'' if cores == 1 else 's'}"
    if cores < machine:
        about += f" by the container's limit or the process's affinity, of {machine}"
    about += f", load {load:.1f}"
    if cores < NEEDED_CORES:
        return warn(
            "cores", f"{about}; the tiny pipeline's {NEEDED_CORES} workers take turns", codes.FEW_CORES
        )
    if load > 2 * machine:
        return warn("cores", f"{about}: other programs keep them busy", codes.FEW_CORES)
    return fine("cores", about)


def check_memory(situation: Situation) -> Iterable[Finding]:
    """Asks for memory and shared memory."""
    import psutil

    memory = psutil.virtual_memory()
    yield judge_memory(memory.total, memory.available, read_limits())
    shared = Path("/dev/shm")  # noqa: S108 - Ray's own choice
    yield judge_shared(psutil.disk_usage(str(shared)).free if shared.is_dir() else None)


def judge_memory(total: int, available: int, limits: Limits) -> Finding:
    """Enough for the tiny pipeline: at all, and now.

    Args:
        total: bytes of the machine.
        available: bytes of it that are.
        limits: of the container.
    """
    about = ""
    if limits.memory is not None and limits.memory < total:
        about = f" (the container's limit; the machine has {gib(total)})"
        total, available = limits.memory, min(available, limits.memory - limits.memory_used)
    about = f"{gib(available)} available of {gib(total)}{about}"
    if limits.killed:
        about += f"; {limits.killed} processes of this container were killed for memory"
    needs = f"{about}; the tiny pipeline takes about {gib(NEEDED_MEMORY)}"
    if total < NEEDED_MEMORY:
        return fails("memory", needs, codes.LITTLE_MEMORY)
    if available < NEEDED_MEMORY:
        return warn("memory", needs, codes.LITTLE_MEMORY)
    return warn("memory", about, codes.LITTLE_MEMORY) if limits.killed else fine("memory", about)


def judge_shared(free: int | None) -> Finding:
    """Room for Ray's object store, in bytes; None without a /dev/shm."""
    if free is None:
        about = "there is no /dev/shm: Ray and NCCL use the disk instead"
        return warn("shared memory", about, codes.LITTLE_SHARED_MEMORY)
    about = f"{gib(free)} free at /dev/shm"
    if free < SHARED_MEMORY:
        return warn("shared memory", f"{about}; Ray takes {gib(SHARED_MEMORY)}", codes.LITTLE_SHARED_MEMORY)
    return fine("shared memory", about)


# The disk


def check_disk(situation: Situation) -> Iterable[Finding]:
    """Asks for room where runs will write, and tries the file system."""
    import psutil

    folder = standing(situation.workdir)
    yield judge_disk(folder, psutil.disk_usage(str(folder)).free, os.statvfs(folder).f_favail)
    kinds = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    place = next((str(each) for each in (folder, *folder.parents) if str(each) in kinds), "")
    yield judge_file_system(folder, kinds.get(place, "unknown"), fault_of(folder))
    yield check_sockets(situation.workdir)


def standing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists; without links."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder.resolve()


def judge_disk(folder: Path, free: int, inodes: int) -> Finding:
    """Room for a run: bytes, and files that may still be made (0 where they are not counted)."""
    about = f"{gib(free)} free at {folder}"
    if 0 < inodes < LEAST_INODES:
        return fails("disk workdir", f"{about}, and only {inodes} inodes", codes.LITTLE_DISK)
    if free < LEAST_DISK:
        return fails("disk workdir", about, codes.LITTLE_DISK)
    if free < GOOD_DISK:
        about += "; enough for the tiny pipeline, little for larger models"
        return warn("disk workdir", about, codes.LITTLE_DISK)
    return fine("disk workdir", about)


def fault_of(folder: Path) -> str | None:
    """What does not work in a folder, tried on a file of our own: writing, and locks."""
    with contextlib.ExitStack() as stack:
        try:
            one = stack.enter_context(tempfile.NamedTemporaryFile(prefix=".zj-", dir=folder))
            other = stack.enter_context(Path(one.name).open())
        except OSError as error:
            return f"cannot be written ({error.strerror})"
        try:
            fcntl.flock(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            return f"has no locks ({error.strerror})"
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return None
        return "gives one lock to two"


def judge_file_system(folder: Path, kind: str, fault: str | None) -> Finding:
    """Locks, on a disk that stays."""
    about = f"{kind} at {folder}"
    if fault is not None:
        code = local_codes.UNUSABLE_WORKDIR if "written" in fault else codes.UNUSABLE_FILE_SYSTEM
        return fails("file system", f"{about} {fault}", code)
    if kind.startswith(_NETWORK):
        said = f"{about} works, but is a network or shared file system: locks and speed depend on its server"
        remedy = "keep the workdir on a local disk (--workdir)"
        return warn("file system", said, codes.UNUSABLE_FILE_SYSTEM, remedy)
    if kind in ("tmpfs", "ramfs"):
        said = f"{about} works, but lives in memory: runs take memory there and are gone after a restart"
        return warn("file system", said, codes.UNUSABLE_FILE_SYSTEM, "keep the workdir on a disk (--workdir)")
    return fine("file system", f"{about} can be written and has locks")


def check_sockets(workdir: Path) -> Finding:
    """Ray's processes meet at Unix sockets, which shared file systems often lack."""
    from zhongjing.backends.local.temporary import socket_folder

    folder = standing(socket_folder(workdir.absolute()))
    fault = socket_fault(folder)
    if fault is None:
        return fine("sockets", f"Unix sockets can be made at {folder}")
    said = f"Unix sockets are needed at {folder} and cannot be made ({fault})"
    return fails(
        "sockets", said, codes.UNUSABLE_FILE_SYSTEM, "give a --workdir on a local disk, with a short path"
    )


def socket_fault(folder: Path) -> str | None:
    """What a Unix socket in a folder meets; None when it works."""
    try:
        with tempfile.TemporaryDirectory(prefix=".zj-", dir=folder) as trial, contextlib.ExitStack() as stack:
            # Through a descriptor, so that only the file system counts and not the path's length.
            here = os.open(trial, os.O_RDONLY)
            stack.callback(os.close, here)
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            server.bind(f"/proc/self/fd/{here}/s")
    except OSError as error:
        return error.strerror or str(error)
    return None


# Limits and ports


def check_limits(situation: Situation) -> Iterator[Finding]:
    """Asks for this process's limits."""
    yield judge_files(_limit(resource.RLIMIT_NOFILE))
    # Root may have any number, whatever the limit says.
    own = _limit(resource.RLIMIT_NPROC) if os.getuid() else None
    yield judge_tasks(own, _own_tasks() if own is not None else 0, read_limits())
    sizes = [
        f"{name} limited to {gib(size)}"
        for name, kind in (("address space", resource.RLIMIT_AS), ("a file's size", resource.RLIMIT_FSIZE))
        if (size := _limit(kind)) is not None
    ]
    if sizes:
        # torch and Ray reserve far more than they use.
        yield fails("sizes", ", ".join(sizes), codes.LOW_LIMIT, "ulimit -v unlimited; ulimit -f unlimited")


def _limit(kind: int) -> int | None:
    """The hard limit; None where there is none."""
    hard = resource.getrlimit(kind)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def _own_tasks() -> int:
    import psutil

    mine = os.getuid()
    listed = psutil.process_iter(["uids", "num_threads"])
    return sum(
        each.info["num_threads"] or 0
        for each in listed
        if each.info["uids"] and each.info["uids"].real == mine
    )


def judge_files(hard: int | None) -> Finding:
    """Enough open files: what counts is the hard limit."""
    about = f"at most {hard}" if hard is not None else "unlimited"
    remedy = "raise the hard limit (nofile in /etc/security/limits.conf, docker run --ulimit nofile=65536)"
    if hard is not None and hard < LEAST_FILES:
        return fails("open files", about, codes.LOW_LIMIT, remedy)
    if hard is not None and hard < GOOD_FILES:
        return warn("open files", f"{about}; Ray wants {GOOD_FILES}", codes.LOW_LIMIT, remedy)
    return fine("open files", about)


def judge_tasks(limit: int | None, used: int, group: Limits) -> Finding:
    """Room for Ray's processes and threads, of the user's limit and of the container's."""
    rooms = [(limit - used, "this user")] if limit is not None else []
    if group.tasks is not None:
        rooms.append((group.tasks - group.tasks_used, "the container"))
    if not rooms:
        return fine("processes", "no limit")
    room, whose = min(rooms)
    about = f"{whose} may start {max(room, 0)} more processes and threads"
    if room < GOOD_TASKS:
        tell = fails if room < LEAST_TASKS else warn
        return tell("processes", f"{about}; Ray and two workers take several hundred", codes.LOW_LIMIT)
    return fine("processes", about)


def check_ports(situation: Situation) -> Iterable[Finding]:
    """Listens on ports of the loopback, where Ray will."""
    from zhongjing.backends.local.processes import free_ports

    try:
        free_ports(PORTS)
    except OSError as error:
        yield fails("ports", f"127.0.0.1: {error}", codes.LOOPBACK_BLOCKED)
    else:
        yield fine("ports", f"{PORTS} ports of 127.0.0.1 can be listened on")
