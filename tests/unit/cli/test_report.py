"""``zhongjing report``: no secret, name or text gets in, wherever it stood; what helps does."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from pydantic import BaseModel

from tests.report_support import AWKWARD, KEY, PEM, RECORD, assert_no_trace
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import (
    MemorySession,
    MemoryStore,
    desired_state,
    manifest,
    pipeline_status,
    stage_status,
    training_progress,
)
from zhongjing.backends.kubernetes.api import Listing
from zhongjing.backends.kubernetes.resources import CORE_EVENTS, NODES, PODS, Resource
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.cli.evidence import Evidence, collect_cluster, collect_machine, collect_run, collect_workdir
from zhongjing.cli.facts import Facts, Log, gpu_of, version_of
from zhongjing.codes import storage as codes
from zhongjing.config.release import ReleaseConfig
from zhongjing.config.stages import Stage
from zhongjing.errors import StorageError, StorageUnavailableError
from zhongjing.pipeline.state import StageState
from zhongjing.storage.objects import ObjectInfo
from zhongjing.storage.progress import Failure

HOME = "s3://zhongjing/local/demo"
CANARIES = [
    KEY,
    AWKWARD,
    RECORD,
    "zhang-san-from-hospital",
    "li.ming@hospital.com.cn",
    "张三",
    "11010519491231002X",
]
POINT = {"kind": "train", "step": 1, "time": "t", "epoch": 0.5, "values": {"loss": 2.5}}
TRACE = """Traceback (most recent call last):
  File "/home/{who}/x/zhongjing/train/loop.py", line 20, in {who}
    raise ValueError("{who}")
  File "/venv/lib/zhongjing/errors.py", line 50, in __init__
    super().__init__("{who}")
  File "/home/{who}/zhongjing/{who}.py", line 1, in main
