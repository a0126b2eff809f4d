"""Finding the supervisor of a workdir, or starting one. Several commands may do this at once."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from zhongjing.backends.local.processes import python_path
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.codes import find
from zhongjing.codes.ray import NOTHING_RUNS, SUPERVISOR_FAILED
from zhongjing.errors import BackendError, BackendUnavailableError

START_SECONDS = 120.0  # the S3 server takes 4 of them

# Supervisors outlive the process that started them on purpose; their handles must not be collected before.
_STARTED: list[subprocess.Popen[bytes]] = []


def attach(
    workdir: Workdir, *, start: bool, idle_seconds: float | None = None, package: str = "jobs"
) -> SupervisorRecord:
    """The record of a supervisor that is ready.

    Args:
        workdir: whose supervisor.
        start: whether to start one where none runs.
        idle_seconds: how long one started here lives on without work or watchers; none: its default.
        package: package of the jobs' entry points, of one started here.

    Raises:
        BackendUnavailableError: none runs, and ``start`` is False.
        BackendError: it does not start; names its log.
    """
    # Before the record is read: a supervisor that is about to leave looks here after taking it away.
    workdir.touch("heartbeat")
    record = workdir.live_record()
    if record is not None and record.ready:
        return record
    if record is None and not start:
        raise BackendUnavailableError(
            "nothing runs in this workdir",
            code=NOTHING_RUNS,
            where=str(workdir.path),
            remedy="start a run with: zhongjing submit --local",
        )
    workdir.prepare()
    workdir.touch("heartbeat")
    return _start(workdir, idle_seconds, package)


def _start(workdir: Workdir, idle_seconds: float | None, package: str) -> SupervisorRecord:
    deadline = time.monotonic() + START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    while time.monotonic() < deadline:
        record = workdir.live_record()
        if record is not None and record.ready:
            return record
        if record is None and (process is None or process.poll() is not None):
            if process is not None and process.returncode != 0:
                raise _broken(workdir)
            # Of several that are started at once one gets the lock, the others end.
            process = _spawn(workdir, idle_seconds, package)
        time.sleep(0.05)
    raise BackendError(
        f"the supervisor was not ready after {START_SECONDS:.0f} s",
        code=SUPERVISOR_FAILED,
        where=str(workdir.log),
        remedy="see the log; the machine may be starved",
    )


def _spawn(workdir: Workdir, idle_seconds: float | None, package: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zhongjing.backends.local.supervisor"]
    command += ["--workdir", str(workdir.path), "--jobs-package", package]
    if idle_seconds is not None:
        command += ["--idle-seconds", str(idle_seconds)]
    with workdir.log.open("ab") as log:
        process = subprocess.Popen(
            command,
            cwd="/",  # it holds no folder of the user's
            env={**os.environ, "PYTHONPATH": python_path()},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    _STARTED.append(process)
    return process


def _broken(workdir: Workdir) -> BackendError:
    record = workdir.record()
    failure = record.failure if record is not None else None
    if failure is not None:
        return BackendError(
            f"the supervisor did not start: {failure.message}",
            code=find(failure.code) or SUPERVISOR_FAILED,
            where=failure.where or str(workdir.log),
            remedy=failure.remedy,
        )
    lines = [line for line in workdir.log.read_text(errors="replace").splitlines() if line.strip()]
    reason = f": {lines[-1].strip()}" if lines else ""
    return BackendError(
        f"the supervisor did not start{reason}", code=SUPERVISOR_FAILED, where=str(workdir.log)
    )
