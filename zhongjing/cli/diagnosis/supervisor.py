"""The workdir's supervisor: whether it lives and works, what a dead one left, and who can read its keys."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.codes import machine
from zhongjing.codes import ray as codes

if TYPE_CHECKING:
    from zhongjing.backends.local.workdir import Workdir
    from zhongjing.cli.diagnosis.checks import Situation

STARTING_SECONDS = 120.0  # a supervisor that is not ready after so long will not be
SECRETS = ("environment.json", "ray-token", "s3/s3.json")


def supervisor(situation: Situation) -> Iterator[Finding]:
    """Looks at the workdir of local runs; starts nothing."""
    from zhongjing.backends.local.workdir import Workdir

    if not situation.workdir.is_dir():
        yield fine("supervisor", f"nothing was run at {situation.workdir} yet")
        return
    workdir = Workdir(situation.workdir)
    yield judge(workdir)
    yield secrets(workdir.path)


def judge(workdir: Workdir) -> Finding:
    """A supervisor that works, or none and no trace of one."""
    import psutil

    record, holder = workdir.record(), workdir.holder()
    if record is not None and record.process.is_alive:
        pid = record.process.pid
        if psutil.Process(pid).status() == psutil.STATUS_STOPPED:
            said = f"process {pid} is stopped: nothing goes on at {workdir.path}"
            remedy = f"let it go on with kill -CONT {pid}, or end it and give the same command again"
            return fails("supervisor", said, codes.SUPERVISOR_SILENT, remedy)
        if record.error is not None:
            return fails("supervisor", f"process {pid} has failed: {record.error}", codes.SUPERVISOR_FAILED)
        if record.ready:
            return fine("supervisor", f"process {pid} drives {workdir.path}")
        return _starting(workdir, pid)
    if holder is not None:
        return _starting(workdir, holder.pid)
    running = left_running(workdir)
    if record is not None:
        why = f" (it had failed: {record.error})" if record.error else ""
        said = f"{workdir.path}/supervisor.json names process {record.process.pid}, which is gone{why}"
    elif (workdir.path / "supervisor.json").exists():
        said = f"{workdir.path}/supervisor.json cannot be read"
    elif running:
        said = f"none runs at {workdir.path}"
    else:
        return fine("supervisor", f"none runs at {workdir.path}, and none left anything behind")
    leftover = f"; {' and '.join(running)} still run" if running else ""
    return warn("supervisor", said + leftover, machine.STALE_SUPERVISOR)


def _starting(workdir: Workdir, pid: int) -> Finding:
    import psutil

    age = time.time() - psutil.Process(pid).create_time()
    said = f"process {pid} has been starting its services for {age:.0f} s"
    if age > STARTING_SECONDS:
        remedy = f"see {workdir.log}; end the process and give the same command again"
        return fails("supervisor", said, codes.SUPERVISOR_SILENT, remedy)
    return fine("supervisor", said)


def left_running(workdir: Workdir) -> list[str]:
    """What still runs of a supervisor that is gone."""
    import psutil

    from zhongjing.backends.local.processes import marked
    from zhongjing.backends.local.ray_head import RayHead

    left = len(marked(RayHead(workdir.path).mark))
    running = [f"{left} processes of its Ray"] if left else []
    try:
        pid = json.loads((workdir.s3 / "server.json").read_text())["pid"]
        serves = psutil.Process(pid).name() == "weed"
    except (OSError, ValueError, LookupError, TypeError, psutil.Error):
        serves = False
    return [*running, "its S3 server"] if serves else running


def secrets(folder: Path) -> Finding:
    """Keys are their owner's alone: by the workdir's permissions, or by their own."""
    shut = not folder.stat().st_mode & (stat.S_IXGRP | stat.S_IXOTH)
    files = [folder / name for name in SECRETS if (folder / name).exists() and not shut]
    found = [os.fspath(each) for each in files if each.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)]
    if found:
        return fails("secrets", f"other users can read {', '.join(found)}", machine.OPEN_SECRETS)
    return fine("secrets", "keys in the workdir are their owner's alone")