ValueError: {who} in error[StorageUnreachable]
"""


def poisoned(value: Any, canary: str) -> Any:
    """The value with ``canary`` for every text in it: also where only choices, times and versions belong."""
    if isinstance(value, BaseModel):
        fields = {name: poisoned(getattr(value, name), canary) for name in type(value).model_fields}
        return value.model_copy(update=fields)
    if isinstance(value, dict):
        return {key: poisoned(item, canary) for key, item in value.items()} | {canary: canary}
    if isinstance(value, list | tuple):
        return [*(poisoned(item, canary) for item in value), canary]
    return canary if isinstance(value, str) else value


class ListedStore(MemoryStore):
    """Lists what it has and reads ranges; may be gone after some reads."""

    reads_left = 1000

    def list(self, uri: str) -> Iterator[ObjectInfo]:
        time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        for name, data in sorted(self.objects.items()):
            if name.startswith(f"{uri}/"):
                yield ObjectInfo(uri=name, size=len(data), etag="e", last_modified=time)

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise StorageUnavailableError("no answer", code=codes.STORAGE_UNREACHABLE, where=uri)
        return self.objects[uri][start : start + length]


class RunSession(MemorySession):
    """A run whose every record has passed through ``change``."""

    def __init__(self, change: Callable[[Any], Any] = lambda record: record) -> None:
        super().__init__()
        self.store = ListedStore()
        failure = Failure(error="ValueError", code="NoCheckpoint", message="m", where="w", remedy="r")
        entry = stage_status(
            StageState.FAILED, attempt=3, reason="StorageUnreachable", failure=failure, message="m"
        )
        self.add(change(desired_state()))
        self.wanted = {"demo": next(iter(self.wanted.values()))}
        progress = training_progress(Stage.SFT, 7, warnings=["doubtful"], failure=failure)
        self.frames = [
            (change(pipeline_status({Stage.SFT: entry}, message="m")), {Stage.SFT: change(progress)})
        ]
        self.manifests[Stage.SFT] = change(manifest(Stage.SFT, extra={"answers": ["a"]}, warnings=["w"]))

    def put(self, name: str, data: str) -> None:
        self.store.objects[f"{HOME}/{name}"] = data.encode()


def told(collect: Callable[[Evidence], None]) -> tuple[dict[str, Any], str]:
    evidence = Evidence()
    collect(evidence)
    return evidence.parts, json.dumps(evidence.parts, ensure_ascii=False)


# Nothing gets in


@pytest.mark.parametrize("canary", CANARIES)
def test_no_text_of_a_run_gets_in(canary: str) -> None:
    session = RunSession(lambda record: poisoned(record, canary))
    session.log_lines[Stage.SFT] = [canary, TRACE.format(who=canary)]
    log = f"{canary}\n{PEM}\nexit code {canary}\n{TRACE.format(who=canary)}{canary}: {canary}\n"
    for name in ("driver-a1.log", "traceback-a1.txt", f"{canary}.log"):
        session.put(f"sft/k1/logs/{name}", log)
    session.put(f"{canary}/{canary}/{canary}/{canary}", canary)
    session.put("sft/k1/metrics.jsonl", json.dumps({**POINT, "values": {canary: 1.0}}) + f"\n{canary}\n")
    session.put("sft/k1/quarantine.jsonl", canary)
    parts, text = told(lambda evidence: collect_run(evidence, cast(Any, session), "demo"))
    assert {"pipeline", "status", "progress/sft", "manifest/sft", "objects", "logs"} <= set(parts)
    assert_no_trace(text, canary)
    assert "MIIE" not in text


@pytest.mark.parametrize("canary", CANARIES)
def test_no_text_of_a_failure_gets_in(canary: str) -> None:
    session = RunSession()
    session.frames = [StorageError(canary, code=codes.DAMAGED_OBJECT, where=canary, remedy=canary)]
    session.wanted = {}
    session.store.list = lambda uri: (_ for _ in ()).throw(ValueError(canary))
    parts, text = told(lambda evidence: collect_run(evidence, cast(Any, session), "demo"))
    assert_no_trace(text, canary)
    assert [(gap["part"], gap["error"], gap["code"]) for gap in parts["leftOut"]] == [
        ("status", "StorageError", "DamagedObject"),
        ("objects", "ValueError", "other"),
    ]


@pytest.mark.parametrize("canary", CANARIES)
def test_no_text_of_a_machine_gets_in(
    canary: str, tmp_path: Path, command: CommandLine, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        *os.environ,
        "CUDA_VISIBLE_DEVICES",
        "ZHONGJING_IMAGE",
        "ZHONGJING_COMMIT",
        "HF_TOKEN",
        "RAY_ADDRESS",
    ):
        if name not in ("PATH", "HOME", "XDG_STATE_HOME", "PYTHONPATH", "LD_LIBRARY_PATH", "TMPDIR"):
            monkeypatch.setenv(name, canary)
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text(f"#!/bin/sh\ncat <<'EOF'\n{canary}, 1, 2, {canary}\nEOF\n")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{smi.parent}{os.pathsep}{os.environ['PATH']}")
    record = SupervisorRecord.model_validate(
        {
            "process": {"pid": 2**22, "started": "s"},
            "active": ["demo"],
            "failure": {"error": "E", "message": "m"},
        }
    )
    Workdir(workdir).write_record(poisoned(record, canary))
    (workdir / "logs").mkdir()
    for name in ("supervisor.log", "ray.log", "logs/error-1.log"):
        (workdir / name).write_text(f"{canary}\n{TRACE.format(who=canary)}")
    raylet = workdir / "ray/session_latest/logs/raylet.err"
    raylet.parent.mkdir(parents=True)
    raylet.write_text(f"(x pid=1) {canary}\n")
    assert command("report", "--local", "--no-doctor", "--output", "r.json").exit_code == 0
    text = (tmp_path / "r.json").read_text()
    parts = json.loads(text)
    assert_no_trace(json.dumps(parts, ensure_ascii=False), canary)
    assert parts["gpus"][0] == {"name": "other", "totalMiB": 1, "usedMiB": 2, "driver": None}
    assert parts["settings"]["CUDA_VISIBLE_DEVICES"] == "set"
    assert parts["workdirLogs"]["supervisor"]["codes"] == {"StorageUnreachable": 1}
    assert parts["workdirLogs"]["ray/raylet"]["files"] == 1
    assert parts["supervisor"]["alive"] is False


@pytest.mark.parametrize("canary", CANARIES)
def test_no_text_of_a_cluster_gets_in(canary: str) -> None:
    parts, text = told(
        lambda evidence: collect_cluster(evidence, cluster(lambda each: poisoned(each, canary)))
    )
    assert {"pods", "nodes", "events", "release"} <= set(parts)
    assert_no_trace(text, canary)


def test_tags_are_alike_within_a_report_only() -> None:
    one, other = Facts(), Facts()
    assert one.tag("demo") == one.tag("demo") != one.tag("rest")
    assert one.tag("demo") != other.tag("demo")


# What helps is there

POD = {
    "metadata": {
        "name": "p",
        "labels": {"app.kubernetes.io/component": "ray-worker", "owner": "zhang-san"},
        "creationTimestamp": "2026-01-02T03:04:05Z",
    },
    "spec": {
        "nodeName": "n1",
        "containers": [
            {
                "image": "registry.example/zhongjing:0.1.0",
                "env": [{"name": "A", "value": KEY}],
                "resources": {"requests": {"memory": "80Gi", "nvidia.com/gpu": "4"}},
            }
        ],
    },
    "status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady", "message": "m"}],
        "containerStatuses": [
            {
                "restartCount": 3,
                "ready": False,
                "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "m"}},
                "lastState": {"terminated": {"reason": "OOMKilled", "exitCode": 137}},
            }
        ],
    },
}
NODE = {
    "metadata": {"name": "n1", "labels": {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}},
    "status": {"capacity": {"memory": "263873856Ki"}, "nodeInfo": {"kubeletVersion": "v1.30.2-gke.1"}},
}
EVENT = {
    "involvedObject": {"kind": "Pod", "name": "p"},
    "type": "Warning",
    "reason": "FailedScheduling",
    "message": "m",
    "count": 9,
    "lastTimestamp": "2026-01-02T03:04:05Z",
}
RELEASE = {
    "release": "r",
    "fullname": "f",
    "namespace": "n",
    "chart_version": "0.1.0",
    "image": "registry.example/zhongjing:0.1.0",
    "provisioner": "static",
    "ray": {
        "cluster": "c",
        "service": "s",
        "token_secret": "t",
        "token_managed": True,
        "scaling": "controller",
        "groups": [
            {"name": "g", "workload": "w", "cpus": 2, "gpus": 1, "memory": "80Gi"}
            | {"min_replicas": 0, "max_replicas": 4}
        ],
    },
    "storage": {"bundled": False, "uri": "s3://bucket", "endpoint": "https://s3.hospital.example"},
}


def cluster(change: Callable[[Any], Any] = lambda value: value) -> Any:
    """A session on a cluster, as far as a report asks it; what keeps its pods cannot be told."""
    found = {PODS: [POD], NODES: [NODE], CORE_EVENTS: [EVENT]}

    def find(resource: Resource, **_: object) -> Listing:
        return Listing([change(each) for each in found[resource]], "1")

    api = SimpleNamespace(find=find, serves=lambda resource: True)
    return SimpleNamespace(api=api, release=change(ReleaseConfig.model_validate(RELEASE)))


def test_facts_of_a_cluster() -> None:
    parts, text = told(lambda evidence: collect_cluster(evidence, cluster()))
    pod, node, event = parts["pods"][0], parts["nodes"][0], parts["events"][0]
    assert pod["metadata"]["labels"] == {"app.kubernetes.io/component": "ray-worker"}
    assert pod["spec"]["nodeName"] == node["metadata"]["name"]
    assert pod["spec"]["containers"][0] == {
        "image": "0.1.0",
        "resources": {"requests": {"memory": "80Gi", "nvidia.com/gpu": "4"}},
    }
    status = pod["status"]["containerStatuses"][0]
    assert status["state"]["waiting"] == {"reason": "CrashLoopBackOff"}
    assert status["lastState"]["terminated"] == {"reason": "OOMKilled", "exitCode": 137}
    assert status["restartCount"] == 3
    assert pod["status"]["conditions"] == [
        {"type": "Ready", "status": "False", "reason": "ContainersNotReady"}
    ]
    assert node["metadata"]["labels"] == {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
    assert node["status"] == {"capacity": {"memory": "263873856Ki"}, "nodeInfo": {"kubeletVersion": "1.30.2"}}
    assert (event["reason"], event["count"], event["lastTimestamp"]) == (
        "FailedScheduling",
        9,
        "2026-01-02T03:04:05Z",
    )
    assert parts["release"]["chartVersion"] == "0.1.0"
    assert parts["release"]["ray"]["groups"][0]["memory"] == "80Gi"
    assert parts["release"]["storage"]["endpoint"].startswith("https://#")
    assert "hospital" not in text


def test_facts_of_a_run() -> None:
    session = RunSession()
    for number in range(3):
        session.put(f"sft/k1/metrics/part-{number}.jsonl", json.dumps({**POINT, "step": number}) + "\n")
    session.put("sft/k1/checkpoints/step-00000008/manifest.json", "{}")
    session.put("sft/k1/checkpoints/step-00000008/adamw.safetensors", "12345678")
    session.put("sft/k1/logs/driver-a1.log", "INFO\n" + TRACE.format(who="li") + "it exited with code 137\n")
    parts, _ = told(lambda evidence: collect_run(evidence, cast(Any, session), "demo"))
    spec = parts["pipeline"]["document"]["spec"]
    assert spec["base"]["tiny"]["family"] == "llama"
    assert spec["stages"]["sft"]["maxLength"] == 512
    assert spec["sources"][0]["uri"].startswith("s3://#")
    assert spec["sources"][0]["name"] == spec["stages"]["sft"]["data"][0]["source"]
    assert parts["pipeline"]["uid"] != "0a1b2c3d"
    assert parts["status"]["stages"]["sft"]["reason"] == "StorageUnreachable"
    assert parts["status"]["stages"]["sft"]["failure"]["error"] == "ValueError"
    assert parts["status"]["conditions"][0]["since"] == "2026-01-02T03:04:05.000Z"
    assert parts["progress/sft"]["metrics"] == {"loss": 4.5, "grad_norm": 1.0}
    assert parts["manifest/sft"]["seconds"] == 75.0
    assert parts["objects"]["sft/checkpointManifests"] == {"objects": 1, "bytes": 2}
    assert parts["objects"]["sft/checkpoints"] == {"objects": 1, "bytes": 8}
    (metrics,) = (found for part, found in parts.items() if part.startswith("metrics/sft/"))
    assert [point["step"] for point in metrics] == [0, 1, 2]
    log = parts["logs"]["sft/driver"]
    assert log["exits"] == {"137": 1}
    assert log["tracebacks"] == [
        {
            "error": "ValueError",
            "frames": ["zhongjing/train/loop.py:20:other", "zhongjing/errors.py:50:__init__"],
            "count": 1,
        }
    ]


def test_a_store_that_is_gone_is_asked_once() -> None:
    session = RunSession()
    for number in range(5):
        session.put(f"sft/k{number}/logs/driver-a1.log", "x")
    session.store.reads_left = 2
    parts, _ = told(lambda evidence: collect_run(evidence, cast(Any, session), "demo"))
    assert session.store.reads_left == -1
    assert parts["leftOut"][0]["code"] == "StorageUnreachable"
    session = RunSession()
    session.frames = [StorageUnavailableError("no answer", code=codes.STORAGE_UNREACHABLE)]
    parts, _ = told(lambda evidence: collect_run(evidence, cast(Any, session), "demo"))
    assert set(parts) == {"pipeline", "leftOut"}


def test_facts_of_a_machine() -> None:
    environment = {
        "OMP_NUM_THREADS": "4",
        "NCCL_DEBUG": "INFO",
        "HTTPS_PROXY": "http://u:p@proxy",
        "OTHER": "1",
    }
    parts, _ = told(lambda evidence: collect_machine(evidence, environment))
    assert parts["settings"] == {"OMP_NUM_THREADS": "4", "NCCL_DEBUG": "INFO", "HTTPS_PROXY": "set"}
    assert parts["versions"]["packages"]["pydantic"]
    assert parts["machine"]["cores"] >= 1


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("v1.30.2-gke.1587003", "1.30.2"),
        ("containerd://1.7.2", "1.7.2"),
        ("2.13.0+cu130", "2.13.0+cu130"),
        ("registry.example:5000/li/zhongjing:0.1.0rc1", "0.1.0rc1"),
        ("10.1.2.3/li/zhongjing", None),
        ("zhongjing:latest", None),
        ("", None),
    ],
)
def test_versions(text: str, version: str | None) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("name", "is_told"),
    [
        ("NVIDIA H200", True),
        ("NVIDIA A100-SXM4-80GB", True),
        ("Tesla T4", True),
        ("NVIDIA GeForce RTX 4090", True),
        ("NVIDIA H200 of zhang-san", False),
        ("138-0013-8000", False),
        ("1949 1231", False),
    ],
)
def test_models_of_gpus(name: str, is_told: bool) -> None:
    assert gpu_of(name) == (name if is_told else "other")


def test_tracebacks_of_workers_are_recognised() -> None:
    log = Log()
    log.read(
        "".join(
            f"(RayTrainWorker pid=7, ip=10.0.0.1) {line}\n" for line in TRACE.format(who="li").splitlines()
        )
    )
    log.read("torch.OutOfMemoryError: CUDA out of memory. Tried\n" * 2)
    facts = log.facts()
    assert facts["tracebacks"][0]["error"] == "ValueError"
    assert len(facts["tracebacks"][0]["frames"]) == 2
    assert facts["symptoms"]["CUDA out of memory"] == 2


@pytest.mark.parametrize("root", ["/home/li/zhongjing", "/home/li/src", "/opt/zhongjing/lib/site-packages"])
def test_frames_are_told_wherever_the_package_lies(root: str) -> None:
    log = Log()
    log.read(TRACE.format(who="li").replace("/venv/lib", root))
    assert "zhongjing/errors.py:50:__init__" in log.facts()["tracebacks"][0]["frames"]


def test_a_file_that_goes_while_it_is_read_leaves_the_others(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workdir / "s3").mkdir()
    for name in ("supervisor.log", "ray.log", "s3/weed.log", "s3/weed.log.1", "s3/volume"):
        (workdir / name).write_text("error[StorageUnreachable]")
    opened, read = Path.open, Path.lstat

    def open_all_but_one(self: Path, *words: Any, **named: Any) -> Any:
        if self.name == "ray.log":
            raise PermissionError(13, "denied")
        return opened(self, *words, **named)

    def stat_all_but_two(self: Path) -> os.stat_result:
        if self.name in ("weed.log.1", "volume"):
            raise FileNotFoundError(2, "gone")
        return read(self)

    monkeypatch.setattr(Path, "open", open_all_but_one)
    monkeypatch.setattr(Path, "lstat", stat_all_but_two)
    parts, _ = told(lambda evidence: collect_workdir(evidence, workdir))
    assert "leftOut" not in parts
    logs = parts["workdirLogs"]
    assert logs["supervisor"]["codes"] == {"StorageUnreachable": 1}
    assert (logs["ray"]["files"], logs["ray"]["unread"]) == (0, 1)
    assert logs["s3"]["files"] == 1
    assert parts["workdirSizes"]["s3"] == {"files": 1, "bytes": 25}


def test_of_a_live_log_the_end_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhongjing.cli.evidence.MOST_LINES", 3)
    session = RunSession()
    session.log_lines[Stage.SFT] = ["exit code 1", "a", "b", "exit code 137"]
    parts, _ = told(lambda evidence: collect_run(evidence, cast(Any, session), "demo"))
    assert parts["log/sft"]["exits"] == {"137": 1}


# The command


def test_a_workdir_without_pipelines(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    result = command("report", "--local", "--no-doctor", "-o", "json", "--output", "r.json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["archive"] == str((tmp_path / "r.json").resolve())
    assert shown["bytes"] == (tmp_path / "r.json").stat().st_size
    assert shown["pipeline"] is None
    assert {"what": "run", "why": "there are no pipelines here yet"} in shown["leftOut"]
    assert (tmp_path / "r.json").stat().st_mode & 0o777 == 0o600
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["about"]["neverHolds"]
    assert report["leftOut"][0]["code"] == "NothingRuns"
    assert not list(tmp_path.glob(".*partial*"))


def test_a_file_that_is_there_is_kept(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    target = tmp_path / "r.tar.gz"
    target.write_text("mine")
    result = command("report", "--local", "--no-doctor", "--output", "r.tar.gz", "-o", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == "TargetInUse"
    assert target.read_text() == "mine"
    assert command("report", "--local", "--no-doctor", "--output", "r.tar.gz", "--force").exit_code == 0
    with tarfile.open(target) as tar:
        assert tar.getnames() == ["report.json"]


@pytest.mark.parametrize("value", ["r.zip", "yaml", "missing/r.json", "folder.json"])
def test_other_outputs_are_refused(command: CommandLine, workdir: Path, tmp_path: Path, value: str) -> None:
    (tmp_path / "folder.json").mkdir()
    result = command("report", "--local", "--no-doctor", "--force", "--output", value)
    assert result.exit_code == 2
    assert "remedy" in result.stderr
    assert command("report", "-n", "train", "-o", value).exit_code == 2  # whether there is a cluster or not


def test_an_unknown_pipeline_is_an_error(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    result = command("report", "other", "--local", "--no-doctor", "-o", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == "UnknownPipeline"
    assert not list(tmp_path.glob("*.json"))


def test_a_workdir_that_is_not_there_is_an_error_only_if_it_was_named(command: CommandLine) -> None:
    assert command("report", "--workdir", "nowhere", "--no-doctor").exit_code == 3
    result = command("report", "--local", "--no-doctor")
    assert result.exit_code == 0, result.output
    assert "nothing was run here yet" in result.output


def test_a_session_that_does_not_open_leaves_the_rest(
    command: CommandLine, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CommandLine, place: Path, start: bool) -> None:
        raise StorageError("the S3 server did not start", code=codes.S3_SERVER_FAILED, where=str(place))

    monkeypatch.setattr(CommandLine, "_open", broken)
    result = command("report", "--local", "--no-doctor", "-o", "json", "--output", "r.json")
    assert result.exit_code == 0, result.output
    assert {"what": "run", "why": "the S3 server did not start"} in json.loads(result.stdout)["leftOut"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["versions"]["zhongjing"]
    assert report["leftOut"][0]["code"] == "S3ServerFailed"
