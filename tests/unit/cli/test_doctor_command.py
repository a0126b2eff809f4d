"""The doctor command: checks that raise or hang, child processes, lines, JSON, exit codes."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.doctor_support import told
from zhongjing.backends.local.processes import wait_until
from zhongjing.cli.diagnosis import checks as table
from zhongjing.cli.diagnosis.checks import Check, run_checks
from zhongjing.cli.diagnosis.children import Answer, Children
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine
from zhongjing.codes.storage import STORAGE_UNREACHABLE
from zhongjing.errors import StorageUnavailableError


@pytest.fixture
def situation(tmp_path: Path) -> Iterator[Situation]:
    with Children() as children:
        yield Situation(local=True, workdir=tmp_path / "runs", children=children)


# Running checks


def raising(error: Exception) -> Check:
    def run(situation: Situation) -> list[Finding]:
        raise error

    return Check("it", run)


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError("odd"), "CheckBroke", "not checked: ValueError: odd"),
        (OSError(5, "Input/output error"), "CheckBroke", "Input/output error"),
        (ModuleNotFoundError("no", name="psutil"), "MissingPackage", "the package psutil is not installed"),
        (
            StorageUnavailableError("away", code=STORAGE_UNREACHABLE, where="s3://b"),
            "StorageUnreachable",
            "s3://b: away",
        ),
    ],
)
def test_a_check_that_raises_is_a_finding(
    situation: Situation, error: Exception, code: str, words: str
) -> None:
    [finding] = run_checks([raising(error)], situation)
    assert told(finding) == ("fails", code)
    assert words in finding.finding


def test_a_check_that_hangs_is_cut_off_and_the_others_are_told(situation: Situation) -> None:
    hanging = threading.Event()
    checks = [
        Check("first", lambda _: [fine("first", "well")]),
        Check("stuck", lambda _: [fine("stuck", str(hanging.wait()))], seconds=0.2),
        Check("last", lambda _: [fine("last", "well")]),
    ]
    began = time.monotonic()
    found = list(run_checks(checks, situation))
    assert time.monotonic() - began < 10
    hanging.set()
    assert [finding.name for finding in found] == ["first", "stuck", "last"]
    assert told(found[1]) == ("fails", "CheckHung")
    assert "no answer within 0 s" in found[1].finding


# Child processes

CHILD = """
import os, subprocess, sys, threading
from zhongjing.cli.diagnosis.children import end_with_parent, tell
how, mark = sys.argv[1:]
end_with_parent(lambda: open(mark, "w").close())
print("noise of a library")
tell(pid=os.getpid())
if how == "crash":
    os.kill(os.getpid(), 11)
if how == "hang":
    other = subprocess.Popen(["sleep", "600"])
    tell(other=other.pid)
    open(mark + ".began", "w").close()
    threading.Event().wait()
