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
from zhongjing.cli.diagnosis.checks import Check, Situation, run_checks
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.cli.diagnosis.probes import Probes, complete
from zhongjing.codes import machine
from zhongjing.codes.storage import STORAGE_UNREACHABLE
from zhongjing.errors import StorageUnavailableError


@pytest.fixture
def situation(tmp_path: Path) -> Iterator[Situation]:
    with Probes() as probes:
        yield Situation(local=True, workdir=tmp_path / "runs", probes=probes)


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


# Probes

PROBE = """
import os, subprocess, threading
from pathlib import Path
from zhongjing.cli.diagnosis.finding import fine
from zhongjing.cli.diagnosis.probes import clean_up_with

def probe(how, mark):
    clean_up_with(Path(mark).touch)
    print("noise of a library", flush=True)
    yield fine("pid", str(os.getpid()))
    if how == "crash":
        os.kill(os.getpid(), 11)
    if how == "hang":
        other = subprocess.Popen(["sleep", "600"])
        yield fine("other", str(other.pid))
        Path(mark + ".began").touch()
        threading.Event().wait()
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment in which ``doctor_probe`` can be run."""
    (tmp_path / "doctor_probe.py").write_text(PROBE)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


STEPS = {"pid": machine.TORCH_UNUSABLE, "next": machine.GPU_UNUSABLE}


def run(probes: Probes, environment: dict[str, str], how: str, mark: Path, seconds: float) -> list[Finding]:
    named = {"how": how, "mark": str(mark)}
    return probes.run("doctor_probe:probe", STEPS, seconds=seconds, environment=environment, **named)


def gone(finding: Finding) -> bool:
    try:
        stat = Path(f"/proc/{finding.finding}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


def test_what_a_probe_sent_is_kept(tmp_path: Path, environment: dict[str, str]) -> None:
    mark = tmp_path / "mark"
    with Probes() as probes:
        [first] = run(probes, environment, "end", mark, 60)
        assert (first.name, *told(first)) == ("pid", "fine", None)
        assert mark.exists()
        again, died = run(probes, environment, "crash", mark, 60)
    assert again.finding != first.finding
    assert (died.name, *told(died)) == ("next", "fails", "GpuUnusable")
    assert "died of SIGSEGV" in died.finding


@pytest.mark.parametrize(
    ("sent", "code", "complaint", "expected", "words"),
    [
        (
            [],
            1,
            "Traceback\nImportError: no lib\n",
            ("pid", "TorchUnusable"),
            "code 1: ImportError: no",
        ),
        (["pid"], 1, "", ("next", "GpuUnusable"), "nothing was said"),
        (["pid", "next"], -4, "", ("next", "GpuUnusable"), "died of SIGILL"),
        ([], None, "", ("pid", "CheckHung"), "no answer within 9 s: cut off"),
    ],
)
def test_a_probe_that_does_not_come_to_its_end(
    sent: list[str], code: int | None, complaint: str, expected: tuple[str, str], words: str
) -> None:
    *kept, last = complete([fine(name, "well") for name in sent], STEPS, code, complaint, 9.0)
    assert [finding.name for finding in kept] == sent
    assert (last.name, last.code) == expected
    assert words in last.finding


def test_a_probe_that_hangs_is_cut_off(tmp_path: Path, environment: dict[str, str]) -> None:
    mark = tmp_path / "mark"
    with Probes() as probes:
        *_, last = run(probes, environment, "hang", mark, 0.5)
    assert last.code == "CheckHung"
    processes = psutil.process_iter(["cmdline"])
    assert [each.pid for each in processes if str(mark) in " ".join(each.info["cmdline"] or ())] == []


def test_the_end_of_doctor_ends_probes_with_theirs_and_removes_its_folder(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    mark = tmp_path / "mark"
    found: list[Finding] = []
    with Probes() as probes:
        folder = probes.folder()
        (folder / "file").touch()
        probes.at_end((tmp_path / "ended").touch)
        thread = threading.Thread(target=lambda: found.extend(run(probes, environment, "hang", mark, 300)))
        thread.start()
        assert wait_until((tmp_path / "mark.began").exists, 60)
    thread.join(30)
    assert not thread.is_alive()
    assert mark.exists(), "the probe did not clean up"
    assert wait_until(lambda: gone(found[0]) and gone(found[1]), 10)
    assert not folder.exists()
    assert (tmp_path / "ended").exists()
    assert run(probes, environment, "end", mark, 30) == []


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
    deep = Situation(local=True, workdir=situation.workdir, probes=situation.probes, deep=True)
    assert "ray" in [check.name for check in table.checks(deep)]
    away = Situation(local=False, workdir=situation.workdir, probes=situation.probes)
    assert [check.name for check in table.checks(away)] == ["python", "packages", "s3", "cluster"]
