"""Doctor's judgement of machines: interpreter, packages, memory, disks, limits, ports."""

from __future__ import annotations

import socket
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.backends.local.cgroups import Limits
from zhongjing.backends.local.temporary import socket_folder
from zhongjing.cli.diagnosis import machine
from zhongjing.cli.diagnosis.checks import Situation
from zhongjing.cli.diagnosis.finding import Finding, gib
from zhongjing.cli.diagnosis.probes import Probes

GIB = 2**30
Inodes = namedtuple("Inodes", "f_favail")


@pytest.fixture
def situation(tmp_path: Path) -> Situation:
    return Situation(local=True, workdir=tmp_path / "runs", probes=Probes())


# Interpreter and packages


@pytest.mark.parametrize(
    ("version", "system", "expected"),
    [
        ("3.11.7", "linux", ("fine", None)),
        ("3.13.0rc1", "linux", ("fine", None)),
        ("3.10.12", "linux", ("fails", "UnsupportedPython")),
        ("3.14.0", "linux", ("fails", "UnsupportedPython")),
        ("3.12.1", "darwin", ("warn", "UnsupportedPython")),
    ],
)
def test_python(
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
    system: str,
    expected: tuple[str, str | None],
) -> None:
    monkeypatch.setattr("platform.python_version", lambda: version)
    monkeypatch.setattr(machine, "sys", SimpleNamespace(platform=system))
    [finding] = machine.python(situation)
    assert told(finding) == expected
    assert version in finding.finding
    assert system in finding.finding


ASKED = ["rich>=14", 'torch>=2.11; extra == "train"', 'ray[default]<2.61,>=2.60; extra == "train"']
VERSIONS = {"rich": "15.0.0", "torch": "2.13.0+cu130", "ray": "2.60.0"}


def install(monkeypatch: pytest.MonkeyPatch, versions: dict[str, str]) -> None:
    def version(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(metadata, "requires", lambda _: ASKED)
    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("versions", "name", "expected", "words"),
    [
        (VERSIONS, "packages", ("fine", None), "1 packages are within"),
        (VERSIONS, "packages train", ("fine", None), "2 packages are within"),
        ({**VERSIONS, "rich": "13"}, "packages", ("fails", "UntestedPackages"), "rich 13 (asked for: >=14)"),
        ({**VERSIONS, "ray": "2.61.0"}, "packages train", ("fails", "UntestedPackages"), "ray 2.61.0"),
        ({"rich": "15.0"}, "packages train", ("fails", "MissingPackage"), "torch is missing, ray is missing"),
    ],
)
def test_packages(
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
    versions: dict[str, str],
    name: str,
    expected: tuple[str, str | None],
    words: str,
) -> None:
    install(monkeypatch, versions)
    found = {finding.name: finding for finding in machine.packages(situation)}
    assert told(found[name]) == expected
    assert words in found[name].finding


def test_the_packages_of_training_do_not_matter_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, {"rich": "15"})
    away = Situation(local=False, workdir=tmp_path, probes=Probes())
    assert [finding.name for finding in machine.packages(away)] == ["packages"]


