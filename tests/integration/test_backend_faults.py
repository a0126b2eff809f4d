"""Sudden death of what is around a job, with real processes and stand-ins for the stages' jobs.

``test_sudden_death`` does the like to the real stages; here are the cases that need a closer look.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.local_support import (
    ZHONGJING,
    document,
    end_supervisor,
    follow,
    is_running,
    job_process,
    live,
    open_session,
    starts,
    submit,
    wait_for_step,
)
from zhongjing.backends.local import heartbeat
from zhongjing.backends.local.local_backend import LocalBackend
from zhongjing.backends.local.processes import end, end_marked, marked, wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.local.session import LocalSession
from zhongjing.backends.ray_jobs import ATTEMPT_VARIABLE
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, TransientError
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState
from zhongjing.storage.embedded import GRPC_OFFSET, PARTS

pytestmark = [
    pytest.mark.integration,
    pytest.mark.deaths,
    pytest.mark.timeout(300),
    pytest.mark.usefixtures("fake_jobs"),
]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workdir whose supervisor serves the whole module, and is ended with all it started."""
    path = tmp_path_factory.mktemp("f")
    yield path
    end_supervisor(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    said = [{"role": "user", "content": "头痛怎么办"}, {"role": "assistant", "content": "多休息"}]
    lines = [
        json.dumps({"messages": [*said, {"role": "user", "content": str(n)}, said[1]]}) for n in range(40)
    ]
    (tmp_path / "dialogues.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


def run_until_step(session: LocalSession, data: Path, name: str, step: int = 3, **labels: str) -> None:
    """Starts an SFT stand-in and waits until it has made ``step`` steps."""
    user = document(data, name, stages=(Stage.SFT,), **{"steps": "15", "step_seconds": "0.2", **labels})
    follow(session, submit(session, user), is_running(Stage.SFT))
    wait_for_step(session, name, step)


def first_step_of(session: LocalSession, name: str, attempt: int) -> int:
    """The first step that an attempt made."""
    lines = session.logs(name, Stage.SFT, attempt=attempt)
    return next(int(line.split()[1]) for line in lines if line.startswith("step "))


def test_a_run_is_ended_at_once_and_goes_on(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        run_until_step(session, data, "ended")
        job = job_process(session, Stage.SFT)
        started = time.monotonic()
        desired = session.kill("ended")
        assert time.monotonic() - started < 2
        assert wait_until(lambda: not job.is_running(), 5), "it was not asked, it was ended"
        status = follow(session, desired)
        assert status.holds(ConditionType.SUSPENDED)
        progress = session.progress("ended", Stage.SFT)
        assert progress is not None
        expected = f"was ended; goes on from the checkpoint of step {progress.checkpoint_step}"
        assert status.stage(Stage.SFT).message == expected
        status = follow(session, session.resume("ended"))
        assert status.holds(ConditionType.COMPLETE)
        assert status.stage(Stage.SFT).attempt == 2
        assert first_step_of(session, "ended", 2) > 3


class Command:
    """A real ``zhongjing submit`` that follows a run."""

    def __init__(self, workdir: Path, file: Path, output: Path) -> None:
        self.output = output
        words = ["submit", "--local", "-f", str(file), "--workdir", str(workdir)]
        with output.open("w") as stream:
            self.process = subprocess.Popen(
                [*ZHONGJING, *words],
                stdout=stream,
                stderr=stream,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )

    def wait_for(self, words: str) -> None:
        assert wait_until(lambda: words in self.output.read_text() or self.process.poll() is not None, 60)
        assert self.process.poll() is None, self.output.read_text()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


def test_signals_to_the_command(workdir: Path, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "signals.json"
    user = document(data, "signals", stages=(Stage.SFT,), steps="1000", step_seconds="0.2", deaf="true")
    user["spec"]["base"] = {"tiny": {"maxPositions": 4096}}
    file.write_text(json.dumps(user))
    commands: list[Command] = []

    def submit_again() -> Command:
        commands.append(Command(workdir, file, tmp_path / f"output-{len(commands)}.txt"))
        commands[-1].wait_for("sft      training")
        return commands[-1]

    with open_session(workdir) as session:
        try:
            # A killed command, and a terminal that was closed: the run goes on, and the same again attaches.
            for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGHUP):
                command = submit_again()
                command.send(number)
                assert command.process.wait(10) == -number
            job = job_process(session, Stage.SFT)
            # The job takes its time with the stop; the second Ctrl-C does not.
            command = submit_again()
            command.send(signal.SIGINT)
            command.wait_for("stopping with a checkpoint")
            assert job.is_running()
            command.send(signal.SIGINT)
            sent = time.monotonic()
            assert command.process.wait(20) == 130
            seconds = time.monotonic() - sent
            assert wait_until(lambda: not job.is_running(), 10)
        finally:
            for command in commands:
                command.process.kill()
        output = commands[-1].output.read_text()
        assert "the same command goes on" in output
        assert "Traceback" not in output
        assert seconds < 10, "two seconds on a machine that has nothing else to do"
        status = session.status("signals")
        assert status is not None
        assert status.stage(Stage.SFT).attempt == 1
        assert starts(session, "signals", Stage.SFT) == ["a1"]


def test_ctrl_c_while_the_services_start(tmp_path: Path, data: Path) -> None:
    workdir, file = tmp_path / "w", tmp_path / "early.json"
    user = document(data, "early", stages=(Stage.SFT,))
    user["spec"]["base"] = {"tiny": {"maxPositions": 4096}}
    file.write_text(json.dumps(user))
    command = Command(workdir, file, tmp_path / "output.txt")
    try:
        record = workdir / "supervisor.json"
        assert wait_until(lambda: record.exists() or command.process.poll() is not None, 60)
        assert command.process.poll() is None, command.output.read_text()
        command.send(signal.SIGINT)
        assert command.process.wait(20) == 130
    finally:
        command.process.kill()
    output = command.output.read_text()
    assert "interrupted" in output
    assert "Traceback" not in output
    with open_session(workdir) as session:
        assert session.pipelines() == []
    end_supervisor(workdir)


def test_a_stopped_supervisor_is_replaced(workdir: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "SILENT_SECONDS", 4.0)
    with open_session(workdir) as session:
        run_until_step(session, data, "frozen-supervisor", steps="40")
        before = live(session)
        assert before.active == ["frozen-supervisor"]
        os.kill(before.process.pid, signal.SIGSTOP)
        desired = session.desired("frozen-supervisor")
        assert desired is not None
        status = follow(session, desired)
        assert status.holds(ConditionType.COMPLETE)
        assert starts(session, "frozen-supervisor", Stage.SFT) == ["a1"], "the job did not notice"
        assert not before.process.is_alive
        after = live(session)
        assert after.process != before.process
        assert after.ray == before.ray


def test_an_attempt_that_was_stopped_is_looked_into_and_killed(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        run_until_step(session, data, "hung")
        ray = live(session).ray
        assert ray is not None
        head = RayHead(workdir)
        head.record = ray
        backend = LocalBackend(head, cpus=lambda: 1, package="fake_stage_jobs", on_change=lambda: None)
        job = job_process(session, Stage.SFT)
        attempt = job.environ()[ATTEMPT_VARIABLE]
        assert attempt.endswith("-sft-a1")
        # All of it, Ray's own process that watches the job included: nobody is left who could obey Ray.
        processes = head.attempt_processes(lambda other: other == attempt)
        assert job in processes
        assert len(processes) >= 2
        for process in processes:
            process.suspend()
        stacks = backend.stacks(attempt)
        assert f"process {job.pid} (stopped): " in stacks
        assert "fake_stage_jobs.sft" in stacks
        if os.geteuid() == 0:
            assert "main (" in stacks
            assert "fake_stage_jobs/work.py" in stacks
        backend.stop(attempt)
        assert wait_until(lambda: not any(process.is_running() for process in processes), 30)
        # To the reconciler it is a job that died.
        desired = session.desired("hung")
        assert desired is not None
        status = follow(session, desired)
        assert status.holds(ConditionType.COMPLETE), status.conditions
        assert status.stage(Stage.SFT).attempt == 2
        assert first_step_of(session, "hung", 2) > 3


def test_an_s3_server_that_dies_costs_no_attempt(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        run_until_step(session, data, "brief-outage")
        before = live(session)
        server = json.loads((session.workdir.s3 / "server.json").read_text())
        os.kill(server["pid"], signal.SIGKILL)
        status = _follow_by_name(session, "brief-outage")
        assert status.holds(ConditionType.COMPLETE), status.conditions
        assert status.stage(Stage.SFT).attempt == 1
        assert live(session).ray == before.ray


def test_an_s3_server_that_has_to_move_takes_clients_and_jobs_along(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        run_until_step(session, data, "moved")
        before = live(session)
        ports = json.loads((session.workdir.s3 / "ports.json").read_text())
        server = json.loads((session.workdir.s3 / "server.json").read_text())
        os.kill(server["pid"], signal.SIGKILL)
        with socket.socket() as taken:
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            assert wait_until(lambda: _bound(taken, ports["s3"]), 10)
            taken.listen()
            status = _follow_by_name(session, "moved")
        assert status.holds(ConditionType.COMPLETE), status.conditions
        assert live(session).s3_endpoint != before.s3_endpoint
        assert status.stage(Stage.SFT).attempt == 2
        assert first_step_of(session, "moved", 2) > 3


def test_after_a_power_cut_the_same_command_goes_on_and_leaves_nothing(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A workdir too long for sockets, so that there is a folder outside too.
    path = tmp_path / ("long-" * 15) / "w"
    outside = [tmp_path / "home", tmp_path / "temporary"]
    for folder in outside:
        folder.mkdir()
    monkeypatch.setenv("HOME", str(outside[0]))
    monkeypatch.setenv("TMPDIR", str(outside[1]))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    session = open_session(path, idle_seconds=4)
    mark = RayHead(path).mark
    try:
        run_until_step(session, data, "cut")
        record = live(session)
        assert record.ray is not None
        short = [Path(record.ray.temporary).parent]
        server = json.loads((session.workdir.s3 / "server.json").read_text())
        everything = [psutil.Process(record.process.pid), psutil.Process(server["pid"]), *marked(mark)]
        end(everything, force=True, grace=10)
        assert short[0].is_dir()

        started = time.monotonic()
        session = open_session(path, idle_seconds=4)
        user = document(data, "cut", stages=(Stage.SFT,), steps="15", step_seconds="0.2")
        desired = submit(session, user)
        follow(session, desired, lambda status: status.stage(Stage.SFT).attempt == 2 and _runs(status))
        seconds = time.monotonic() - started
        record = live(session)
        assert record.ray is not None
        short.append(Path(record.ray.temporary).parent)
        status = follow(session, desired)
        assert status.holds(ConditionType.COMPLETE)
        assert first_step_of(session, "cut", 2) > 3
        assert seconds < 60, "a healthy machine takes below 20 s"

        server = json.loads((session.workdir.s3 / "server.json").read_text())
        assert wait_until(lambda: not record.process.is_alive, 30), "it ends itself when nobody watches"
        with pytest.raises(BackendError, match="nothing runs"):
            LocalSession.open(path, start=False)
    finally:
        session.close()
        end_marked(mark)
    assert marked(mark) == []
    assert not psutil.pid_exists(server["pid"])
    assert [folder for folder in short if folder.exists()] == []
    assert [list(folder.iterdir()) for folder in outside] == [[], []]
    left = [f"/tmp/seaweedfs-{part}-grpc-{port + GRPC_OFFSET}.sock" for part, port in server["ports"].items()]
    left += [f"/tmp/seaweedfs-{part}-{port}.sock" for part, port in server["ports"].items()]
    assert len(left) == 2 * len(PARTS)
    assert [name for name in left if Path(name).exists()] == []


def _runs(status: PipelineStatus) -> bool:
    return status.stage(Stage.SFT).state is StageState.RUNNING


def _bound(listener: socket.socket, port: int) -> bool:
    try:
        listener.bind(("127.0.0.1", port))
    except OSError:
        return False
    return True


def _follow_by_name(session: LocalSession, name: str) -> PipelineStatus:
    with session.heartbeat():
        while True:
            try:
                desired = session.desired(name)
            except TransientError:
                continue
            assert desired is not None
            return follow(session, desired)
