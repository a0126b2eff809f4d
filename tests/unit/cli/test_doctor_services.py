"""Doctor's judgement of the supervisor, Ray and the object store; documents against the machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.backends.local import machine
from zhongjing.backends.local.processes import ProcessRecord, record, wait_until
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.cli.diagnosis import cluster, document, ray, store, supervisor
from zhongjing.cli.diagnosis.checks import Situation
from zhongjing.cli.diagnosis.finding import skew
from zhongjing.cli.diagnosis.probes import Probes
from zhongjing.codes.ray import RAY_FAILED
from zhongjing.config.resolve import parse_document, resolve
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.storage.progress import Failure

# The supervisor


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    return Workdir(tmp_path)


GONE = ProcessRecord(pid=os.getpid(), started="1")  # another process has its id
FAILURE = Failure(error="BackendError", code="SupervisorFailed", message="no ports", where="", remedy="")


def test_no_supervisor(workdir: Workdir) -> None:
    finding = supervisor.judge(workdir)
    assert told(finding) == ("fine", None)
    assert "none left anything behind" in finding.finding


@pytest.mark.parametrize(
    ("change", "words"),
    [({}, "which is gone"), ({"failure": FAILURE}, "which is gone (it had failed: no ports)")],
)
def test_a_supervisor_that_is_gone(workdir: Workdir, change: dict[str, Any], words: str) -> None:
    workdir.write_record(SupervisorRecord(process=GONE, ready=True, **change))
    finding = supervisor.judge(workdir)
    assert told(finding) == ("warn", "StaleSupervisor")
    assert words in finding.finding


def test_what_a_supervisor_left(workdir: Workdir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "left_running", lambda _: ["3 processes of its Ray", "its S3 server"])
    finding = supervisor.judge(workdir)
    assert told(finding) == ("warn", "StaleSupervisor")
    assert finding.finding.endswith("; 3 processes of its Ray and its S3 server still run")
    (workdir.path / "supervisor.json").write_text("{")
    assert "cannot be read" in supervisor.judge(workdir).finding


@pytest.mark.parametrize(
    ("change", "age", "expected", "words"),
    [
        ({"ready": True}, 1.0, ("fine", None), "drives"),
        ({}, 4.0, ("fine", None), "starting its services for"),
        ({}, 400.0, ("fails", "SupervisorSilent"), "for 400 s"),
        ({"failure": FAILURE}, 4.0, ("fails", "SupervisorFailed"), "has failed: no ports"),
    ],
)
def test_a_supervisor_that_lives(
    workdir: Workdir,
    sleeper: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, Any],
    age: float,
    expected: tuple[str, str | None],
    words: str,
) -> None:
    began = psutil.Process(sleeper.pid).create_time()
    monkeypatch.setattr("time.time", lambda: began + age)
    workdir.write_record(SupervisorRecord(process=record(sleeper.pid), **change))
    finding = supervisor.judge(workdir)
    assert told(finding) == expected
    assert words in finding.finding


def test_a_supervisor_that_is_stopped(workdir: Workdir, sleeper: subprocess.Popen[bytes]) -> None:
    workdir.write_record(SupervisorRecord(process=record(sleeper.pid), ready=True))
    sleeper.send_signal(19)
    assert wait_until(lambda: supervisor.judge(workdir).code == "SupervisorSilent", 10)
    assert "kill -CONT" in str(supervisor.judge(workdir).remedy)


def test_one_that_has_the_lock_and_no_record_yet(workdir: Workdir) -> None:
    file = workdir.lock()
    assert file is not None
    with file:
        assert f"process {os.getpid()} has been starting" in supervisor.judge(workdir).finding


def test_keys_that_others_can_read(tmp_path: Path) -> None:
    key = tmp_path / "environment.json"
    key.touch()
    for folder, mode, status in ((0o755, 0o644, "fails"), (0o700, 0o644, "fine"), (0o755, 0o600, "fine")):
        tmp_path.chmod(folder)
        key.chmod(mode)
        finding = supervisor.secrets(tmp_path)
        assert told(finding)[0] == status
        assert (str(key) in finding.finding) == (status == "fails")


# Ray


def test_the_job_of_a_trial() -> None:
    assert told(ray.judge_job(["noise"], 9.0)) == ("fine", None)
    wrong = ray.judge_job(["noise", "zhongjing-doctor: the sum is wrong"], 9.0)
    assert told(wrong) == ("fails", "TorchUnusable")


class Head:
    """A Ray that does not start, or whose job ends in some state."""

    def __init__(self, state: JobState | None) -> None:
        self.state = state

    def start(self, cores: int) -> None:
        if self.state is None:
            raise BackendError("Ray did not start", code=RAY_FAILED, where="ray.log")

    def stop(self) -> None:
        pass

    def backend(self, name: str) -> Any:
        described = JobDescription(submission_id=name, state=self.state or JobState.FAILED, message="why")
        return SimpleNamespace(
            start=lambda *_: None, describe=lambda _: described, read_log=lambda _: iter([])
        )


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (None, [("ray start", "fails", "RayFailed")]),
        (JobState.FAILED, [("ray start", "fine", None), ("ray job", "fails", "RayRefused")]),
        (JobState.SUCCEEDED, [("ray start", "fine", None), ("ray job", "fine", None)]),
    ],
)
def test_a_trial_of_ray(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: JobState | None,
    expected: list[tuple[str, str, str | None]],
) -> None:
    monkeypatch.setattr("zhongjing.backends.local.ray_head.RayHead", lambda _: Head(state))
    assert [(finding.name, *told(finding)) for finding in ray.probe(str(tmp_path))] == expected


# The object store


@pytest.mark.parametrize(
    ("seconds", "status", "words"),
    [
        (0.4, "fine", "0.4 s ahead of"),
        (-45, "warn", "45.0 s behind"),
        (400, "fails", "signatures are refused"),
    ],
)
def test_the_stores_clock(seconds: float, status: str, words: str) -> None:
    finding = skew("s3 clock", seconds, "the store", "signatures are refused")
    assert told(finding)[0] == status
    assert words in finding.finding


@pytest.fixture
def situation(tmp_path: Path) -> Iterator[Situation]:
    with Probes() as probes:
        yield Situation(local=False, workdir=tmp_path / "runs", probes=probes, environment={})


def test_no_store_is_said_to_be_none(situation: Situation) -> None:
    [finding] = store.store(situation)
    assert told(finding) == ("fine", None)
    assert "--storage" in finding.finding


def test_no_cluster_is_said_to_be_none(situation: Situation) -> None:
    [finding] = cluster.cluster(situation)
    assert told(finding) == ("fine", None)
    assert "not checked" in finding.finding


# Documents

DOCUMENT = """\
kind: TrainingPipeline
metadata: {name: demo}
spec:
  base: {tiny: {}}
  sources:
  - {name: talks, uri: FOLDER/talks.jsonl, kind: dialogue}
  stages:
    sft: {data: [{source: talks}], maxLength: 512, workers: 2, resources: {cpus: 1, memory: 1Gi}}
