"""Doctor's judgement of the supervisor, Ray and the object store; documents against the machine."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.backends.local import machine
from zhongjing.backends.local.processes import ProcessRecord, record, wait_until
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.cli.diagnosis import cluster, document, ray, store, store_probe, supervisor
from zhongjing.cli.diagnosis.children import Answer, Children
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.config.resolve import parse_document, resolve
from zhongjing.config.stages import Stage

# The supervisor

NONE = supervisor.Facts("/runs")
ALIVE = supervisor.Facts("/runs", recorded=7, alive=True, ready=True, age=600.0, locked=True, left=12)


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        (NONE, ("fine", None), "none runs at /runs"),
        (ALIVE, ("fine", None), "process 7 drives /runs, for 10 min"),
        (replace(ALIVE, ready=False, age=4.0), ("fine", None), "starting its services for 4 s"),
        (replace(ALIVE, ready=False, age=400.0), ("fails", "SupervisorSilent"), "for 400 s"),
        (replace(ALIVE, stopped=True), ("fails", "SupervisorSilent"), "process 7 is stopped"),
        (replace(ALIVE, error="no ports"), ("fails", "SupervisorFailed"), "no ports"),
        (replace(NONE, recorded=7), ("warn", "StaleSupervisor"), "process 7, which is gone"),
        (
            replace(NONE, recorded=7, left=3, serving=True),
            ("warn", "StaleSupervisor"),
            "3 processes of its Ray and its S3 server still run",
        ),
        (replace(NONE, recorded=7, error="disk full"), ("warn", "StaleSupervisor"), "disk full"),
        (replace(NONE, damaged=True), ("warn", "StaleSupervisor"), "cannot be read"),
        (replace(NONE, left=3), ("warn", "StaleSupervisor"), "3 processes"),
        (replace(NONE, serving=True), ("warn", "StaleSupervisor"), "its S3 server"),
        (replace(NONE, locked=True), ("fails", "SupervisorSilent"), "no record"),
        (
            replace(NONE, locked=True, recorded=7),
            ("fails", "SupervisorSilent"),
            "the record names process 7, which is gone",
        ),
    ],
)
def test_supervisor(facts: supervisor.Facts, expected: tuple[str, str | None], words: str) -> None:
    finding = supervisor.judge(facts)
    assert told(finding) == expected
    assert words in finding.finding


def gathered(workdir: Workdir) -> supervisor.Facts:
    return supervisor.gather(workdir, workdir.record())


def test_a_workdir_of_a_dead_supervisor(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    assert gathered(workdir) == supervisor.Facts(str(tmp_path))
    workdir.write_record(SupervisorRecord(process=ProcessRecord(pid=os.getpid(), started="1"), ready=True))
    facts = gathered(workdir)
    assert (facts.recorded, facts.alive, facts.locked) == (os.getpid(), False, False)
    (tmp_path / "supervisor.json").write_text("{")
    assert gathered(workdir).damaged


def test_a_lock_that_somebody_holds(tmp_path: Path) -> None:
    with (tmp_path / "supervisor.lock").open("w") as file:
        assert not gathered(Workdir(tmp_path)).locked
        fcntl.flock(file, fcntl.LOCK_EX)
        assert gathered(Workdir(tmp_path)).locked


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_supervisor_that_lives_and_one_that_is_stopped(
    tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    workdir = Workdir(tmp_path)
    workdir.write_record(SupervisorRecord(process=record(sleeper.pid), ready=True))
    facts = gathered(workdir)
    assert (facts.alive, facts.stopped, facts.ready, facts.locked) == (True, False, True, True)
    assert 0 <= facts.age < 60
    sleeper.send_signal(19)
    assert wait_until(lambda: gathered(workdir).stopped, 10)


def test_keys_that_others_can_read(tmp_path: Path) -> None:
    key = tmp_path / "environment.json"
    key.touch()
    key.chmod(0o644)
    tmp_path.chmod(0o755)
    assert supervisor.open_secrets(tmp_path) == [str(key)]
    assert told(supervisor.judge_secrets([str(key)])) == ("fails", "OpenSecrets")
    tmp_path.chmod(0o700)
    assert supervisor.open_secrets(tmp_path) == []
    tmp_path.chmod(0o755)
    key.chmod(0o600)
    assert supervisor.open_secrets(tmp_path) == []
    assert told(supervisor.judge_secrets([])) == ("fine", None)


# Ray

HEAD = supervisor.RayFacts("http://127.0.0.1:1", 2, alive=True, gcs=None, jobs=None, agent=True, guarded=True)


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        (HEAD, ("fine", None), "2 CPUs"),
        (replace(HEAD, alive=False), ("warn", "RayUnreachable"), "gone"),
        (replace(HEAD, gcs="503"), ("fails", "RayUnreachable"), "control service does not answer (503)"),
        (replace(HEAD, jobs="401"), ("fails", "RayUnreachable"), "with the token (401)"),
        (replace(HEAD, agent=False), ("fails", "RayUnreachable"), "agent"),
        (replace(HEAD, guarded=False), ("fails", "OpenSecrets"), "without the token"),
    ],
)
def test_ray_health(facts: supervisor.RayFacts, expected: tuple[str, str | None], words: str) -> None:
    finding = supervisor.judge_ray(facts)
    assert told(finding) == expected
    assert words in finding.finding


def test_nobody_answers_on_a_closed_port() -> None:
    assert "refused" in supervisor.asked("http://127.0.0.1:9/", None)


STARTED = {"ready": 8.0}
RAN = {
    **STARTED,
    "job_seconds": 9.0,
    "ranks": 2,
    "right": True,
    "milliseconds": 5.0,
    "threads": 130,
    "memory": 2**29,
}


@pytest.mark.parametrize(
    ("facts", "answer", "expected"),
    [
        (RAN, Answer((), 0, ""), [("fine", None), ("fine", None)]),
        ({**RAN, "right": False}, Answer((), 0, ""), [("fine", None), ("fails", "TorchUnusable")]),
        ({**STARTED, "job_error": "Failed"}, Answer((), 0, ""), [("fine", None), ("fails", "RayRefused")]),
        (STARTED, Answer((), None, ""), [("fine", None), ("fails", "CheckHung")]),
        ({}, Answer((), None, ""), [("fails", "RayFailed")]),
        ({}, Answer((), 1, "Traceback\nImportError: no"), [("fails", "RayFailed")]),
        (
            {"error": "Ray did not start", "remedy": "see the log", "code": "RayFailed"},
            Answer((), 0, ""),
            [("fails", "RayFailed")],
        ),
    ],
)
def test_a_trial_of_ray(
    facts: dict[str, Any], answer: Answer, expected: list[tuple[str, str | None]]
) -> None:
    assert [told(finding) for finding in ray.judge(facts, answer)] == expected


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
    finding = store_probe.judge_skew(seconds, "the store")
    assert told(finding)[0] == status
    assert words in finding.finding


def test_a_slow_store() -> None:
    assert told(store_probe.judge_speed(90.0, 250.0)) == ("fine", None)
    assert told(store_probe.judge_speed(90.0, 1.0)) == ("warn", "SlowStore")


def test_findings_of_a_child_that_was_cut_off_are_kept() -> None:
    sent = {"name": "s3 access", "status": "fine", "finding": "well", "remedy": None, "code": None}
    first, last = store.judge(Answer((sent,), None, ""))
    assert told(first) == ("fine", None)
    assert told(last) == ("fails", "CheckHung")
    [broke] = store.judge(Answer((), 1, "Traceback\nKeyError: 'x'"))
    assert told(broke) == ("fails", "CheckBroke")
    assert "KeyError: 'x'" in broke.finding


@pytest.fixture
def situation(tmp_path: Path) -> Iterator[Situation]:
    with Children() as children:
        yield Situation(local=False, workdir=tmp_path / "runs", children=children, environment={})


def test_no_store_is_said_to_be_none(situation: Situation) -> None:
    [finding] = store.check(situation)
    assert told(finding) == ("fine", None)
    assert "--storage" in finding.finding


def test_clusters_are_said_not_to_be_checked(
    situation: Situation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    [finding] = cluster.check(situation)
    assert told(finding) == ("fine", None)
    assert "not checked" in finding.finding
    assert list(cluster.check(replace(situation, local=True))) == []


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
    asked = replace(
        situation, local=True, document=resolve(parse_document(text, "my.yaml")), origin="my.yaml"
    )
    return [(finding.name, *told(finding)) for finding in document.check(asked)]


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
    finding = document.check_room(resolve(parse_document(DOCUMENT, "my.yaml")), Stage.SFT)
    assert finding.finding == "2 workers with 1 core, 1Gi of memory each: this machine has them"