raise SystemExit("no more" if how == "fail" else 0)
"""


@pytest.fixture
def module(tmp_path: Path) -> dict[str, str]:
    """The environment in which ``doctor_child`` can be run."""
    (tmp_path / "doctor_child.py").write_text(CHILD)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize(
    ("how", "code", "death"),
    [("end", 0, "ended with code 0"), ("fail", 1, "ended with code 1"), ("crash", -11, "died of SIGSEGV")],
)
def test_what_a_child_sent_is_kept(
    tmp_path: Path, module: dict[str, str], how: str, code: int, death: str
) -> None:
    with Children() as children:
        answer = children.run("doctor_child", [how, str(tmp_path / "mark")], seconds=30, environment=module)
    assert answer.code == code
    assert answer.death == death
    assert list(answer.merged()) == ["pid"]
    assert answer.complaint == ("no more" if how == "fail" else "")
    assert not (tmp_path / "mark").exists()


def test_a_child_that_hangs_is_cut_off(tmp_path: Path, module: dict[str, str]) -> None:
    mark = str(tmp_path / "mark")
    with Children() as children:
        answer = children.run("doctor_child", ["hang", mark], seconds=0.5, environment=module)
    assert answer.code is None
    assert answer.death == "was cut off"
    assert [
        process.pid for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or ())
    ] == []


def test_the_end_of_doctor_ends_children_with_theirs_and_removes_its_folder(
    tmp_path: Path, module: dict[str, str]
) -> None:
    mark = tmp_path / "mark"
    answers: list[Answer] = []
    with Children() as children:
        folder = children.folder()
        (folder / "file").touch()
        children.at_end((tmp_path / "ended").touch)

        def work() -> None:
            answers.append(children.run("doctor_child", ["hang", str(mark)], seconds=300, environment=module))

        thread = threading.Thread(target=work)
        thread.start()
        assert wait_until((tmp_path / "mark.began").exists, 60)
    thread.join(30)
    assert not thread.is_alive()
    assert mark.exists(), "the child did not clean up"
    assert wait_until(lambda: gone(answers[0].merged()["other"]), 10)
    assert gone(answers[0].merged()["pid"])
    assert not folder.exists()
    assert (tmp_path / "ended").exists()
    assert children.run("doctor_child", ["end", str(mark)], seconds=30, environment=module).code is None


# The command

FINE = fine("memory", "12 GiB available")
WARN = warn("disk", "3.0 GiB free", machine.LITTLE_DISK)
FAILS = fails("clock", "off by 400 s", machine.WRONG_CLOCK, "set it")


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """What the one check will find; changed by tests."""
    findings = [FINE]
    asked: list[Check] = [Check("all", lambda _: list(findings))]
    monkeypatch.setattr(table, "checks", lambda _: asked)
    return findings


@pytest.mark.parametrize(
    ("findings", "code"), [([FINE], 0), ([FINE, WARN], 0), ([FINE, WARN, FAILS], 1), ([], 0)]
)
def test_exit_codes(command: CommandLine, found: list[Finding], findings: list[Finding], code: int) -> None:
    found[:] = findings
    assert command("doctor", "--local").exit_code == code


def test_lines_and_remedies(command: CommandLine, found: list[Finding]) -> None:
    found[:] = [FINE, WARN, FAILS]
    lines = command("doctor", "--local").stdout.splitlines()
    assert lines[0] == "fine   memory           12 GiB available"
    assert lines[1] == "warn   disk             3.0 GiB free"
    assert lines[2] == f"  remedy: {machine.LITTLE_DISK.remedy}"
    assert lines[3:5] == ["fails  clock            off by 400 s", "  remedy: set it"]
    assert lines[5].startswith("1 fine, 1 warn, 1 fails (")


def test_json(command: CommandLine, found: list[Finding]) -> None:
    found[:] = [FINE, FAILS]
    done = command("doctor", "--local", "-o", "json")
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    assert (value["fine"], value["warn"], value["fails"]) == (1, 0, 1)
    assert value["checks"] == [
        {
            "name": "memory",
            "status": "fine",
            "finding": "12 GiB available",
            "remedy": None,
            "code": None,
        },
        {
            "name": "clock",
            "status": "fails",
            "finding": "off by 400 s",
            "remedy": "set it",
            "code": "WrongClock",
        },
    ]
    assert "fails  clock" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--endpoint", "http://h:1"], "--storage"),
        (["--deep"], "--local"),
        (["--storage", "bucket"], "s3://"),
        (["--local", "-f", "gone.yaml"], "gone.yaml"),
        (["--local", "--unknown"], "--unknown"),
        (["--local", "--only", "ray"], "the checks are: python, packages, torch"),
        (["--only", "torch"], "those of this machine with --local"),
        (["-n", "lab", "--local"], "--namespace belong to a cluster"),
    ],
)
def test_bad_options(command: CommandLine, arguments: list[str], words: str) -> None:
    done = command("doctor", *arguments)
    assert done.exit_code == 2
    assert words in done.output


def test_a_check_alone(command: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [Check("one", lambda _: [FINE]), Check("two", lambda _: [FAILS])]
    monkeypatch.setattr(table, "checks", lambda _: asked)
    assert command("doctor", "--local").exit_code == 1
    assert command("doctor", "--local", "--only", "one").exit_code == 0
    assert command("doctor", "--local", "--only", "one", "--only", "two").exit_code == 1


def test_which_checks_are_made(situation: Situation) -> None:
    names = [check.name for check in table.checks(situation)]
    assert names[0] == "python"
    assert "ray" not in names
    assert "s3" in names
    deep = Situation(local=True, workdir=situation.workdir, children=situation.children, deep=True)
    assert "ray" in [check.name for check in table.checks(deep)]
    away = Situation(local=False, workdir=situation.workdir, children=situation.children)
    assert [check.name for check in table.checks(away)] == ["python", "packages", "s3", "cluster"]
