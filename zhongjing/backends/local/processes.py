"""Processes of this machine: recognised for sure (an id may be used again), found, ended and looked into."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

import zhongjing
from zhongjing.storage.identity import start_mark
from zhongjing.storage.manifest import Record

# What every process that a supervisor starts for Ray has in its environment; children inherit it.
MARK_VARIABLE = "ZHONGJING_RUN"
# The module that uploads a checkpoint beside the training, as it stands in its command line.
UPLOADER = "zhongjing.storage.checkpoint_upload"
# How long a killed process may take to be gone: a busy machine has to give back its memory first.
FORCED_SECONDS = 10.0


class ProcessRecord(Record):
    """A process, by its id and the mark of its start (:func:`zhongjing.storage.identity.start_mark`)."""

    pid: int
    started: str

    @property
    def is_alive(self) -> bool:
        """Whether this very process still runs."""
        return start_mark(self.pid) == self.started


def record(pid: int) -> ProcessRecord:
    """The record of a process that runs now."""
    return ProcessRecord(pid=pid, started=start_mark(pid) or "")


def marked(mark: str, belongs: Callable[[Mapping[str, str]], bool] | None = None) -> list[psutil.Process]:
    """All processes of this user that carry ``mark``, wherever in the process tree they are by now.

    Ray puts jobs and their watchers into sessions of their own, so a process group does not hold them all.

    Args:
        mark: value of the variable that says whose a process is.
        belongs: asked with the environment of each; all unless given.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            environment = environment_of(process)
            ours = process.pid != os.getpid() and environment.get(MARK_VARIABLE) == mark
            if ours and (belongs is None or belongs(environment)):
                found.append(process)
        except (psutil.Error, OSError):
            continue  # another user's, or gone
    return found


def environment_of(process: psutil.Process) -> dict[str, str]:
    """What a process was started with.

    psutil stops at the first gap, and Ray's agents make one: they write a title over the beginning.

    Raises:
        OSError: it is another user's, or gone.
    """
    entries = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    pairs = (os.fsdecode(entry).partition("=") for entry in entries)
    return {name: value for name, sign, value in pairs if sign}


def is_uploading(process: psutil.Process) -> bool:
    """Whether a process is bringing a checkpoint to the store, and runs: that may be waited for."""
    try:
        words, status = process.cmdline(), process.status()
    except psutil.Error:
        return False
    return UPLOADER in words and status != psutil.STATUS_STOPPED


def end_marked(
    mark: str, grace: float = 3.0, *, spare: Callable[[psutil.Process], bool] | None = None
) -> int:
    """Ends all processes that carry ``mark`` but those to be spared; returns how many there were.

    With them go their children: Ray's agents write a title over the beginning of their environment, and with
    it often the mark. They are asked first, and then forced until none is left: a killed parent may just have
    started another child, and one that has only begun shows its environment a moment later.
    """
    seen: set[psutil.Process] = set()
    total = 0
    force = False
    deadline = time.monotonic() + grace + FORCED_SECONDS
    while True:
        for process in marked(mark):
            with contextlib.suppress(psutil.Error):
                seen |= {process, *process.children(recursive=True)}
        seen = {process for process in seen if process.pid != os.getpid() and _runs(process)}
        left = [process for process in seen if spare is None or not spare(process)]
        if not left or time.monotonic() > deadline:
            return total
        total = max(total, len(left))
        end(left, force=force, grace=grace)
        force = True


def _runs(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end(processes: Iterable[psutil.Process], *, force: bool, grace: float) -> None:
    """Asks processes to end (or forces them) and waits for them up to ``grace`` seconds."""
    listed = list(processes)
    for process in listed:
        with contextlib.suppress(psutil.Error):
            process.kill() if force else process.terminate()
    psutil.wait_procs(listed, timeout=grace)


class StartLimit:
    """Counts starts of a service: with ``most`` of them within ``seconds`` something kills it every time."""

    def __init__(self, name: str, most: int, seconds: float) -> None:
        self.message = f"{name} died {most} times within {seconds / 60:.0f} minutes"
        self._seconds = seconds
        self._starts: deque[float] = deque(maxlen=most)

    def is_reached(self) -> bool:
        """Whether the service may not be started again now; notes the start otherwise."""
        now = time.monotonic()
        if len(self._starts) == self._starts.maxlen and now - self._starts[0] < self._seconds:
            return True
        self._starts.append(now)
        return False


def free_ports(count: int, low: int = 22_100, high: int = 31_900) -> list[int]:
    """Ports of the loopback that nothing listens on, below the range that the kernel deals from."""
    chosen: list[int] = []
    for port in random.SystemRandom().sample(range(low, high), high - low):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        chosen.append(port)
        if len(chosen) == count:
            return chosen
    raise OSError(f"no {count} free ports between {low} and {high}")


def is_listening(port: int) -> bool:
    """Whether something accepts connections on a port of the loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0


def python_path() -> str:
    """PYTHONPATH under which a child finds this very package, wherever it runs, also from a checkout."""
    root = Path(zhongjing.__file__).absolute().parent.parent
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(Path(path).absolute()) for path in given if path]
    if (root / "pyproject.toml").is_file() and str(root) not in paths:
        paths.insert(0, str(root))
    return os.pathsep.join(paths)


def wait_until(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Waits until ``condition()`` is true; returns whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


# Stacks: a process that hangs cannot be asked, and one that was stopped (SIGSTOP) would not answer a signal;
# py-spy, which comes with ray[default], reads their memory. Some systems allow that only to root
# (ptrace_scope): the text says so then.

_MOST = 24  # processes of one attempt that are looked into
_EACH_SECONDS = 5.0


def dump_stacks(processes: Iterable[psutil.Process], *, seconds: float = 30.0) -> str:
    """What each process is and where it is; never raises."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.is_file() else shutil.which("py-spy")
    deadline = time.monotonic() + seconds
    parts = []
    for process in list(processes)[:_MOST]:
        try:
            words = process.cmdline()
            head = f"process {process.pid} ({process.status()}): {' '.join(words)[:200]}"
        except psutil.Error:
            continue  # gone
        if not words or not ("python" in Path(words[0]).name or words[0].startswith("ray::")):
            continue  # shells and the like
        left = min(_EACH_SECONDS, deadline - time.monotonic())
        parts.append(f"{head}\n{_stacks(program, process.pid, left)}")
    return "\n\n".join(parts) + "\n" if parts else "no process of the attempt was found\n"


def _stacks(program: str | None, pid: int, seconds: float) -> str:
    if program is None:
        return "py-spy is not installed"
    if seconds <= 0:
        return "not looked at: it took too long already"
    # Non-blocking: it neither stops the process nor waits for one that is stopped.
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"could not be looked at: {error}"
    return done.stdout.strip() if done.returncode == 0 else f"could not be looked at: {done.stderr.strip()}"
