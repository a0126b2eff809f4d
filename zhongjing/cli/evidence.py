"""What an issue report is made of: facts of this machine, a workdir, a run, and a release on a cluster.

Each part is collected on its own: what fails is noted with its code, and the rest goes on.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import stat
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhongjing.cli.facts import Facts, Log, gpu_of, known, version_of
from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, NotFoundError, StorageUnavailableError
from zhongjing.storage.progress import MetricPoint

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession
    from zhongjing.cli.target import Target
    from zhongjing.pipeline.session import Session
    from zhongjing.storage.objects import ObjectInfo

LOG_BYTES = 4 * 2**20  # of the end of a log that are read
MOST_LINES = 50_000  # of the end of a log that comes line by line
MOST_LOGS = 100  # of one kind, the newest
_SHOWN_POINTS = 200  # of the curves of a stage, spread over all of them
_RECENT_SECONDS = 7 * 86_400.0

_SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "CUDA_LAUNCH_BLOCKING", "NCCL_DEBUG"),
    *("NCCL_P2P_DISABLE", "NCCL_IB_DISABLE", "NCCL_SOCKET_IFNAME", "PYTORCH_CUDA_ALLOC_CONF", "HF_HOME"),
    *("HF_HUB_OFFLINE", "HF_ENDPOINT", "RAY_ADDRESS", "LD_LIBRARY_PATH", "LD_PRELOAD", "PYTHONPATH"),
    *("TMPDIR", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_PROFILE", "AWS_CA_BUNDLE", "KUBECONFIG", "LC_ALL"),
)
_PLAIN = re.compile(
    r"(?:-?\d{1,3})(?:,-?\d{1,3}){0,15}|true|false|INFO|WARN|VERSION|TRACE|C|C\.UTF-8", re.ASCII
)
_KINDS = (
    *("manifest.json", "progress.json", "precision.json", "metrics.jsonl", "quarantine.jsonl", "model"),
    *("checkpoints", "logs", "requests", "stop", "metrics", "curves", "current.json"),
)
_RAY_LOGS = (
    *("gcs_server", "raylet", "dashboard", "monitor", "log_monitor", "runtime_env", "job-driver"),
    *("worker", "python-core", "ray-train", "agent", "event_"),
)
_STAGE_LOGS = ("driver", "traceback", "worker", "stacks")
_FOLDERS = ("s3", "ray", "logs", "jobs", "tmp", "scratch", "home", "pipelines")


class Evidence:
    """The parts of a report while they are collected.

    Attributes:
        parts: facts by part.
        gaps: what could not be collected, and why. For the user's own terminal: it has messages.
    """

    def __init__(self) -> None:
        self.facts = Facts()
        self.parts: dict[str, Any] = {}
        self.gaps: list[tuple[str, BaseException]] = []
        self._store_is_gone = False

    def add(self, part: str, collect: Callable[[], Any], *, stored: bool = False) -> Any:
        """Collects a part; None if that fails. What is ``stored`` is not asked for once the store is gone."""
        if stored and self._store_is_gone:
            return None
        try:
            found = collect()
        except Exception as error:
            self._store_is_gone |= isinstance(error, StorageUnavailableError)
            self.gap(part, error)
            return None
        if found is not None:
            self.parts[part] = found
        return found

    def gap(self, part: str, error: BaseException) -> None:
        """Notes why a part is not there."""
        self.gaps.append((part, error))
        self.parts.setdefault("leftOut", []).append({"part": part, **self.facts.error(error)})


def collect_machine(evidence: Evidence, environment: Mapping[str, str]) -> None:
    """Versions, platform, GPUs and settings of this machine."""
    evidence.add("versions", _versions)
    evidence.add("machine", _machine)
    evidence.add("gpus", _gpus)
    evidence.add("settings", lambda: _settings(environment))


def _versions() -> dict[str, Any]:
    from zhongjing.train.job.lineage import lineage

    made = lineage(workers=0, device="")
    commit = re.match(r"[0-9a-f]{40}(-dirty)?$", made.commit or "", re.ASCII)
    return {
        "zhongjing": version_of(made.code_version),
        "commit": commit[0] if commit else None,
        "image": version_of(made.image or ""),
        "python": version_of(platform.python_version()),
        "packages": {name: version_of(version) for name, version in made.packages.items()},
    }


def _machine() -> dict[str, Any]:
    systems, machines = frozenset({"Linux", "Darwin"}), frozenset({"x86_64", "aarch64", "arm64"})
    found: dict[str, Any] = {
        "system": known(platform.system(), systems),
        "kernel": version_of(platform.release()),
        "machine": known(platform.machine(), machines),
        "libc": version_of(platform.libc_ver()[1]),
        "cores": os.cpu_count(),
        "coresUsable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
    }
    with suppress(ModuleNotFoundError):  # part of zhongjing[train]: a client of clusters does without
        import psutil

        memory = psutil.virtual_memory()
        found |= {"memory": memory.total, "memoryFree": memory.available, "swap": psutil.swap_memory().total}
    return found


def _gpus() -> list[dict[str, Any]] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    from zhongjing.backends.local.machine import nvidia_smi

    query = "--query-gpu=name,memory.total,memory.used,driver_version"
    lines = (nvidia_smi(query, "--format=csv,noheader,nounits") or "").splitlines()
    return [
        {"name": gpu_of(name), "totalMiB": int(total), "usedMiB": int(used), "driver": version_of(driver)}
        for name, total, used, driver in ([cell.strip() for cell in line.split(",")] for line in lines)
    ]


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that change what happens: numbers and switches; of other values only that they are set."""
    given = {name: environment[name] for name in _SETTINGS if name in environment}
    return {name: value if _PLAIN.fullmatch(value) else "set" for name, value in given.items()}


