"""``zhongjing doctor`` through the real command line: real torch, a real S3 server, a real Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.command_line import in_process
from zhongjing.backends.local.processes import ProcessRecord, wait_until
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.config.sources import Storage
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.objects import open_store

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Report:
    """What doctor said, by the names of its checks."""

    code: int
    checks: dict[str, dict[str, Any]]
    said: str

    def told(self, name: str) -> tuple[str, str | None]:
        return self.checks[name]["status"], self.checks[name]["code"]

    @property
    def failing(self) -> dict[str, Any]:
        return {name: check for name, check in self.checks.items() if check["status"] == "fails"}


class Doctor:
    """Runs ``zhongjing doctor`` in a folder, with a temporary folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Short: Ray's and other sockets lie below it.
        self.temporary = folder / "t"
        self.temporary.mkdir()
        self.work = folder / "w"
        self.work.mkdir()

    def environment(self, **more: str) -> dict[str, str]:
        hidden = ("AWS_", "KUBE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "HOME": str(self.folder)}
        return {**kept, **own, "OMP_NUM_THREADS": "1", **more}

    def __call__(self, *arguments: str, **environment: str) -> Report:
        words = ("doctor", "-o", "json", *arguments)
        done = in_process("zhongjing", *words, folder=self.work, environment=self.environment(**environment))
        assert "Traceback" not in done.stderr, done.stderr
        value = json.loads(done.stdout)
        checks = {check["name"]: check for check in value["checks"]}
        assert sum(value[status] for status in ("fine", "warn", "fails")) == len(value["checks"])
        return Report(done.returncode, checks, done.stdout + done.stderr)

    def left(self) -> list[str]:
        """Files in the temporary folder, and processes that were started with it."""
        files = [str(path) for path in self.temporary.iterdir()]
        return files + [str(process.pid) for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return str(self.temporary) in " ".join(process.cmdline())
        except psutil.Error:
            return False


@pytest.fixture
def doctor(tmp_path: Path) -> Doctor:
    return Doctor(tmp_path)


def test_this_machine_is_fine_and_nothing_is_left(doctor: Doctor) -> None:
    report = doctor("--local")
    assert report.failing == {}
    assert report.code == 0
    assert {"python", "torch", "gpu", "memory", "disk workdir", "ports", "supervisor"} <= set(report.checks)
    for name in ("s3 server", "s3 access", "s3 conditions", "s3 clock"):
        assert report.told(name) == ("fine", None)
    assert "MB/s" in report.checks["s3 speed"]["finding"]
    assert "cluster" not in report.checks
    assert doctor.left() == []
    assert list(doctor.work.iterdir()) == []


def test_a_killed_doctor_leaves_nothing(doctor: Doctor) -> None:
    """kill -9 while its S3 server runs: the child notices, and ends the server and itself."""
    process = subprocess.Popen(
        [sys.executable, "-m", "zhongjing", "doctor", "--local", "--only", "s3"],
        cwd=doctor.work,
        env=doctor.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        assert wait_until(lambda: any(doctor.temporary.glob("zj-doctor-*/s3/server.json")), 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert wait_until(lambda: doctor.left() == [], 30)


def test_a_store_of_ones_own(doctor: Doctor, s3_environment: dict[str, str], bucket_uri: str) -> None:
    report = doctor(
        "--only", "s3", "--only", "cluster", "--storage", f"{bucket_uri}/prefix", **s3_environment
    )
    assert report.failing == {}
    assert report.code == 0
    assert report.told("s3 access") == ("fine", None)
    assert bucket_uri in report.checks["s3 access"]["finding"]
    assert "s3 server" not in report.checks
    assert "not checked" in report.checks["cluster"]["finding"]
    assert list(open_store(Storage(uri=bucket_uri)).list(bucket_uri)) == []


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens on, as long as the test runs."""
    with socket.socket() as kept:
        kept.bind(("127.0.0.1", 0))
        yield kept.getsockname()[1]


def test_a_store_that_does_not_answer(
    doctor: Doctor, s3_environment: dict[str, str], closed_port: int
) -> None:
    endpoint = f"http://127.0.0.1:{closed_port}"
    report = doctor("--only", "s3", "--storage", "s3://bucket", "--endpoint", endpoint, **s3_environment)
    assert report.code == 1
    assert list(report.failing) == ["s3 access"]
    assert report.told("s3 access") == ("fails", "StorageUnreachable")
    assert endpoint in report.checks["s3 access"]["finding"]


@pytest.mark.parametrize(
    ("change", "uri", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, None, "AccessDenied"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, None, "AccessDenied"),
        ({}, "s3://no-such-bucket-anywhere", "BucketNotFound"),
    ],
)
def test_a_store_that_refuses(
    doctor: Doctor,
    s3_environment: dict[str, str],
    bucket_uri: str,
    change: dict[str, str],
    uri: str | None,
    code: str,
) -> None:
    report = doctor("--only", "s3", "--storage", uri or bucket_uri, **{**s3_environment, **change})
    assert report.code == 1
    assert {name: check["code"] for name, check in report.failing.items()} == {"s3 access": code}
    assert report.checks["s3 access"]["remedy"]
    assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in report.said
    assert "wrong-secret" not in report.said


def test_a_stale_supervisor_record_and_what_it_left(doctor: Doctor, s3_server: EmbeddedS3) -> None:
    """A supervisor that was killed: its record names a dead process, its S3 server still runs."""
    workdir = Workdir(doctor.work / "zhongjing-runs")
    workdir.prepare()
    workdir.write_record(SupervisorRecord(process=ProcessRecord(pid=os.getpid(), started="1"), ready=True))
    workdir.s3.mkdir()
    shutil.copy(s3_server.folder / "server.json", workdir.s3)
    before = sorted(path.name for path in workdir.path.iterdir())
    report = doctor("--local", "--only", "supervisor")
    assert report.code == 0
    assert report.told("supervisor") == ("warn", "StaleSupervisor")
    assert str(os.getpid()) in report.checks["supervisor"]["finding"]
    assert "its S3 server still run" in report.checks["supervisor"]["finding"]
    assert "zhongjing submit --local" in report.checks["supervisor"]["remedy"]
    assert sorted(path.name for path in workdir.path.iterdir()) == before


def test_a_document_that_this_machine_cannot_hold(doctor: Doctor) -> None:
    (doctor.work / "my.yaml").write_text(
        "kind: TrainingPipeline\nmetadata: {name: demo}\nspec:\n  base: {tiny: {}}\n"
        "  sources:\n  - {name: talks, uri: talks.jsonl, kind: dialogue}\n"
        "  stages:\n    sft: {data: [{source: talks}], maxLength: 512, workers: 4096}\n"
    )
    report = doctor("--local", "-f", "my.yaml", "--only", "document")
    assert report.code == 1
    assert {name: check["code"] for name, check in report.failing.items()} == {
        "stage sft": "TooManyWorkers",
        "sources": "SourceNotFound",
    }
    assert "talks.jsonl" in report.checks["sources"]["finding"]


@pytest.mark.slow
def test_deep_starts_a_ray_and_a_job_and_ends_them(doctor: Doctor) -> None:
    report = doctor("--local", "--deep", "--only", "ray")
    assert report.failing == {}
    assert report.told("ray start") == ("fine", None)
    assert "2 workers added up 4 MiB by gloo" in report.checks["ray job"]["finding"]
    assert doctor.left() == []
