"""Doctor's judgement of what surrounds a run: ports, names, proxies, file systems, the clock."""

from __future__ import annotations

import inspect
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.cli.doctor_support import told
from zhongjing.backends.local import temporary
from zhongjing.backends.local.processes import free_ports
from zhongjing.cli.diagnosis import clock, filesystem, loopback
from zhongjing.storage.embedded import GRPC_OFFSET, PORTS

# Ports

GOOD = loopback.Facts(free=198, tried=200, talk=None, dealt=(32768, 60999))


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (GOOD, "fine", "198 of 200"),
        (replace(GOOD, dealt=None), "fine", "198 of 200"),
        (replace(GOOD, free=3), "fails", "3 of 200"),
        (replace(GOOD, free=0), "fails", "0 of 200"),
        (replace(GOOD, talk="Connection refused"), "fails", "Connection refused"),
        (replace(GOOD, dealt=(1024, 60999)), "warn", "from 1024 on"),
    ],
)
def test_ports(facts: loopback.Facts, status: str, words: str) -> None:
    finding = loopback.judge(facts, local=True)
    assert told(finding)[0] == status
    assert words in finding.finding


def test_the_ports_tried_are_those_that_local_runs_use() -> None:
    chosen = inspect.signature(free_ports).parameters
    used = [*PORTS, *(port + GRPC_OFFSET for port in PORTS)]
    used += range(chosen["low"].default, chosen["high"].default)
    assert min(used) == loopback.RANGE.start
    assert max(used) == loopback.RANGE.stop - 1


def test_ports_of_this_machine_carry_a_connection() -> None:
    facts = loopback.gather()
    assert facts.talk is None
    assert facts.free > 100


def test_a_taken_port_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert not loopback._binds(server.getsockname()[1])


# Names


@pytest.mark.parametrize(
    ("names", "status"),
    [
        (loopback.Names(("127.0.0.1",), "box", ("10.0.0.5",), 0.01), "fine"),
        (loopback.Names(("::1", "127.0.0.1"), "box", (), 0.01), "fine"),
        (loopback.Names((), "box", ("10.0.0.5",), 0.01), "warn"),
        (loopback.Names(("203.0.113.7",), "box", ("10.0.0.5",), 0.01), "warn"),
        (loopback.Names(("127.0.0.1",), "box", (), 10.0), "warn"),
    ],
)
def test_names(names: loopback.Names, status: str) -> None:
    finding = loopback.judge_names(names)
    assert told(finding)[0] == status
    assert "box" in finding.finding


# Proxies


@pytest.mark.parametrize(
    ("environment", "status", "words"),
    [
        ({}, "fine", "none"),
        ({"https_proxy": "http://proxy:3128"}, "fine", "none"),
        ({"HTTP_PROXY": "http://proxy:3128"}, "warn", "http_proxy=proxy:3128"),
        ({"all_proxy": "proxy:3128"}, "warn", "all_proxy=proxy:3128"),
        ({"http_proxy": "http://proxy:3128", "NO_PROXY": "127.0.0.1"}, "warn", "requests to localhost"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "a,127.0.0.1,localhost"}, "fine", "except"),
        ({"http_proxy": "http://proxy:3128", "no_proxy": "*"}, "fine", "except"),
        ({"http_proxy": "http://me:secret@proxy:3128"}, "warn", "proxy:3128"),
    ],
)
def test_proxy(environment: dict[str, str], status: str, words: str) -> None:
    finding = loopback.judge_proxy(environment)
    assert told(finding)[0] == status
    assert words in finding.finding
    assert "secret" not in finding.finding


# File systems

DISK = filesystem.Facts("/data", "ext4", ())


