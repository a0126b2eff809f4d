"""``zhongjing doctor`` through the real command line: real torch, a real S3 server, a real Ray."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.command_line import in_process
from zhongjing.backends.local.processes import ProcessRecord, wait_until
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.cli.diagnosis import store, supervisor
from zhongjing.cli.diagnosis.finding import Finding, Status
from zhongjing.config.sources import Storage
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.objects import open_store

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]


class Doctor:
    """Runs ``zhongjing doctor`` in a folder, with a temporary folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Short: Ray's and other sockets lie below it.
        self.temporary = folder / "t"
        self.temporary.mkdir()
        self.work = folder / "w"
        self.work.mkdir()

    def environment(self) -> dict[str, str]:
        hidden = ("AWS_", "KUBE")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
        own = {"PYTHONPATH": str(ROOT), "TMPDIR": str(self.temporary), "HOME": str(self.folder)}
        return {**kept, **own, "OMP_NUM_THREADS": "1"}

    def __call__(self, *arguments: str) -> dict[str, dict[str, Any]]:
        """What it found, by the names of its checks; nothing fails."""
        words = ("doctor", "-o", "json", *arguments)
        done = in_process("zhongjing", *words, folder=self.work, environment=self.environment())
        value = json.loads(done.stdout)
        assert (done.returncode, value["fails"]) == (0, 0), done.stderr
        return {check["name"]: check for check in value["checks"]}

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
    found = doctor("--local")
    assert {"python", "torch", "gpu", "memory", "disk workdir", "ports", "supervisor"} <= set(found)
    for name in ("s3 server", "s3 access", "s3 conditions", "s3 clock"):
        assert found[name]["status"] == "fine"
    assert "MB/s" in found["s3 speed"]["finding"]
    assert "cluster" not in found
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


@pytest.mark.slow
def test_deep_starts_a_ray_and_a_job_and_ends_them(doctor: Doctor) -> None:
    found = doctor("--local", "--deep", "--only", "ray")
    assert list(found) == ["ray start", "ray job"]
    assert "2 workers added up 4 MiB by gloo" in found["ray job"]["finding"]
    assert doctor.left() == []


# The object store, as its probe tries it


def tried(uri: str, **settings: Any) -> dict[str, Finding]:
    storage = Storage(uri=uri, deadline_seconds=3.0, **settings)
    return {finding.name: finding for finding in store.probe(storage.model_dump_json())}


@pytest.mark.usefixtures("s3_environment")
def test_a_store_of_ones_own(bucket_uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = tried(f"{bucket_uri}/prefix")
    assert list(found) == ["s3 clock", "s3 access", "s3 conditions", "s3 speed"]
    assert [each for each in found.values() if each.status is Status.FAILS] == []
    assert bucket_uri in found["s3 access"].finding
    assert list(open_store(Storage(uri=bucket_uri)).list(bucket_uri)) == []
    monkeypatch.setattr(store, "SLOW", 10.0**6)
    assert tried(bucket_uri)["s3 speed"].code == "SlowStore"


@pytest.mark.usefixtures("s3_environment")
def test_a_store_that_does_not_answer() -> None:
    with socket.socket() as kept:  # a port that nothing listens on
        kept.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{kept.getsockname()[1]}"
        [finding] = tried("s3://bucket", endpoint=endpoint).values()
    assert (finding.name, finding.code) == ("s3 access", "StorageUnreachable")
    assert endpoint in finding.finding


@pytest.mark.parametrize(
    ("change", "uri", "code"),
    [
        ({"AWS_SECRET_ACCESS_KEY": "wrong-secret"}, None, "AccessDenied"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, None, "AccessDenied"),
        ({}, "s3://no-such-bucket-anywhere", "BucketNotFound"),
    ],
)
def test_a_store_that_refuses(
    s3_environment: dict[str, str],
    bucket_uri: str,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, str],
    uri: str | None,
    code: str,
) -> None:
    for name, value in change.items():
        monkeypatch.setenv(name, value)
    finding = tried(uri or bucket_uri)["s3 access"]
    assert (finding.status, finding.code) == (Status.FAILS, code)
    said = f"{finding.finding} {finding.remedy}"
    assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in said
    assert "wrong-secret" not in said


def test_what_a_killed_supervisor_left(tmp_path: Path, s3_server: EmbeddedS3) -> None:
    """Its record names a dead process, its S3 server still runs."""
    workdir = Workdir(tmp_path)
    workdir.write_record(SupervisorRecord(process=ProcessRecord(pid=os.getpid(), started="1"), ready=True))
    workdir.s3.mkdir()
    shutil.copy(s3_server.folder / "server.json", workdir.s3)
    before = sorted(path.name for path in workdir.path.iterdir())
    finding = supervisor.judge(workdir)
    assert (finding.status, finding.code) == (Status.WARN, "StaleSupervisor")
    assert str(os.getpid()) in finding.finding
    assert "its S3 server still run" in finding.finding
    assert sorted(path.name for path in workdir.path.iterdir()) == before
