"""Doctor's judgement of machines: interpreter, packages, memory, disks, limits, ports."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.backends.local.cgroups import Limits
from zhongjing.backends.local.temporary import socket_folder
from zhongjing.cli.diagnosis import machine, packages
from zhongjing.cli.diagnosis.children import Children
from zhongjing.cli.diagnosis.finding import Finding, gib
from zhongjing.cli.diagnosis.situation import Situation

GIB = 2**30
DATA = Path("/data")


def situation(folder: Path) -> Situation:
    return Situation(local=True, workdir=folder / "runs", children=Children())


# Interpreter and packages


@pytest.mark.parametrize(
    ("version", "system", "expected"),
    [
        ("3.11.7", "linux x86_64", ("fine", None)),
        ("3.13.0rc1", "linux x86_64", ("fine", None)),
        ("3.10.12", "linux x86_64", ("fails", "UnsupportedPython")),
        ("3.14.0", "linux x86_64", ("fails", "UnsupportedPython")),
        ("3.12.1", "darwin arm64", ("warn", "UnsupportedPython")),
    ],
)
def test_python(version: str, system: str, expected: tuple[str, str | None]) -> None:
    finding = packages.judge_python(version, ">=3.11,<3.14", system)
    assert told(finding) == expected
    assert f"{version} (>=3.11,<3.14 is asked for)" in finding.finding


ASKED = ("rich>=14", 'torch>=2.11; extra == "train"', 'ray[default]<2.61,>=2.60; extra == "train"')
VERSIONS = {"rich": "15.0.0", "torch": "2.13.0+cu130", "ray": "2.60.0"}


@pytest.mark.parametrize(
    ("versions", "name", "expected", "words"),
    [
        (VERSIONS, "packages", ("fine", None), "1 packages are within"),
        (VERSIONS, "packages train", ("fine", None), "2 packages are within"),
        (
            {**VERSIONS, "rich": "13.0"},
            "packages",
            ("fails", "UntestedPackages"),
            "rich 13.0 (asked for: >=14)",
        ),
        ({**VERSIONS, "ray": "2.61.0"}, "packages train", ("fails", "UntestedPackages"), "ray 2.61.0"),
        ({"rich": "15.0"}, "packages train", ("fails", "MissingPackage"), "torch is missing, ray is missing"),
    ],
)
def test_packages(versions: dict[str, str], name: str, expected: tuple[str, str | None], words: str) -> None:
    found = {finding.name: finding for finding in packages.judge(ASKED, versions, local=True)}
    assert told(found[name]) == expected
    assert words in found[name].finding


def test_the_packages_of_training_do_not_matter_elsewhere() -> None:
    assert [finding.name for finding in packages.judge(ASKED, {"rich": "15"}, local=False)] == ["packages"]


def test_this_environment_is_read(tmp_path: Path) -> None:
    found = [*packages.check_python(situation(tmp_path)), *packages.check(situation(tmp_path))]
    assert [(finding.name, *told(finding)) for finding in found] == [
        ("python", "fine", None),
        ("packages", "fine", None),
        ("packages train", "fine", None),
    ]


# Cores and memory


@pytest.mark.parametrize(
    ("cores", "load", "status", "words"),
    [
        (16, 1.0, "fine", "16 cores, load 1.0"),
        (4, 1.0, "fine", "4 cores by the container's limit or the process's affinity, of 16"),
        (1, 1.0, "warn", "1 core by"),
        (16, 33.0, "warn", "keep them busy"),
    ],
)
def test_cores(cores: int, load: float, status: str, words: str) -> None:
    finding = machine.judge_cores(cores, 16, load)
    assert told(finding)[0] == status
    assert words in finding.finding


@pytest.mark.parametrize(
    ("limits", "status", "words"),
    [
        (Limits(), "fine", "12 GiB available of 16 GiB"),
        (Limits(memory=8 * GIB, memory_used=GIB), "fine", "7.0 GiB available of 8.0 GiB (the container's"),
        (Limits(memory=8 * GIB, memory_used=4 * GIB), "warn", "4.0 GiB available of 8.0 GiB"),
        (Limits(memory=4 * GIB), "fails", "takes about 5.0 GiB"),
        (Limits(memory=64 * GIB), "fine", "12 GiB available of 16 GiB"),
        (Limits(memory=8 * GIB, killed=2), "warn", "2 processes of this container were killed"),
    ],
)
def test_memory(limits: Limits, status: str, words: str) -> None:
    finding = machine.judge_memory(16 * GIB, 12 * GIB, limits)
    assert told(finding)[0] == status
    assert words in finding.finding


@pytest.mark.parametrize(("free", "status"), [(7 * GIB, "fine"), (64 * 2**20, "warn"), (None, "warn")])
def test_shared_memory(free: int | None, status: str) -> None:
    finding = machine.judge_shared(free)
    assert told(finding)[0] == status
    assert status == "fine" or "--shm-size" in str(finding.remedy)


# The disk


@pytest.mark.parametrize(
    ("free", "inodes", "status", "words"),
    [
        (80 * GIB, 10**6, "fine", "80 GiB free at /data"),
        (80 * GIB, 0, "fine", "80 GiB free at /data"),
        (3 * GIB, 0, "warn", "3.0 GiB free"),
        (GIB // 2, 0, "fails", "512 MiB free"),
        (80 * GIB, 100, "fails", "only 100 inodes"),
    ],
)
def test_disk(free: int, inodes: int, status: str, words: str) -> None:
    finding = machine.judge_disk(DATA, free, inodes)
    assert told(finding)[0] == status
    assert words in finding.finding


@pytest.mark.parametrize(
    ("kind", "fault", "expected", "words"),
    [
        ("ext4", None, ("fine", None), "ext4 at /data"),
        ("overlay", None, ("fine", None), "overlay"),
        ("nfs4", None, ("warn", "UnusableFileSystem"), "network or shared"),
        ("fuse.sshfs", None, ("warn", "UnusableFileSystem"), "network or shared"),
        ("tmpfs", None, ("warn", "UnusableFileSystem"), "lives in memory"),
        ("nfs", "has no locks (x)", ("fails", "UnusableFileSystem"), "nfs at /data has no locks (x)"),
        ("ext4", "cannot be written (x)", ("fails", "UnusableWorkdir"), "cannot be written (x)"),
    ],
)
def test_file_system(kind: str, fault: str | None, expected: tuple[str, str | None], words: str) -> None:
    finding = machine.judge_file_system(DATA, kind, fault)
    assert told(finding) == expected
    assert words in finding.finding


def test_a_real_folder_has_all_and_nothing_stays_in_it(tmp_path: Path) -> None:
    found = list(machine.check_disk(situation(tmp_path)))
    assert [finding.name for finding in found] == ["disk workdir", "file system", "sockets"]
    assert found[2].status.value == "fine"
    assert "unknown" not in found[1].finding
    assert machine.fault_of(tmp_path) is None
    assert machine.standing(tmp_path / "a" / "b") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    proc = Path("/proc")  # not even by root
    assert str(machine.fault_of(proc)).startswith("cannot be written (")
    monkeypatch.setattr("zhongjing.backends.local.temporary.socket_folder", lambda _: proc)
    finding = machine.check_sockets(proc)
    assert told(finding) == ("fails", "UnusableFileSystem")


def test_locks_that_do_not_exclude(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert machine.fault_of(tmp_path) == "gives one lock to two"

    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    assert machine.fault_of(tmp_path) == "has no locks (No locks available)"


def test_sockets_of_a_long_path_go_elsewhere() -> None:
    short = Path("/home/me/zhongjing-runs")
    assert socket_folder(short) == short
    assert socket_folder(Path("/home/me/a-long-folder/zhongjing-runs")) == Path("/tmp")


# Limits and ports


@pytest.mark.parametrize(
    ("hard", "status"), [(524288, "fine"), (None, "fine"), (2048, "warn"), (256, "fails")]
)
def test_open_files(hard: int | None, status: str) -> None:
    assert told(machine.judge_files(hard))[0] == status


@pytest.mark.parametrize(
    ("limit", "used", "group", "status", "words"),
    [
        (None, 10, Limits(), "fine", "no limit"),
        (4096, 96, Limits(), "fine", "this user may start 4000 more"),
        (4096, 3000, Limits(), "warn", "1096 more"),
        (4096, 5000, Limits(), "fails", "0 more"),
        (4096, 96, Limits(tasks=100, tasks_used=50), "fails", "the container may start 50 more"),
    ],
)
def test_processes(limit: int | None, used: int, group: Limits, status: str, words: str) -> None:
    finding = machine.judge_tasks(limit, used, group)
    assert told(finding)[0] == status
    assert words in finding.finding


def test_limits_of_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def names() -> list[tuple[str, str]]:
        found: list[Finding] = list(machine.check_limits(situation(tmp_path)))
        return [(finding.name, told(finding)[0]) for finding in found][2:]

    assert names() == []
    monkeypatch.setattr("resource.getrlimit", lambda kind: (4 * GIB, 4 * GIB))
    monkeypatch.setattr("os.getuid", lambda: 1)
    assert names() == [("sizes", "fails")]


def test_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = machine.check_ports(situation(tmp_path))
    assert told(finding) == ("fine", None)

    def taken(*_: object) -> None:
        raise OSError("taken")

    monkeypatch.setattr(socket.socket, "bind", taken)
    [finding] = machine.check_ports(situation(tmp_path))
    assert told(finding) == ("fails", "LoopbackBlocked")
    assert "no 24 free ports" in finding.finding


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 MiB"),
        (812 * 2**20, "812 MiB"),
        (1.5 * GIB, "1.5 GiB"),
        (139 * GIB, "139 GiB"),
        (2**41, "2.0 TiB"),
    ],
)
def test_sizes_as_text(size: float, text: str) -> None:
    assert gib(size) == text