def test_this_environment_is_read(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    found = [*machine.python(situation), *machine.packages(situation)]
    assert [(finding.name, *told(finding)) for finding in found] == [
        ("python", "fine", None),
        ("packages", "fine", None),
        ("packages train", "fine", None),
    ]
    monkeypatch.setattr(machine, "NAME", "never-installed")
    assert told(*machine.python(situation)) == ("fine", None)
    assert told(*machine.packages(situation)) == ("warn", "MissingPackage")


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
def test_cores(
    situation: Situation, monkeypatch: pytest.MonkeyPatch, cores: int, load: float, status: str, words: str
) -> None:
    monkeypatch.setattr("zhongjing.backends.local.machine.cores", lambda: cores)
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    monkeypatch.setattr("os.getloadavg", lambda: (load, load, load))
    [finding] = machine.cores(situation)
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
def test_memory(
    situation: Situation, monkeypatch: pytest.MonkeyPatch, limits: Limits, status: str, words: str
) -> None:
    total = SimpleNamespace(total=16 * GIB, available=12 * GIB)
    monkeypatch.setattr("psutil.virtual_memory", lambda: total)
    monkeypatch.setattr(machine, "read_limits", lambda: limits)
    finding = next(iter(machine.memory(situation)))
    assert told(finding)[0] == status
    assert words in finding.finding


@pytest.mark.parametrize(("free", "status"), [(7 * GIB, "fine"), (64 * 2**20, "warn"), (None, "warn")])
def test_shared_memory(
    situation: Situation, monkeypatch: pytest.MonkeyPatch, free: int | None, status: str
) -> None:
    monkeypatch.setattr(Path, "is_dir", lambda _: free is not None)
    monkeypatch.setattr("psutil.disk_usage", lambda _: SimpleNamespace(free=free))
    _, finding = machine.memory(situation)
    assert told(finding)[0] == status
    assert status == "fine" or "--shm-size" in str(finding.remedy)


# The disk


@pytest.mark.parametrize(
    ("free", "inodes", "status", "words"),
    [
        (80 * GIB, 10**6, "fine", "80 GiB free at /"),
        (80 * GIB, 0, "fine", "80 GiB free at /"),
        (3 * GIB, 0, "warn", "3.0 GiB free"),
        (GIB // 2, 0, "fails", "512 MiB free"),
        (80 * GIB, 100, "fails", "only 100 inodes"),
    ],
)
def test_disk(
    situation: Situation, monkeypatch: pytest.MonkeyPatch, free: int, inodes: int, status: str, words: str
) -> None:
    monkeypatch.setattr("psutil.disk_usage", lambda _: SimpleNamespace(free=free))
    monkeypatch.setattr("os.statvfs", lambda _: Inodes(inodes))
    finding = next(iter(machine.disk(situation)))
    assert told(finding)[0] == status
    assert words in finding.finding


@pytest.mark.parametrize(
    ("kind", "fault", "expected", "words"),
    [
        ("ext4", None, ("fine", None), "ext4 at /"),
        ("overlay", None, ("fine", None), "overlay"),
        ("nfs4", None, ("warn", "UnusableFileSystem"), "network or shared"),
        ("fuse.sshfs", None, ("warn", "UnusableFileSystem"), "network or shared"),
        ("tmpfs", None, ("warn", "UnusableFileSystem"), "lives in memory"),
        ("nfs", "has no locks (x)", ("fails", "UnusableFileSystem"), "has no locks (x)"),
        ("ext4", "cannot be written (x)", ("fails", "UnusableWorkdir"), "cannot be written (x)"),
    ],
)
def test_file_system(
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    fault: str | None,
    expected: tuple[str, str | None],
    words: str,
) -> None:
    mounted = [SimpleNamespace(mountpoint="/", fstype=kind)]
    monkeypatch.setattr("psutil.disk_partitions", lambda all: mounted)
    monkeypatch.setattr(machine, "fault_of", lambda _: fault)
    _, finding, _ = machine.disk(situation)
    assert told(finding) == expected
    assert words in finding.finding


def test_a_real_folder_has_all_and_nothing_stays_in_it(situation: Situation, tmp_path: Path) -> None:
    found = list(machine.disk(situation))
    assert [finding.name for finding in found] == ["disk workdir", "file system", "sockets"]
    assert found[2].status.value == "fine"
    assert "unknown" not in found[1].finding
    assert machine.fault_of(tmp_path) is None
    assert machine.standing(tmp_path / "a" / "b") == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    proc = Path("/proc")  # not even by root
    assert str(machine.fault_of(proc)).startswith("cannot be written (")
    monkeypatch.setattr("zhongjing.backends.local.temporary.socket_folder", lambda _: proc)
    *_, finding = machine.disk(situation)
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
    ("hard", "status"), [(524288, "fine"), (-1, "fine"), (2048, "warn"), (256, "fails"), (0, "fails")]
)
def test_open_files(situation: Situation, monkeypatch: pytest.MonkeyPatch, hard: int, status: str) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (hard, hard))
    assert told(next(iter(machine.limits(situation))))[0] == status


@pytest.mark.parametrize(
    ("limit", "used", "group", "status", "words"),
    [
        (-1, 10, Limits(), "fine", "no limit"),
        (4096, 96, Limits(), "fine", "this user may start 4000 more"),
        (4096, 3000, Limits(), "warn", "1096 more"),
        (4096, 5000, Limits(), "fails", "0 more"),
        (4096, 96, Limits(tasks=100, tasks_used=50), "fails", "the container may start 50 more"),
    ],
)
def test_processes(
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
    limit: int,
    used: int,
    group: Limits,
    status: str,
    words: str,
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    monkeypatch.setattr("os.getuid", lambda: 1000)
    monkeypatch.setattr(machine, "own_tasks", lambda: used)
    monkeypatch.setattr(machine, "read_limits", lambda: group)
    finding = list(machine.limits(situation))[1]
    assert told(finding)[0] == status
    assert words in finding.finding


def test_limits_of_this_process(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes() -> list[tuple[str, str]]:
        found: list[Finding] = list(machine.limits(situation))
        return [(finding.name, told(finding)[0]) for finding in found][2:]

    assert sizes() == []
    assert machine.own_tasks() > 0
    monkeypatch.setattr("resource.getrlimit", lambda _: (4 * GIB, 4 * GIB))
    assert sizes() == [("sizes", "fails")]


def test_ports(situation: Situation, monkeypatch: pytest.MonkeyPatch) -> None:
    [finding] = machine.ports(situation)
    assert told(finding) == ("fine", None)

    def taken(*_: Any) -> None:
        raise OSError("taken")

    monkeypatch.setattr(socket.socket, "bind", taken)
    [finding] = machine.ports(situation)
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
