"""Where processes are that make no step: their Python stacks, taken by py-spy from outside.

A process that hangs cannot be asked, and one that was stopped (SIGSTOP) would not answer a signal; py-spy
reads their memory. It comes with ray[default]. Some systems allow that only to root (ptrace_scope): the text
says so then.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import psutil

_MOST = 24  # processes of one attempt that are looked into
_EACH_SECONDS = 5.0


def dump(processes: Iterable[psutil.Process], *, seconds: float = 30.0) -> str:
    """What each process is and where it is; never raises."""
    program = _program()
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


def _program() -> str | None:
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.is_file() else shutil.which("py-spy")