"""


def held(situation: Situation, text: str) -> list[tuple[str, str, str | None]]:
    asked = replace(situation, local=True, document=resolve(parse_document(text, "my.yaml")))
    return [(finding.name, *told(finding)) for finding in document.document(asked)]


def test_a_document_that_fits(situation: Situation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    turns = [{"role": "user", "content": "头痛"}, {"role": "assistant", "content": "休息"}]
    (tmp_path / "talks.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    assert held(situation, DOCUMENT.replace("FOLDER", str(tmp_path))) == [
        ("stage sft", "fine", None),
        ("models", "fine", None),
        ("sources", "fine", None),
    ]


def test_a_document_that_does_not_fit_is_told_all_of_it(
    situation: Situation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    text = DOCUMENT.replace("FOLDER", str(tmp_path)).replace("workers: 2", "workers: 64")
    text = text.replace("tiny: {}", "tiny: {maxPositions: 64}")
    assert held(situation, text) == [
        ("stage sft", "fails", "TooManyWorkers"),
        ("models", "fails", "TooLongForModel"),
        ("sources", "fails", "SourceNotFound"),
    ]


def test_what_a_stage_takes_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "cores", lambda: 2)
    finding = document.check_capacity(resolve(parse_document(DOCUMENT, "my.yaml")), Stage.SFT)
    assert finding.finding == "2 workers of 1 CPUs, 1Gi of memory: this machine has them"
