"""Signs of life: who beats when, who is judged silent, who is ended, and who is asked to make way."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from zhongjing.backends.local import attach as attaching
from zhongjing.backends.local import heartbeat
from zhongjing.backends.local.attach import attach
from zhongjing.backends.local.heartbeat import SILENT_SECONDS, Heartbeat, Monitor
from zhongjing.backends.local.processes import record, wait_until
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.codes.ray import SUPERVISOR_FAILED, SUPERVISOR_SILENT
from zhongjing.errors import BackendError

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


@pytest.fixture
def workdir(tmp_path: Path) -> Workdir:
    place = Workdir(tmp_path / "w")
    place.prepare()
    return place


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that could be a supervisor."""
    with subprocess.Popen(SLEEP) as process:
        yield process
        process.kill()


def test_it_beats_as_long_as_the_loop_may_be_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    beats: list[float] = []
    heart = Heartbeat(lambda: beats.append(time.monotonic()))
    heart.start(0.2)
    try:
        started = beats[0]
        time.sleep(0.5)
        assert len(beats) > 3
        assert max(beats) - started < 0.4, "the loop never came back, so it stopped"
        with heart.busy(60):
            before = len(beats)
            assert wait_until(lambda: len(beats) > before + 3, 10)
        after = len(beats)
        time.sleep(0.1)
        assert len(beats) <= after + 1, "what was allowed for work does not outlive it"
        heart.allow(60)
        assert wait_until(lambda: len(beats) > after + 3, 10)
    finally:
        heart.close()