@pytest.mark.parametrize(
    ("facts", "expected", "words"),
    [
        (DISK, ("fine", None), "ext4 at /data"),
        (replace(DISK, kind="overlay"), ("fine", None), "overlay"),
        (replace(DISK, kind="nfs4"), ("warn", "UnusableFileSystem"), "network or shared"),
        (replace(DISK, kind="fuse.sshfs"), ("warn", "UnusableFileSystem"), "network or shared"),
        (replace(DISK, kind="9p"), ("warn", "UnusableFileSystem"), "network or shared"),
        (replace(DISK, kind="tmpfs"), ("warn", "UnusableFileSystem"), "lives in memory"),
        (
            replace(DISK, kind="nfs", broken=("has no locks (No locks available)",)),
            ("fails", "UnusableFileSystem"),
            "nfs at /data has no locks (No locks available)",
        ),
        (
            replace(DISK, broken=("cannot be written (Permission denied)",)),
            ("fails", "UnusableWorkdir"),
            "Permission denied",
        ),
    ],
)
def test_file_system(facts: filesystem.Facts, expected: tuple[str, str | None], words: str) -> None:
    finding = filesystem.judge("file system", facts, local=True)
    assert told(finding) == expected
    assert words in finding.finding


def test_a_real_folder_has_all_and_nothing_stays_in_it(tmp_path: Path) -> None:
    facts = filesystem.gather(tmp_path)
    assert (facts.broken, facts.sockets) == ((), None)
    assert facts.kind != "unknown"
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written() -> None:
    facts = filesystem.gather(Path("/proc"))  # not even by root
    assert facts.broken[0].startswith("cannot be written (")
    assert told(filesystem.judge_temporary(facts)) == ("warn", "UnusableFileSystem")


def test_the_innermost_mount_names_the_kind() -> None:
    mounts = (
        "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"
        "2 1 0:5 / /data rw - nfs4 server:/export rw\n"
        "3 1 0:6 / /data\\040set rw - tmpfs tmpfs rw\n"
        "4 1 0:7 / /data rw - xfs /dev/sdb rw\n"
    )
    assert filesystem.kind_of(Path("/home/me"), mounts) == "ext4"
    assert filesystem.kind_of(Path("/data/runs"), mounts) == "xfs"
    assert filesystem.kind_of(Path("/data set/runs"), mounts) == "tmpfs"
    assert filesystem.kind_of(Path("/data"), "") == "unknown"


def test_long_paths_of_sockets_go_elsewhere() -> None:
    short = Path("/home/me/zhongjing-runs")
    assert filesystem.socket_folders(short) == (short, short)
    longer = Path("/home/me/a-long-folder/zhongjing-runs")
    assert filesystem.socket_folders(longer) == (filesystem.FALLBACK, longer)
    longest = Path("/home/me") / ("folder" * 9) / "zhongjing-runs"
    assert filesystem.socket_folders(longest) == (filesystem.FALLBACK, filesystem.FALLBACK)


def test_the_lengths_are_those_of_the_temporary_folders() -> None:
    assert filesystem.RAY_BYTES == temporary._SOCKET_BYTES - temporary._RAY_BYTES
    assert filesystem.TEMPORARY_BYTES == temporary._SOCKET_BYTES - temporary._TEMPORARY_BYTES
    assert filesystem.FALLBACK == temporary._SHORT


def test_sockets() -> None:
    fine = filesystem.judge_sockets([DISK], moved=False, local=True)
    assert told(fine) == ("fine", None)
    moved = filesystem.judge_sockets([replace(DISK, path="/tmp"), DISK], moved=True, local=True)
    assert "33 bytes" in moved.finding
    refused = replace(DISK, sockets="Operation not supported")
    finding = filesystem.judge_sockets([DISK, refused], moved=True, local=True)
    assert told(finding) == ("fails", "UnusableFileSystem")
    assert "Operation not supported" in finding.finding


# The clock

CLOCK = clock.Facts(now=2e9, newest=1.9e9, wall=1.0, monotonic=1.0)


@pytest.mark.parametrize(
    ("facts", "status", "words"),
    [
        (CLOCK, "fine", "2033-05-18 03:33:20 UTC"),
        (replace(CLOCK, now=1.9e9 - 10 * 86400), "fails", "10 days before"),
        (replace(CLOCK, wall=61.0), "fails", "it went 61.00 s while 1.00 s passed"),
    ],
)
def test_clock(facts: clock.Facts, status: str, words: str) -> None:
    finding = clock.judge(facts)
    assert told(finding)[0] == status
    assert words in finding.finding


def test_the_clock_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "SAMPLE_SECONDS", 0.01)
    assert clock.judge(clock.gather()).status.value == "fine"