def collect_doctor(evidence: Evidence, target: Target) -> None:
    """Which checks of ``zhongjing doctor`` are not fine: names, codes. Takes some seconds."""
    from zhongjing.cli.diagnosis.checks import Situation, checks, run_checks
    from zhongjing.cli.diagnosis.probes import Probes
    from zhongjing.cli.target import LocalTarget

    def collect() -> dict[str, Any]:
        here = target if isinstance(target, LocalTarget) else None
        workdir = here.workdir if here else DEFAULT_WORKDIR
        cluster = None if isinstance(target, LocalTarget) else target
        with Probes() as probes:
            situation = Situation(here is not None, workdir.absolute(), probes, cluster)
            found = list(run_checks(checks(situation), situation))
        return {
            "statuses": Counter(each.status.value for each in found),
            # The first word is ours; what follows may be the name of a worker group.
            "notFine": [
                {"check": each.name.split()[0], "status": each.status.value, "code": known(each.code)}
                for each in found
                if each.code is not None
            ],
        }

    evidence.add("doctor", collect)


def collect_stray_logs(evidence: Evidence) -> None:
    """Errors of the last week's commands that found no workdir."""
    from zhongjing.cli.errorlog import stray_folders

    folders = stray_folders()
    evidence.add(
        "commands", lambda: _read_logs(file for each in folders for file in each.glob("error-*.log"))
    )


def collect_workdir(evidence: Evidence, path: Path) -> None:
    """Records, logs and sizes of a workdir. Before a session is opened: a new supervisor rotates its logs."""
    from zhongjing.backends.local.workdir import Workdir

    workdir = Workdir(path)
    record = workdir.record()
    if record is not None:
        told = evidence.facts.record(record)
        evidence.add("supervisor", lambda: {**told, "alive": workdir.live_record() is not None})
    temporary = Path(record.ray.temporary) if record is not None and record.ray is not None else path / "ray"
    evidence.add(
        "workdirLogs",
        lambda: {kind: _read_logs(files) for kind, files in sorted(_logs_of(path, temporary).items())},
    )
    evidence.add(
        "workdirSizes", lambda: {name: _size(path / name) for name in _FOLDERS if (path / name).is_dir()}
    )
    evidence.add("disk", lambda: shutil.disk_usage(path)._asdict())


def _logs_of(path: Path, temporary: Path) -> dict[str, list[Path]]:
    """Logs of a workdir by kind; those of Ray lie below its temporary folder."""
    logs: defaultdict[str, list[Path]] = defaultdict(list)
    for root, _, names in os.walk(temporary / "session_latest" / "logs"):
        for name in names:
            kind = next((each for each in _RAY_LOGS if name.startswith(each)), None)
            if kind is not None:
                logs[f"ray/{kind}"].append(Path(root, name))
    logs["supervisor"] = [path / "supervisor.log"]
    logs["ray"] = [path / "ray.log"]
    logs["s3"] = [path / "s3" / "weed.log", path / "s3" / "weed.log.1"]
    logs["commands"] = list((path / "logs").glob("*.log"))
    return logs


def _read_logs(files: Iterable[Path]) -> dict[str, Any]:
    """What is recognised in the newest of these logs of the last week, and how many could not be read."""
    recent: list[tuple[float, int, Path]] = []
    for file in files:
        with suppress(OSError):  # rotated away
            found = file.lstat()
            mine = stat.S_ISREG(found.st_mode) and found.st_uid == os.getuid()
            if mine and found.st_mtime > time.time() - _RECENT_SECONDS:
                recent.append((found.st_mtime, found.st_size, file))
    log, unread = Log(), 0
    for _, size, file in sorted(recent, reverse=True)[:MOST_LOGS]:
        try:
            with file.open("rb") as stream:
                stream.seek(max(size - LOG_BYTES, 0))
                log.read(stream.read(LOG_BYTES).decode(errors="replace"), size)
        except OSError:
            unread += 1
    return {**log.facts(), **({"unread": unread} if unread else {})}


