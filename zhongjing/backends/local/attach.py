"""Finding the supervisor of a workdir, or starting one. Several commands may do this at once.

One that is silent (stopped, or hanging) is ended and replaced: its record says for sure which process it is,
and losing it costs nothing. One of an older release is replaced when nothing runs.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time

from packaging.version import InvalidVersion, Version

import zhongjing
from zhongjing.backends.local.heartbeat import FRESH_SECONDS, Monitor
from zhongjing.backends.local.processes import ProcessRecord, python_path, wait_until
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.codes import find
from zhongjing.codes.ray import NOTHING_RUNS, SUPERVISOR_FAILED, SUPERVISOR_SILENT
from zhongjing.errors import BackendError, BackendUnavailableError

logger = logging.getLogger(__name__)

START_SECONDS = 120.0  # the S3 server takes 4 of them
LEAVE_SECONDS = 30.0  # an idle supervisor ends Ray and S3 before it leaves
_KILL_SECONDS = 10.0
_LOOK_SECONDS = 0.05

# Supervisors outlive the process that started them on purpose; their handles must not be collected before.
_STARTED: list[subprocess.Popen[bytes]] = []
_TOLD: set[int] = set()  # processes of supervisors of another release that were spoken of


def attach(
    workdir: Workdir, *, start: bool, idle_seconds: float | None = None, package: str = "jobs"
) -> SupervisorRecord:
    """The record of a supervisor that is ready.

    Args:
        workdir: whose supervisor.
        start: whether to start one where none runs, or none that gives a sign of life.
        idle_seconds: how long one started here lives on without work or watchers; none: its default.
        package: package of the jobs' entry points, of one started here.

    Raises:
        BackendUnavailableError: none runs, and ``start`` is False.
        BackendError: it does not start, or is silent and cannot be ended; names its log.
    """
    # Before the record is read: a supervisor that is about to leave looks here after taking it away.
    workdir.touch("heartbeat")
    record = workdir.live_record()
    if record is None and not start:
        raise BackendUnavailableError(
            "nothing runs in this workdir",
            code=NOTHING_RUNS,
            where=str(workdir.path),
            remedy="start a run with: `zhongjing submit --local`",
        )
    if record is not None and record.ready and (not start or _is_fresh(workdir, record)):
        if not (start and _replaces(record)):
            return record
        _ask_to_leave(record)
    workdir.prepare()
    workdir.touch("heartbeat")
    return _start(workdir, idle_seconds, package)


def _start(workdir: Workdir, idle_seconds: float | None, package: str) -> SupervisorRecord:
    deadline = time.monotonic() + START_SECONDS
    process: subprocess.Popen[bytes] | None = None
    monitor = Monitor(lambda: workdir.touched("alive"))
    while time.monotonic() < deadline:
        silent = monitor.check()
        record = workdir.live_record()
        if record is not None and record.ready and (monitor.heard or _is_fresh(workdir, record)):
            return record
        # Who has the lock is there before its record, and still there when it has taken its record away.
        holder = record.process if record is not None else workdir.holder()
        if holder is not None:
            if silent:
                _end_silent(holder, workdir)
                monitor = Monitor(lambda: workdir.touched("alive"))
        elif process is None or process.poll() is not None:
            if process is not None and process.returncode != 0:
                raise _broken(workdir)
            # Of several that are started at once one gets the lock, the others end.
            process = _spawn(workdir, idle_seconds, package)
        time.sleep(_LOOK_SECONDS)
    raise BackendError(
        f"the supervisor was not ready after {START_SECONDS:.0f} s",
        code=SUPERVISOR_FAILED,
        where=str(workdir.log),
        remedy="see the log; the machine may be starved",
    )


def _is_fresh(workdir: Workdir, record: SupervisorRecord) -> bool:
    # The first releases left no sign.
    return not record.version or abs(time.time() - workdir.touched("alive")) < FRESH_SECONDS


def _end_silent(process: ProcessRecord, workdir: Workdir) -> None:
    """Ends a supervisor that gives no sign. Its Ray and its S3 server live on and are adopted."""
    logger.warning("the supervisor (process %d) gives no sign of life: it is replaced", process.pid)
    try:
        if process.is_alive:
            os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    except PermissionError:
        pass
    if not wait_until(lambda: not process.is_alive, _KILL_SECONDS):
        raise BackendError(
            f"the supervisor (process {process.pid}) gives no sign of life and cannot be ended",
            code=SUPERVISOR_SILENT,
            where=str(workdir.path),
        )


def _replaces(record: SupervisorRecord) -> bool:
    """Whether this release takes the place of the supervisor's now; says so if it cannot."""
    try:
        newer = Version(zhongjing.__version__) > Version(record.version)
    except InvalidVersion:
        return False
    if newer and record.active and record.process.pid not in _TOLD:
        _TOLD.add(record.process.pid)
        logger.warning(
            "%s is run by a supervisor of release %s; release %s takes over when it is done",
            ", ".join(record.active),
            record.version,
            zhongjing.__version__,
        )
    return newer and not record.active


def _ask_to_leave(record: SupervisorRecord) -> None:
    logger.info("the supervisor of release %s makes way", record.version)
    try:
        os.kill(record.process.pid, signal.SIGTERM)
    except OSError:
        return  # gone, or of another user: then it stays in use
    wait_until(lambda: not record.process.is_alive, LEAVE_SECONDS)


def _spawn(workdir: Workdir, idle_seconds: float | None, package: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "zhongjing.backends.local.supervisor"]
    command += ["--workdir", str(workdir.path), "--jobs-package", package]
    if idle_seconds is not None:
        command += ["--idle-seconds", str(idle_seconds)]
    # The workdir may be a folder that others can look into: what the run writes there is its owner's alone.
    appending = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with os.fdopen(os.open(workdir.log, appending, 0o600), "ab") as log:
        process = subprocess.Popen(
            command,
            cwd="/",  # it holds no folder of the user's
            # Files and logs are UTF-8 whatever the terminal is: paths and messages may hold any letters.
            env={**os.environ, "PYTHONPATH": python_path(), "PYTHONUTF8": "1"},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            umask=0o077,
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
