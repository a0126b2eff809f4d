"""Doctor's judgement of machines: interpreter, packages, memory, disks, limits, ports."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
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


@pytest.fixture
def situation(tmp_path: Path) -> Situation:
    return Situation(local=True, workdir=tmp_path / "runs", probes=Probes())


Patches = dict[str, Any]
"""What a machine answers, by the names of what is asked."""
MACHINE = "zhongjing.cli.diagnosis.machine"


def python(version: str, system: str = "linux") -> Patches:
    return {"platform.python_version": lambda: version, f"{MACHINE}.sys": SimpleNamespace(platform=system)}


def cores(usable: int, load: float) -> Patches:
    loads = {"os.cpu_count": lambda: 16, "os.getloadavg": lambda: (load, load, load)}
    return {"zhongjing.backends.local.machine.cores": lambda: usable, **loads}


def memory(**limits: int) -> Patches:
    found = SimpleNamespace(total=16 * GIB, available=12 * GIB)
    return {"psutil.virtual_memory": lambda: found, f"{MACHINE}.read_limits": lambda: Limits(**limits)}


def shared(free: int | None) -> Patches:
    usage = SimpleNamespace(free=free)
    return {"pathlib.Path.is_dir": lambda _: free is not None, "psutil.disk_usage": lambda _: usage}


def disk(free: int, inodes: int) -> Patches:
    usage, files = SimpleNamespace(free=free), SimpleNamespace(f_favail=inodes)
    return {"psutil.disk_usage": lambda _: usage, "os.statvfs": lambda _: files}


def mount(kind: str, fault: str | None = None) -> Patches:
    mounted = [SimpleNamespace(mountpoint="/", fstype=kind)]
    return {"psutil.disk_partitions": lambda **_: mounted, f"{MACHINE}.fault_of": lambda _: fault}


def limit(hard: int, used: int = 0, **group: int) -> Patches:
    own = {"resource.getrlimit": lambda _: (hard, hard), "os.getuid": lambda: 1000}
    return {**own, f"{MACHINE}.own_tasks": lambda: used, f"{MACHINE}.read_limits": lambda: Limits(**group)}


@pytest.mark.parametrize(
    ("check", "index", "patches", "expected", "words"),
    [
        (machine.python, 0, python("3.11.7"), "fine", "Python 3.11.7"),
        (machine.python, 0, python("3.13.0rc1"), "fine", "linux"),
        (machine.python, 0, python("3.10.12"), "fails UnsupportedPython", "3.10.12"),
        (machine.python, 0, python("3.14.0"), "fails UnsupportedPython", "3.14.0"),
        (machine.python, 0, python("3.12.1", "darwin"), "warn UnsupportedPython", "only Linux is tested"),
        (machine.cores, 0, cores(16, 1.0), "fine", "16 cores, load 1.0"),
        (machine.cores, 0, cores(4, 1.0), "fine", "4 cores by the container's limit"),
        (machine.cores, 0, cores(1, 1.0), "warn FewCores", "1 core by"),
        (machine.cores, 0, cores(16, 33.0), "warn FewCores", "keep them busy"),
        (machine.memory, 0, memory(), "fine", "12 GiB available of 16 GiB"),
        (machine.memory, 0, memory(memory=8 * GIB, memory_used=GIB), "fine", "7.0 GiB available of 8.0 GiB"),
        (machine.memory, 0, memory(memory=8 * GIB, memory_used=4 * GIB), "warn LittleMemory", "4.0 GiB"),
        (machine.memory, 0, memory(memory=4 * GIB), "fails LittleMemory", "takes about 5.0 GiB"),
        (machine.memory, 0, memory(memory=64 * GIB), "fine", "12 GiB available of 16 GiB"),
        (machine.memory, 0, memory(memory=8 * GIB, killed=2), "warn LittleMemory", "2 processes of this"),
        (machine.memory, 1, shared(7 * GIB), "fine", "7.0 GiB free at /dev/shm"),
        (machine.memory, 1, shared(64 * 2**20), "warn LittleSharedMemory", "Ray takes 256 MiB"),
        (machine.memory, 1, shared(None), "warn LittleSharedMemory", "there is no /dev/shm"),
        (machine.disk, 0, disk(80 * GIB, 10**6), "fine", "80 GiB free at /"),
        (machine.disk, 0, disk(80 * GIB, 0), "fine", "80 GiB free at /"),
        (machine.disk, 0, disk(3 * GIB, 0), "warn LittleDisk", "3.0 GiB free"),
        (machine.disk, 0, disk(GIB // 2, 0), "fails LittleDisk", "512 MiB free"),
        (machine.disk, 0, disk(80 * GIB, 100), "fails LittleDisk", "only 100 inodes"),
        (machine.disk, 1, mount("ext4"), "fine", "ext4 at /"),
        (machine.disk, 1, mount("overlay"), "fine", "overlay"),
        (machine.disk, 1, mount("nfs4"), "warn UnusableFileSystem", "network or shared"),
        (machine.disk, 1, mount("fuse.sshfs"), "warn UnusableFileSystem", "network or shared"),
        (machine.disk, 1, mount("tmpfs"), "warn UnusableFileSystem", "lives in memory"),
        (machine.disk, 1, mount("nfs", "has no locks (x)"), "fails UnusableFileSystem", "has no locks (x)"),
        (machine.disk, 1, mount("ext4", "cannot be written (x)"), "fails UnusableWorkdir", "written (x)"),
        (machine.limits, 0, limit(524288), "fine", "at most 524288"),
        (machine.limits, 0, limit(-1), "fine", "unlimited"),
        (machine.limits, 0, limit(2048), "warn LowLimit", "Ray wants 4096"),
        (machine.limits, 0, limit(0), "fails LowLimit", "at most 0"),
        (machine.limits, 1, limit(-1, 10), "fine", "no limit"),
        (machine.limits, 1, limit(4096, 96), "fine", "this user may start 4000 more"),
        (machine.limits, 1, limit(4096, 3000), "warn LowLimit", "1096 more"),
        (machine.limits, 1, limit(4096, 5000), "fails LowLimit", "0 more"),
        (machine.limits, 1, limit(4096, 96, tasks=100, tasks_used=50), "fails LowLimit", "the container may"),
    ],
)
def test_findings(
    situation: Situation,
    monkeypatch: pytest.MonkeyPatch,
    check: Callable[[Situation], Iterator[Finding]],
    index: int,
    patches: Patches,
    expected: str,
    words: str,
) -> None:
    for name, value in patches.items():
        monkeypatch.setattr(name, value)
    finding = list(check(situation))[index]
    assert " ".join(filter(None, told(finding))) == expected
    assert words in finding.finding


# Interpreter and packages

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


# The disk


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