def _size(folder: Path) -> dict[str, int]:
    files = total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # Ray and the S3 server may be writing
                total += Path(root, name).lstat().st_size
                files += 1
    return {"files": files, "bytes": total}


def collect_run(evidence: Evidence, session: Session, name: str) -> None:
    """The document, the status, progress, results, metrics and logs of a run."""
    evidence.add("pipeline", lambda: evidence.facts.value(session.desired(name)), stored=True)
    evidence.add("status", lambda: evidence.facts.value(session.status(name)), stored=True)
    for stage in Stage:
        _collect_stage(evidence, session, name, stage)
    evidence.add("objects", lambda: _collect_objects(evidence, session, name), stored=True)


def _collect_stage(evidence: Evidence, session: Session, name: str, stage: Stage) -> None:
    def read_log() -> dict[str, Any] | None:
        log = Log()
        with suppress(NotFoundError, ConfigError):  # it was never run, or its log went with it
            end = deque(session.logs(name, stage), maxlen=MOST_LINES)  # a live log may have any length
            log.read("\n".join(end)[-LOG_BYTES:])
        return log.facts() if log.files else None

    facts = evidence.facts
    evidence.add(f"progress/{stage}", lambda: facts.value(session.progress(name, stage)), stored=True)
    evidence.add(f"manifest/{stage}", lambda: facts.value(session.manifest(name, stage)), stored=True)
    evidence.add(f"log/{stage}", read_log, stored=True)


def _collect_objects(evidence: Evidence, session: Session, name: str) -> dict[str, Any]:
    """Counts and bytes of the run's objects by stage and kind; logs and metrics are read on the way."""
    home = session.layout(name).home
    counts: defaultdict[str, dict[str, int]] = defaultdict(lambda: {"objects": 0, "bytes": 0})
    logs: defaultdict[str, Log] = defaultdict(Log)
    # By stage and key; a step that was done again after a resume counts once.
    points: defaultdict[str, dict[tuple[str, int], MetricPoint]] = defaultdict(dict)

    def text(info: ObjectInfo) -> str:
        start = max(info.size - LOG_BYTES, 0)
        return session.store.get_range(info.uri, start, info.size - start).decode(errors="replace")

    for info in session.store.list(home):
        stage, *rest = info.uri.removeprefix(f"{home}/").split("/")
        stage, file = known(stage, frozenset(Stage)), rest[-1] if rest else ""
        kind = known(rest[1] if len(rest) > 1 else file, frozenset(_KINDS))
        if kind == "checkpoints" and file == "manifest.json":
            kind = "checkpointManifests"
        count = counts[f"{stage}/{kind}"]
        count["objects"] += 1
        count["bytes"] += info.size
        if kind == "logs":
            about = next((each for each in _STAGE_LOGS if file.startswith(each)), "other")
            logs[f"{stage}/{about}"].read(text(info), info.size)
        elif kind in ("metrics.jsonl", "metrics"):
            points[f"{stage}/{evidence.facts.tag(rest[0])}"] |= _points(text(info))
    evidence.parts["logs"] = {kind: log.facts() for kind, log in sorted(logs.items())}
    for place, by_step in points.items():
        every = max(len(by_step) // _SHOWN_POINTS, 1)
        thin = sorted(by_step.values(), key=lambda point: point.step)[::every]
        evidence.parts[f"metrics/{place}"] = [evidence.facts.record(point) for point in thin]
    return dict(sorted(counts.items()))


def _points(text: str) -> dict[tuple[str, int], MetricPoint]:
    found: dict[tuple[str, int], MetricPoint] = {}
    for line in text.splitlines():
        try:
            point = MetricPoint.model_validate_json(line)
        except ValueError:
            continue  # damaged, or cut off at its beginning
        found[point.kind, point.step] = point
    return found


def collect_cluster(evidence: Evidence, session: KubernetesSession) -> None:
    """The release, its pods, the newest events, and the nodes."""
    from zhongjing.backends.kubernetes.diagnosis import ALL
    from zhongjing.backends.kubernetes.resources import CORE_EVENTS, NODES, PODS
    from zhongjing.backends.kubernetes.workloads import pod_labels

    api, told = session.api, evidence.facts.kubernetes
    evidence.add("release", lambda: evidence.facts.record(session.release))
    evidence.add("pods", lambda: told(api.find(PODS, labels=pod_labels(session.release, *ALL)).items))
    evidence.add("events", lambda: told(sorted(api.find(CORE_EVENTS).items, key=_seen, reverse=True)))
    evidence.add("nodes", lambda: told(api.find(NODES).items))


def _seen(event: Mapping[str, Any]) -> str:
    return str(event.get("lastTimestamp") or event.get("eventTime") or "")
