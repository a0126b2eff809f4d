"""This machine: interpreter, packages, cores, memory, disk, limits, ports, and its file system."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import resource
import socket
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.backends.local.cgroups import read_limits
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, gib, graded, warn
from zhongjing.codes import command
from zhongjing.codes import local as local_codes
from zhongjing.codes import machine as codes

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from zhongjing.cli.diagnosis.checks import Situation

NAME = "zhongjing"
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
_NETWORK = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse", "drvfs", "virtio")


def python(_: Situation) -> Iterator[Finding]:
    """Python as the package asks for it, on Linux."""
    from packaging.specifiers import SpecifierSet

    asked = ""
    with contextlib.suppress(metadata.PackageNotFoundError):
        asked = str(metadata.metadata(NAME)["Requires-Python"] or "")
    version = platform.python_version()
    about = f"Python {version} ({asked or 'any'} is asked for), {sys.platform} {platform.machine()}"
    if not SpecifierSet(asked).contains(version, prereleases=True):
        yield fails("python", about, codes.UNSUPPORTED_PYTHON)
    elif sys.platform != "linux":
        remedy = "run it on Linux, in a container or a virtual machine"
        yield warn("python", f"{about}: only Linux is tested", codes.UNSUPPORTED_PYTHON, remedy)
    else:
        yield fine("python", about)


def packages(situation: Situation) -> Iterator[Finding]:
    """The command line's packages, and training's where runs happen here, are within their ranges."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires(NAME) or []]
    except metadata.PackageNotFoundError:
        said = "zhongjing runs from a folder and is not installed: its requirements are not known"
        remedy = "pip install --editable '.[train]' in the folder of the checkout"
        yield warn("packages", said, command.MISSING_PACKAGE, remedy)
        return
    plain = [each for each in asked if _applies(each, "")]
    groups = [("packages", plain, "pip install --upgrade zhongjing")]
    if situation.local:
        train = [each for each in asked if _applies(each, "train") and each not in plain]
        groups.append(("packages train", train, "pip install --upgrade 'zhongjing[train]'"))
    for name, listed, remedy in groups:
        wrong = [fault for each in listed if (fault := _fault_of(each)) is not None]
        missing = any(fault.endswith("missing") for fault in wrong)
        code = command.MISSING_PACKAGE if missing else codes.UNTESTED_PACKAGES
        said = f"not as zhongjing asks for: {', '.join(wrong)}"
        about = f"{len(listed)} packages are within their ranges"
        yield fails(name, said, code, remedy) if wrong else fine(name, about)


def _applies(asked: Requirement, extra: str) -> bool:
    return asked.marker is None or asked.marker.evaluate({"extra": extra})


def _fault_of(asked: Requirement) -> str | None:
    try:
        version = metadata.version(asked.name)
    except metadata.PackageNotFoundError:
        return f"{asked.name} is missing"
    if asked.specifier.contains(version, prereleases=True):
        return None
    return f"{asked.name} {version} (asked for: {asked.specifier})"


def cores(_: Situation) -> Iterator[Finding]:
    """Enough cores, and not too busy."""
    from zhongjing.backends.local import machine

    usable, there, load = machine.cores(), os.cpu_count() or 1, os.getloadavg()[0]
    about = f"{usable} core{'' if usable == 1 else 's'}"
    if usable < there:
        about += f" by the container's limit or the process's affinity, of {there}"
    few = usable < NEEDED_CORES
    # The load counts the programs of the whole machine, not only the container's.
    more = (
        f"; the tiny pipeline's {NEEDED_CORES} workers take turns"
        if few
        else ": other programs keep them busy"
    )
    yield graded(
        "cores", f"{about}, load {load:.1f}", codes.FEW_CORES, poor=few or load > 2 * there, more=more
    )


def memory(_: Situation) -> Iterator[Finding]:
    """Enough memory for the tiny pipeline, at all and now, and shared memory for Ray's object store."""
    import psutil

    found, limits = psutil.virtual_memory(), read_limits()
    total, available, about = found.total, found.available, ""
    if limits.memory is not None and limits.memory < total:
        about = f" (the container's limit; the machine has {gib(total)})"
        total, available = limits.memory, min(available, limits.memory - limits.memory_used)
    about = f"{gib(available)} available of {gib(total)}{about}"
    if limits.killed:
        about += f"; {limits.killed} processes of this container were killed for memory"
    little = available < NEEDED_MEMORY
    more = f"; the tiny pipeline takes about {gib(NEEDED_MEMORY)}" if little else ""
    bad, poor = total < NEEDED_MEMORY, little or limits.killed > 0
    yield graded("memory", about, codes.LITTLE_MEMORY, bad=bad, poor=poor, more=more)
    shared = Path("/dev/shm")  # noqa: S108 - Ray's own choice
    if not shared.is_dir():
        about = "there is no /dev/shm: Ray and NCCL use the disk instead"
        yield warn("shared memory", about, codes.LITTLE_SHARED_MEMORY)
        return
    free = psutil.disk_usage(str(shared)).free
    about, more = f"{gib(free)} free at {shared}", f"; Ray takes {gib(SHARED_MEMORY)}"
    poor = free < SHARED_MEMORY
    yield graded("shared memory", about, codes.LITTLE_SHARED_MEMORY, poor=poor, more=more)


