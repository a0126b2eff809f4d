"""How a supervisor and its clients find each other: records, locks, signs, marks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from zhongjing.backends.local import attach
from zhongjing.backends.local.local_backend import MAX_STARTS, LocalBackend
from zhongjing.backends.local.processes import (
    MARK_VARIABLE,
    ProcessRecord,
    end_marked,
    free_ports,
    marked,
    record,
    wait_until,
)
from zhongjing.backends.local.ray_head import RayHead, RayRecord
from zhongjing.backends.local.workdir import SupervisorRecord, Workdir
from zhongjing.cli.target import OPENER, LocalTarget
from zhongjing.errors import BackendError
from zhongjing.pipeline.backend import JobState

SLEEP = [sys.executable, "-c", "import time; print(1, flush=True); time.sleep(60)"]


def test_a_process_is_recognised_by_its_start() -> None:
    me = record(os.getpid())
    assert me.is_alive
    assert not ProcessRecord(pid=os.getpid(), started=f"{me.started}0").is_alive, "the pid was used again"
    with subprocess.Popen([sys.executable, "-c", "pass"]) as child:
        pass
    assert not ProcessRecord(pid=child.pid, started=me.started).is_alive


def test_marked_processes_are_found_and_ended_wherever_they_went() -> None:
    mark = f"test-{os.getpid()}"
    # In a session of its own and orphaned, as Ray's job drivers are.
    script = (
        "import subprocess, sys; "
        f"subprocess.Popen({SLEEP!r}, start_new_session=True); "
        f"subprocess.Popen({SLEEP!r}, start_new_session=True)"
    )
    subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, MARK_VARIABLE: mark},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    assert len(marked(mark)) == 2
    assert end_marked(mark, grace=2) == 2
    assert marked(mark) == []
    assert end_marked(mark) == 0


def test_children_that_do_not_show_the_mark_are_ended_with_their_parent() -> None:
    mark = f"test-children-{os.getpid()}"
    # As Ray's agents: what they were started with is overwritten.
    script = (
        "import os, subprocess, time; "
        f"child = subprocess.Popen({SLEEP!r}, env={{}}, stdout=subprocess.DEVNULL); "
        "print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, MARK_VARIABLE: mark},
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        child = record(int(parent.stdout.readline()))
        assert child.is_alive
        assert [process.pid for process in marked(mark)] == [parent.pid]
        assert end_marked(mark, grace=2) == 2
        assert not child.is_alive


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(20))) == 20


def test_the_lock_has_one_holder_and_outlives_no_process(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "w")
    workdir.prepare()
    assert (tmp_path / "w").stat().st_mode & 0o777 == 0o700
    lock = workdir.lock()
    assert lock is not None
    assert Workdir(tmp_path / "w").lock() is None
    # A child that outlives the holder must not keep the lock.
    with subprocess.Popen(SLEEP, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        lock.close()
        again = workdir.lock()
        assert again is not None
        again.close()
        child.kill()


def test_a_stale_record_is_no_supervisor(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    assert workdir.live_record() is None
    me = record(os.getpid())
    workdir.write_record(SupervisorRecord(process=me, ready=True))
    assert workdir.live_record() is not None
    workdir.write_record(SupervisorRecord(process=me.model_copy(update={"started": "1"}), ready=True))
    assert workdir.record() is not None
    assert workdir.live_record() is None
    (tmp_path / "supervisor.json").write_text("{damaged")
    assert workdir.record() is None


def test_keys_are_for_the_owner_only(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    workdir.write_environment({"AWS_SECRET_ACCESS_KEY": "s"})
    assert (tmp_path / "environment.json").stat().st_mode & 0o777 == 0o600
    assert workdir.environment() == {"AWS_SECRET_ACCESS_KEY": "s"}


def test_signs_and_names(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    assert workdir.pipelines() == []
    workdir.prepare()
    assert workdir.touched("heartbeat") == 0.0
    workdir.touch("heartbeat")
    assert time.time() - workdir.touched("heartbeat") < 60
    workdir.touch("pipelines/b")
    workdir.touch("pipelines/a")
    assert workdir.pipelines() == ["a", "b"]


def test_a_workdir_is_0700_from_the_start_and_what_a_run_writes_is_its_owners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes: list[int] = []
    before = os.umask(0)
    started: list[int] = []

    def opened(path: Path, start: bool) -> Any:
        modes.append(path.stat().st_mode & 0o777)

    token = OPENER.set(opened)
    try:
        LocalTarget(tmp_path / "new").open(create=True)
        given = Workdir(tmp_path / "given")
        given.path.mkdir()
        given.prepare()
        given.touch("heartbeat")
        given.write_environment({"A": "b"})
        with monkeypatch.context() as patch:
            patch.setattr(attach, "_STARTED", [])  # what is started here is no process
            patch.setattr(subprocess, "Popen", lambda *_, **options: started.append(options["umask"]))
            attach._spawn(given, None, "jobs")
    finally:
        OPENER.reset(token)
        os.umask(before)
    assert modes == [0o700]
    assert started == [0o077]
    assert {entry.name for entry in given.path.iterdir() if entry.stat().st_mode & 0o077} == set()


def test_the_mark_belongs_to_the_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    assert RayHead(tmp_path).mark == RayHead(tmp_path / "link").mark
    assert RayHead(tmp_path).mark != RayHead(tmp_path / "other").mark


class Head(RayHead):
    """A head that starts and dies without processes."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.alive = False
        self.starts: list[int] = []

    @property
    def is_running(self) -> bool:
        return self.alive

    def start(self, cpus: int) -> None:
        self.starts.append(cpus)
        self.alive = True
        process = ProcessRecord(pid=1, started="1")
        self.record = RayRecord(
            process=process, gcs_port=1, dashboard_port=2, agent_port=3, cpus=cpus, temporary="/none"
        )


def test_ray_is_started_when_needed_larger_when_needed_and_not_for_ever(tmp_path: Path) -> None:
    head, needed, told = Head(tmp_path), [2], []
    backend = LocalBackend(head, cpus=lambda: needed[0], package="jobs", on_change=lambda: told.append(1))
    assert backend.describe("x").state is JobState.UNKNOWN, "asking starts nothing"
    backend.stop("x")
    assert head.starts == []
    backend.warm()
    backend.warm()
    assert head.starts == [2]
    needed[0] = 8
    backend.warm()
    assert head.starts == [2, 8]
    assert len(told) == 2
    for _ in range(MAX_STARTS - 2):
        head.alive = False
        backend.warm()
    head.alive = False
    with pytest.raises(BackendError, match="died"):
        backend.warm()
    assert len(head.starts) == MAX_STARTS


def test_waiting_has_an_end() -> None:
    assert wait_until(lambda: True, 0)
    assert not wait_until(lambda: False, 0.1, interval=0.01)