class Clock:
    """A sign and a clock that a test turns."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.sign = 5.0

    def monitor(self) -> Monitor:
        return Monitor(lambda: self.sign, clock=lambda: self.now)

    def look(self, monitor: Monitor, seconds: float, every: float = 0.05) -> bool:
        silent = False
        for _ in range(round(seconds / every)):
            self.now += every
            silent = monitor.check()
        return silent


def test_silence_is_what_was_listened_to() -> None:
    clock = Clock()
    monitor = clock.monitor()
    assert not clock.look(monitor, SILENT_SECONDS - 1)
    assert clock.look(monitor, 2)
    clock.sign += 1
    assert not clock.look(monitor, 1)
    assert monitor.heard
    assert not clock.look(monitor, SILENT_SECONDS - 2), "a sign starts it all anew"


def test_a_machine_that_slept_is_not_misjudged() -> None:
    clock = Clock()
    monitor = clock.monitor()
    clock.look(monitor, 1)
    for _ in range(10):
        clock.now += 3600  # asleep
        assert not monitor.check()
    clock.sign += 1
    assert not monitor.check()
    assert monitor.heard


def test_a_clock_that_was_set_back_is_a_sign_too() -> None:
    clock = Clock()
    monitor = clock.monitor()
    clock.sign -= 7200
    assert not clock.look(monitor, 0.1)
    assert monitor.heard


def write(workdir: Workdir, process: subprocess.Popen[bytes], **more: object) -> SupervisorRecord:
    found = SupervisorRecord(process=record(process.pid), version="0.1.0", ready=True, **more)
    workdir.write_record(found)
    return found


def test_one_that_gives_signs_is_used(workdir: Workdir, other: subprocess.Popen[bytes]) -> None:
    expected = write(workdir, other)
    workdir.touch("alive")
    assert attach(workdir, start=True) == expected
    # An old sign needs a second look, and a new one suffices.
    os.utime(workdir.path / "alive", (1, 1))
    later = threading.Timer(0.5, workdir.touch, ["alive"])
    later.start()
    assert attach(workdir, start=True) == expected
    later.join()
    # Who starts nothing judges nobody.
    os.utime(workdir.path / "alive", (1, 1))
    assert attach(workdir, start=False) == expected
    assert other.poll() is None


@pytest.mark.parametrize("ready", [True, False])
def test_a_silent_one_is_ended_and_replaced(
    workdir: Workdir, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, ready: bool
) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(attaching, "_spawn", lambda *_: subprocess.Popen([sys.executable, "-c", "exit(7)"]))
    workdir.log.write_text("the new one starts, and is only a stand-in")
    write(workdir, other)
    if not ready:
        workdir.remove_record()
        workdir.path.joinpath("supervisor.lock").write_text(record(other.pid).model_dump_json())
    os.kill(other.pid, signal.SIGSTOP)
    with pytest.raises(BackendError, match="only a stand-in") as failed:
        attach(workdir, start=True)
    assert failed.value.code is SUPERVISOR_FAILED
    assert other.wait(10) == -signal.SIGKILL


def test_one_that_cannot_be_ended_is_named(
    workdir: Workdir, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.3)
    monkeypatch.setattr(attaching, "_KILL_SECONDS", 0.3)
    write(workdir, other)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    with pytest.raises(BackendError, match=str(other.pid)) as failed:
        attach(workdir, start=True)
    assert failed.value.code is SUPERVISOR_SILENT


def test_a_pid_that_is_somebody_else_s_now_is_left_alone(
    workdir: Workdir, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 0.2)
    monkeypatch.setattr(attaching, "_spawn", lambda *_: subprocess.Popen([sys.executable, "-c", "exit(7)"]))
    workdir.log.write_text("a stand-in")
    foreign = record(other.pid).model_copy(update={"started": "1"})
    workdir.write_record(SupervisorRecord(process=foreign, version="0.1.0", ready=True))
    workdir.path.joinpath("supervisor.lock").write_text(foreign.model_dump_json())
    assert workdir.holder() is None
    with pytest.raises(BackendError, match="a stand-in"):
        attach(workdir, start=True)
    assert other.poll() is None


@pytest.mark.parametrize("content", ["", "{", '{"process": 1}', "null"])
def test_a_record_that_was_cut_is_no_obstacle(
    workdir: Workdir, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.setattr(attaching, "_spawn", lambda *_: subprocess.Popen([sys.executable, "-c", "exit(7)"]))
    workdir.log.write_text("a stand-in")
    for name in ("supervisor.json", "supervisor.lock"):
        workdir.path.joinpath(name).write_text(content)
    with pytest.raises(BackendError, match="a stand-in"):
        attach(workdir, start=True)


def test_an_older_release_makes_way_when_nothing_runs(
    workdir: Workdir, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.__version__", "0.2.0")
    monkeypatch.setattr(attaching, "_spawn", lambda *_: subprocess.Popen([sys.executable, "-c", "exit(7)"]))
    workdir.log.write_text("a stand-in")
    write(workdir, other)
    workdir.touch("alive")
    reaper = threading.Thread(target=other.wait)
    reaper.start()
    with pytest.raises(BackendError, match="a stand-in"):
        attach(workdir, start=True)
    reaper.join(10)
    assert other.returncode == -signal.SIGTERM


def test_an_older_release_that_runs_something_is_spoken_of_once(
    workdir: Workdir,
    other: subprocess.Popen[bytes],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("zhongjing.__version__", "0.2.0")
    expected = write(workdir, other, active=["tiny"])
    workdir.touch("alive")
    with caplog.at_level(logging.WARNING):
        assert attach(workdir, start=True) == expected
        assert attach(workdir, start=True) == expected
    assert [each.message for each in caplog.records] == [
        "tiny is run by a supervisor of release 0.1.0; release 0.2.0 takes over when it is done"
    ]
    assert psutil.pid_exists(other.pid)


def test_a_newer_release_is_used(
    workdir: Workdir, other: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.__version__", "0.0.9")
    expected = write(workdir, other)
    workdir.touch("alive")
    assert attach(workdir, start=True) == expected
    assert other.poll() is None


def test_the_lock_tells_who_holds_it(workdir: Workdir) -> None:
    assert workdir.holder() is None
    lock = workdir.lock()
    assert lock is not None
    assert workdir.holder() == record(os.getpid())
    lock.close()