# The disk


def disk(situation: Situation) -> Iterator[Finding]:
    """Space where runs will write, locks on a disk that stays, and Unix sockets."""
    import psutil

    folder = standing(situation.workdir)
    free, inodes = psutil.disk_usage(str(folder)).free, os.statvfs(folder).f_favail
    few = 0 < inodes < LEAST_INODES  # 0 where they are not counted
    more = (
        f", and only {inodes} inodes" if few else "; enough for the tiny pipeline, little for larger models"
    )
    bad = few or free < LEAST_DISK
    about = f"{gib(free)} free at {folder}"
    more = more if few or not bad else ""
    yield graded("disk workdir", about, codes.LITTLE_DISK, bad=bad, poor=free < GOOD_DISK, more=more)
    yield _file_system(folder)
    yield _sockets(situation.workdir)


def standing(folder: Path) -> Path:
    """``folder``, or the nearest folder above it that exists; without links."""
    folder = folder.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return folder.resolve()


def _file_system(folder: Path) -> Finding:
    import psutil

    kinds = {each.mountpoint: each.fstype for each in psutil.disk_partitions(all=True)}
    place = next((str(each) for each in (folder, *folder.parents) if str(each) in kinds), "")
    kind, fault = kinds.get(place, "unknown"), fault_of(folder)
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


def _sockets(workdir: Path) -> Finding:
    """Ray's processes meet at Unix sockets, which shared file systems often lack."""
    from zhongjing.backends.local.temporary import socket_folder

    folder = standing(socket_folder(workdir.absolute()))
    try:
        with tempfile.TemporaryDirectory(prefix=".zj-", dir=folder) as trial, contextlib.ExitStack() as stack:
            # Through a descriptor, so that only the file system counts and not the path's length.
            here = os.open(trial, os.O_RDONLY)
            stack.callback(os.close, here)
            server = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            server.bind(f"/proc/self/fd/{here}/s")
    except OSError as error:
        said = f"Unix sockets are needed at {folder} and cannot be made ({error.strerror or error})"
        remedy = "give a --workdir on a local disk, with a short path"
        return fails("sockets", said, codes.UNUSABLE_FILE_SYSTEM, remedy)
    return fine("sockets", f"Unix sockets can be made at {folder}")


# Limits and ports


def limits(_: Situation) -> Iterator[Finding]:
    """This process's limits, and its container's, against what Ray and the S3 server take."""
    files = _hard_limit(resource.RLIMIT_NOFILE)
    most = GOOD_FILES if files is None else files
    remedy = "raise the hard limit (nofile in /etc/security/limits.conf, docker run --ulimit nofile=65536)"
    about = "unlimited" if files is None else f"at most {files}"
    bad, poor = most < LEAST_FILES, most < GOOD_FILES
    more = f"; Ray wants {GOOD_FILES}"
    yield graded("open files", about, codes.LOW_LIMIT, bad=bad, poor=poor, more=more, remedy=remedy)
    yield _processes()
    sizes = [
        f"{name} limited to {gib(size)}"
        for name, kind in (("address space", resource.RLIMIT_AS), ("a file's size", resource.RLIMIT_FSIZE))
        if (size := _hard_limit(kind)) is not None
    ]
    if sizes:
        # torch and Ray reserve far more than they use.
        yield fails("sizes", ", ".join(sizes), codes.LOW_LIMIT, "ulimit -v unlimited; ulimit -f unlimited")


def _processes() -> Finding:
    group, rooms = read_limits(), []
    # Root may have any number, whatever the limit says.
    if os.getuid() and (own := _hard_limit(resource.RLIMIT_NPROC)) is not None:
        rooms.append((own - own_tasks(), "this user"))
    if group.tasks is not None:
        rooms.append((group.tasks - group.tasks_used, "the container"))
    if not rooms:
        return fine("processes", "no limit")
    room, whose = min(rooms)
    about = f"{whose} may start {max(room, 0)} more processes and threads"
    more, bad, poor = "; Ray and two workers take several hundred", room < LEAST_TASKS, room < GOOD_TASKS
    return graded("processes", about, codes.LOW_LIMIT, bad=bad, poor=poor, more=more)


def _hard_limit(kind: int) -> int | None:
    hard = resource.getrlimit(kind)[1]
    return None if hard == resource.RLIM_INFINITY else hard


def own_tasks() -> int:
    """Processes and threads of this user."""
    import psutil

    listed = [each.info for each in psutil.process_iter(["uids", "num_threads"])]
    return sum(
        each["num_threads"] or 0 for each in listed if each["uids"] and each["uids"].real == os.getuid()
    )


def ports(_: Situation) -> Iterator[Finding]:
    """Ports of the loopback can be listened on, as Ray will."""
    from zhongjing.backends.local.processes import free_ports

    try:
        free_ports(PORTS)
    except OSError as error:
        yield fails("ports", f"127.0.0.1: {error}", codes.LOOPBACK_BLOCKED)
    else:
        yield fine("ports", f"{PORTS} ports of 127.0.0.1 can be listened on")
