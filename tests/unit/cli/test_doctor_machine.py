"""Doctor's judgement of machines: interpreter, packages, cores, memory, control groups, disks, limits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.backends.local.cgroups import Limits, read_limits
from zhongjing.cli.diagnosis import disk, interpreter, limits, memory, packages, processors
from zhongjing.cli.diagnosis.finding import Finding, Status, gib
from zhongjing.cli.diagnosis.packages import Distribution

GIB = 2**30


# Interpreter


@pytest.mark.parametrize(
    ("version", "system", "expected"),
    [
        ("3.11.7", "linux", ("fine", None)),
        ("3.13.0", "linux", ("fine", None)),
        ("3.13.0rc1", "linux", ("fine", None)),
        ("3.10.12", "linux", ("fails", "UnsupportedPython")),
        ("3.14.0", "linux", ("fails", "UnsupportedPython")),
        ("3.12.1", "darwin", ("warn", "UnsupportedPython")),
    ],
)
def test_python(version: str, system: str, expected: tuple[str, str | None]) -> None:
    finding = interpreter.judge(interpreter.Facts(version, ">=3.11,<3.14", system, "x86_64"))
    assert told(finding) == expected
    assert version in finding.finding
    assert ">=3.11,<3.14" in finding.finding


def test_the_wanted_python_is_that_of_the_metadata() -> None:
    assert ">=3.11" in packages.requires_python()


# Packages

OWN = Distribution(
    "0.1.0", ("rich>=14", 'torch>=2.11; extra == "train"', 'ray[default]<2.61,>=2.60; extra == "train"')
)
GOOD = {
    "zhongjing": OWN,
    "rich": Distribution("15.0.0"),
    "torch": Distribution("2.13.0+cu130"),
    "ray": Distribution("2.60.0", ("click", 'aiohttp>=3.13; extra == "default"', 'dask; extra == "data"')),
    "click": Distribution("8.5.1"),
    "aiohttp": Distribution("3.14.5"),
    "dask": Distribution("0.1"),
}
PINS = {"torch": "2.13.0", "ray": "2.60.0", "click": "8.5.1", "aiohttp": "3.14.5", "dask": "9.9", "pip": "1"}


def look(*, local: bool = True, **changes: Distribution | None) -> dict[str, Finding]:
    installed = {**GOOD, **{name: there for name, there in changes.items() if there is not None}}
    for name, there in changes.items():
        if there is None:
            del installed[name]
    found = packages.judge(packages.Facts(installed, PINS), local=local)
    for finding in found:
        told(finding)
    return {finding.name: finding for finding in found}


def test_packages_as_tested() -> None:
    """A local version (+cu130) is the tested one, and names that zhongjing does not need do not count."""
    found = look()
    assert [finding.status.value for finding in found.values()] == ["fine"] * 3
    assert found["packages tested"].finding == "4 packages have the versions of constraints.txt"


@pytest.mark.parametrize("local", [True, False])
def test_a_missing_extra_names_the_line_that_mends_it(local: bool) -> None:
    found = look(local=local, torch=None, ray=None)["packages train"]
    assert found.status is (Status.FAILS if local else Status.WARN)
    assert found.code == "MissingPackage"
    assert found.remedy == "pip install 'zhongjing[train]'"
    assert "is not installed" in found.finding


def test_a_part_of_an_extra() -> None:
    assert "lacks torch" in look(torch=None)["packages train"].finding


def test_a_version_out_of_range() -> None:
    found = look(ray=Distribution("2.61.0"))
    assert found["packages train"].status is Status.FAILS
    assert "ray 2.61.0 (asked for: <2.61,>=2.60)" in found["packages train"].finding
    found = look(rich=Distribution("13.0"))
    assert found["packages"].status is Status.FAILS
    assert "rich 13.0" in found["packages"].finding


def test_packages_that_contradict_each_other() -> None:
    found = look(aiohttp=Distribution("3.12"))["packages train"]
    assert found.status is Status.WARN
    assert "ray needs aiohttp: aiohttp 3.12 (asked for: >=3.13)" in found.finding


def test_packages_beside_the_tested_ones() -> None:
    found = look(click=Distribution("8.6"), torch=Distribution("2.14.0"))["packages tested"]
    assert found.status is Status.WARN
    assert found.finding.startswith("2 of 4 are not the tested version: ")
    assert "click 8.6 (tested: 8.5.1)" in found.finding
    assert "torch 2.14.0 (tested: 2.13.0)" in found.finding


def test_a_package_that_is_not_installed() -> None:
    [found] = packages.judge(packages.Facts({}, None), local=True)
    assert told(found) == ("warn", "MissingPackage")


def test_constraints_are_parsed_and_names_normalised() -> None:
    text = "# pins\nTyping_Extensions==4.16.0\nzope.interface==1 # why\nurl @ file:///x\n"
    assert packages.parse_constraints(text) == {"typing-extensions": "4.16.0", "zope-interface": "1"}


def test_this_environment_is_read() -> None:
    facts = packages.gather()
    assert facts.constraints is not None
    assert "torch" in facts.constraints
    assert facts.installed["zhongjing"].requires


# Cores

CORES = processors.Facts(machine=16, usable=16, quota=None, load=1.0)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, "fine", "16 cores, load 1.0"),
        ({"quota": 2.5}, "fine", "2.5 cores by the container's limit, of 16"),
        ({"quota": 1.5}, "warn", "take turns"),
        ({"usable": 4}, "fine", "4 cores by the process's affinity, of 16"),
        ({"usable": 1}, "warn", "1 cores"),
        ({"load": 33.0}, "warn", "keep them busy"),
    ],
)
def test_cores(change: dict[str, float], status: str, words: str) -> None:
    finding = processors.judge(replace(CORES, **change))  # type: ignore[arg-type]
    assert told(finding)[0] == status
    assert words in finding.finding


# Memory

MEMINFO = """\
MemTotal:       16777216 kB
MemFree:         1048576 kB
MemAvailable:   12582912 kB
SwapTotal:       2097152 kB
SwapFree:        1048576 kB
HugePages_Total:       0
"""


def test_meminfo_is_read_in_bytes() -> None:
    facts = memory.parse(MEMINFO, Limits())
    assert (facts.total, facts.available) == (16 * GIB, 12 * GIB)
    assert (facts.swap, facts.swap_free) == (2 * GIB, GIB)


@pytest.mark.parametrize(
    ("limits_", "status", "words"),
    [
        (Limits(), "fine", "12 GiB available of 16 GiB, 1.0 GiB of 2.0 GiB swap in use"),
        (Limits(memory=8 * GIB, memory_used=GIB), "fine", "7.0 GiB available of 8.0 GiB (the container's"),
        (Limits(memory=8 * GIB, memory_used=4 * GIB), "warn", "4.0 GiB available of 8.0 GiB"),
        (Limits(memory=4 * GIB), "fails", "takes about 5.0 GiB"),
        (Limits(memory=64 * GIB), "fine", "12 GiB available of 16 GiB,"),
        (Limits(memory=8 * GIB, killed=2), "warn", "killed for memory 2 times"),
    ],
)
def test_memory(limits_: Limits, status: str, words: str) -> None:
    finding = memory.judge(memory.parse(MEMINFO, limits_), local=True)
    assert told(finding)[0] == status
    assert words in finding.finding


def test_little_memory_fails_only_where_runs_happen() -> None:
    facts = memory.parse(MEMINFO, Limits(memory=GIB))
    assert told(memory.judge(facts, local=False)) == ("warn", "LittleMemory")


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        (memory.SharedFacts(8 * GIB, 7 * GIB), "fine"),
        (memory.SharedFacts(64 * 2**20, 64 * 2**20), "warn"),
        (None, "warn"),
    ],
)
def test_shared_memory(facts: memory.SharedFacts | None, status: str) -> None:
    finding = memory.judge_shared(facts)
    assert told(finding)[0] == status
    if status == "warn":
        assert "--shm-size" in (finding.remedy or "")


# Control groups


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


V2_MOUNT = "30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"


def test_version_2_the_tightest_of_all_ancestors_counts(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/pod/memory.max": f"{8 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{5 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.events": "oom 3\noom_kill 2\n",
            "sys/fs/cgroup/pod/cpu.max": "400000 100000\n",
            "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/pids.max": "max\n",
            "sys/fs/cgroup/pod/box/pids.max": "1024\n",
            "sys/fs/cgroup/pod/box/pids.current": "24\n",
        },
    )
    assert read_limits(root) == Limits(
        cpus=1.5, memory=8 * GIB, memory_used=3 * GIB, tasks=1024, tasks_used=24, killed=2
    )


def test_version_2_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/\n",
            "proc/self/mountinfo": V2_MOUNT,
            "sys/fs/cgroup/memory.max": "max\n",
            "sys/fs/cgroup/cpu.max": "max 100000\n",
        },
    )
    assert read_limits(root) == Limits()


def test_version_1_a_path_of_the_host_that_is_not_mounted(tmp_path: Path) -> None:
    """As docker does it: the group's name is the host's, and the mount is the group itself."""
    mounts = "".join(
        f"{number} 20 0:{number} /docker/abc /sys/fs/cgroup/{name} ro - cgroup cgroup rw,{name}\n"
        for number, name in enumerate(("memory", "cpu,cpuacct", "pids"), start=31)
    )
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/docker/abc\n3:cpu,cpuacct:/docker/abc\n2:pids:/docker/abc\n0::/\n",
            "proc/self/mountinfo": mounts,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GIB // 2}\n",
            "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/pids/pids.max": "max\n",
        },
    )
    assert read_limits(root) == Limits(cpus=3.0, memory=2 * GIB, memory_used=GIB // 2, killed=1)


def test_version_1_without_limits(tmp_path: Path) -> None:
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/gone\n3:cpu:/\n",
            "proc/self/mountinfo": "31 20 0:1 / /cg/memory rw - cgroup none rw,memory\n"
            "32 20 0:2 / /cg/cpu rw - cgroup none rw,cpu\n",
            "cg/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "cg/cpu/cpu.cfs_quota_us": "-1\n",
            "cg/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert read_limits(root) == Limits()


def test_no_control_groups(tmp_path: Path) -> None:
    assert read_limits(tmp_path) == Limits()


# Disks

DISK = disk.Facts("/data", free=80 * GIB, total=100 * GIB, inodes=10**6)


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({}, "fine", "80 GiB free of 100 GiB at /data, 1000000 inodes free"),
        ({"inodes": None}, "fine", "at /data"),
        ({"free": 3 * GIB}, "warn", "3.0 GiB free"),
        ({"free": GIB // 2}, "fails", "512 MiB free"),
        ({"inodes": 100}, "fails", "100 inodes free"),
        ({"size": 3 * GIB}, "fine", "which takes 3.0 GiB"),
        ({"size": 3 * GIB, "whole": False}, "fine", "which takes more than 3.0 GiB"),
    ],
)
def test_disk(change: dict[str, int], status: str, words: str) -> None:
    facts = replace(DISK, **change)  # type: ignore[arg-type]
    finding = disk.judge("disk workdir", facts, local=True)
    assert told(finding)[0] == status
    assert words in finding.finding
    assert told(disk.judge("disk workdir", facts, local=False))[0] == (
        "warn" if status == "fails" else status
    )


def test_a_folder_that_does_not_exist_yet_is_its_parents_disk(tmp_path: Path) -> None:
    assert disk.gather(tmp_path / "a" / "b").total == disk.gather(tmp_path).total
    assert disk.same_disk(tmp_path / "a" / "b", tmp_path)


def test_sizes_are_added_up_and_time_is_limited(tmp_path: Path) -> None:
    tree(tmp_path, {"a/one": "x" * 100_000, "a/b/two": "x" * 100_000})
    (tmp_path / "link").symlink_to("/")
    size, whole = disk.measured(tmp_path)
    assert whole
    assert 200_000 <= size < 300_000
    assert disk.measured(tmp_path, seconds=-1) == (0, False)


# Limits

LIMITS = limits.Facts(files=(1024, 524288), tasks=(None, 10), memory=None, file=None, group=Limits())


@pytest.mark.parametrize(
    ("files", "status"),
    [
        ((1024, 524288), "fine"),
        ((1024, None), "fine"),
        ((None, None), "fine"),
        ((1024, 2048), "warn"),
        ((256, 256), "fails"),
    ],
)
def test_open_files(files: tuple[int | None, int | None], status: str) -> None:
    finding = limits.judge_files(replace(LIMITS, files=files), local=True)
    assert told(finding)[0] == status


@pytest.mark.parametrize(
    ("tasks", "group", "status", "words"),
    [
        ((None, 10), Limits(), "fine", "no limit"),
        ((4096, 96), Limits(), "fine", "room for 4000 more"),
        ((4096, 3000), Limits(), "warn", "room for 1096 more"),
        ((4096, 5000), Limits(), "fails", "room for 0 more"),
        ((4096, 96), Limits(tasks=100, tasks_used=50), "fails", "of the container: 100"),
    ],
)
def test_processes(tasks: tuple[int | None, int], group: Limits, status: str, words: str) -> None:
    finding = limits.judge_tasks(replace(LIMITS, tasks=tasks, group=group), local=True)
    assert told(finding)[0] == status
    assert words in finding.finding


def test_limited_sizes() -> None:
    finding = limits.judge_sizes(replace(LIMITS, memory=8 * GIB, file=GIB), local=True)
    assert told(finding) == ("fails", "LowLimit")
    assert finding.finding == "address space is limited to 8.0 GiB and files are limited to 1.0 GiB"


def test_this_machine_is_read() -> None:
    facts = limits.gather()
    assert facts.tasks[1] > 0
    assert memory.gather().total > 2**28
    assert processors.gather().usable >= 1


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
