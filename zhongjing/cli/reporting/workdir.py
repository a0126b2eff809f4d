"""What lies in the workdir beside the object store: records and logs of supervisor, Ray and commands."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from zhongjing.backends.local.processes import marked
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.local.workdir import Workdir
from zhongjing.cli.errorlog import stray_folders
from zhongjing.cli.reporting.bundle import Bundle
from zhongjing.cli.reporting.streams import Readable, local_file

SMALL_LOG_BYTES = 512 * 2**10
MOST_WORKER_LOGS = 64
MOST_COMMAND_LOGS = 50
# Below a Ray session's logs: its servers, agents and job drivers whole, of workers only the last words.
_RAY_SERVERS = re.compile(
    r"(?:gcs_server|raylet|dashboard|monitor|log_monitor|runtime_env_agent|agent|job-driver|event_)"
)
_RAY_WORKERS = re.compile(r"(?:worker-|python-core-|ray-train|runtime_env_setup)")
_RECENT_SECONDS = 7 * 86_400.0


def service_environments(workdir: Path) -> list[Mapping[str, str]]:
    """Environments of the workdir's supervisor and of its Ray, also of one that lost its supervisor.

    Jobs inherit them: what was secret in the shell that submitted is found, though it is not in this one.
    """
    record = Workdir(workdir).live_record()
    processes = marked(RayHead(workdir).mark)
    if record is not None:
        with contextlib.suppress(psutil.Error):
            processes.append(psutil.Process(record.process.pid))
    found: list[Mapping[str, str]] = []
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            environment = dict(process.environ())
            if environment not in found:
                found.append(environment)
    return found


def collect_workdir(bundle: Bundle, path: Path) -> None:
    """Packs records and logs of a workdir.

    To be called before a session is opened: a supervisor that starts rotates some logs and removes others.
    """
    path = path.resolve()
    workdir = Workdir(path)
    _document(bundle, "workdir/supervisor.json", path / "supervisor.json")
    _document(bundle, "workdir/s3/server.json", path / "s3" / "server.json")
    for name in ("supervisor.log", "ray.log", "s3/weed.log", "s3/weed.log.1"):
        _log(bundle, f"workdir/{name}", path / name)
    _collect_command_logs(bundle, path / "logs", "workdir/logs", "*.log")
    _collect_ray(bundle, workdir)
    bundle.json("workdir/sizes.json", _sizes(workdir))


def collect_stray_logs(bundle: Bundle) -> None:
    """Packs errors of the last week's commands that found no workdir."""
    for folder in stray_folders():
        _collect_command_logs(bundle, folder, "commands", "error-*.log")


def _collect_command_logs(bundle: Bundle, folder: Path, name: str, pattern: str) -> None:
    try:
        found = [
            (file.stat(), file) for file in folder.glob(pattern) if file.is_file() and not file.is_symlink()
        ]
    except OSError as error:
        bundle.gap(name, error)
        return
    recent = sorted(
        (
            (stat.st_mtime, file)
            for stat, file in found
            if stat.st_uid == os.getuid() and stat.st_mtime > time.time() - _RECENT_SECONDS
        ),
        reverse=True,
    )
    for _, file in recent[:MOST_COMMAND_LOGS]:
        _log(bundle, f"{name}/{file.name}", file, SMALL_LOG_BYTES)
    if len(found) > len(recent[:MOST_COMMAND_LOGS]):
        bundle.gap(name, f"{len(found) - len(recent[:MOST_COMMAND_LOGS])} older ones are left out")


def _collect_ray(bundle: Bundle, workdir: Workdir) -> None:
    """Logs of the Ray session that runs, or of one that ended without being cleaned up."""
    record = workdir.record()
    temporary = (
        Path(record.ray.temporary) if record is not None and record.ray is not None else workdir.path / "ray"
    )
    logs = temporary / "session_latest" / "logs"
    if not logs.is_dir():
        bundle.gap(
            "workdir/ray", "no Ray runs; its logs went with it (the drivers' logs are kept with the run)"
        )
        return
    workers: list[tuple[float, Path]] = []
    for file in sorted(logs.rglob("*")):
        try:
            stat = file.stat()
            if not file.is_file() or file.is_symlink() or not stat.st_size:
                continue
        except OSError:
            continue  # rotated away
        if _RAY_SERVERS.match(file.name):
            _log(bundle, f"workdir/ray/{file.relative_to(logs)}", file)
        elif _RAY_WORKERS.match(file.name):
            workers.append((stat.st_mtime, file))
    workers.sort(reverse=True)
    for _, file in workers[:MOST_WORKER_LOGS]:
        _log(bundle, f"workdir/ray/{file.relative_to(logs)}", file, SMALL_LOG_BYTES)
    if len(workers) > MOST_WORKER_LOGS:
        bundle.gap("workdir/ray", f"{len(workers) - MOST_WORKER_LOGS} older logs of workers are left out")


def _document(bundle: Bundle, name: str, file: Path) -> None:
    readable = _readable(bundle, name, file)
    if readable is not None:
        bundle.document(name, readable)


def _log(bundle: Bundle, name: str, file: Path, limit: int | None = None) -> None:
    readable = _readable(bundle, name, file)
    if readable is None:
        return
    if limit is None:
        bundle.log(name, readable)
    else:
        bundle.log(name, readable, limit)


def _readable(bundle: Bundle, name: str, file: Path) -> Readable | None:
    """The file, or None where there is none; what cannot be read is told in the bundle."""
    try:
        return local_file(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        bundle.gap(name, error)
        return None


def _sizes(workdir: Workdir) -> dict[str, object]:
    """Bytes and files below the workdir's folders, and of the disk that they are on."""
    folders: dict[str, object] = {}
    for entry in sorted(workdir.path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            folders[entry.name] = _weigh(entry)
    disk = psutil.disk_usage(str(workdir.path))
    return {
        "path": str(workdir.path),
        "folders": folders,
        "files": {
            entry.name: entry.lstat().st_size for entry in sorted(workdir.path.iterdir()) if entry.is_file()
        },
        "disk": {"total": disk.total, "free": disk.free},
    }


def _weigh(folder: Path) -> dict[str, int]:
    size = files = 0
    for stat in _stats(folder):
        size, files = size + stat.st_blocks * 512, files + 1
    return {"bytes": size, "files": files}


def _stats(folder: Path) -> Iterator[os.stat_result]:
    try:
        entries = list(os.scandir(folder))
    except OSError:
        return
    for entry in entries:
        try:
            if entry.is_dir(follow_symlinks=False):
                yield from _stats(Path(entry.path))
            elif entry.is_file(follow_symlinks=False):
                yield entry.stat(follow_symlinks=False)
        except OSError:
            continue
