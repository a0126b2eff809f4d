"""The local backend with real processes: supervisor, Ray, S3; only the stages' jobs are stand-ins."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.local_support import (
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
from zhongjing.backends.local.processes import wait_until
from zhongjing.backends.local.workdir import Workdir
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError
from zhongjing.pipeline.backend import ForeignJobError, JobRequest, JobState
from zhongjing.pipeline.prepare import prepare
from zhongjing.pipeline.state import ConditionType, StageState

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300), pytest.mark.usefixtures("fake_jobs")]

CHAIN = (Stage.SFT, Stage.RM, Stage.PPO)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A workdir whose supervisor serves the whole module, and is ended with all it started."""
    path = tmp_path_factory.mktemp("w")
    yield path
    end_supervisor(path)


@pytest.fixture
def own_workdir(tmp_path: Path) -> Iterator[Path]:
    """A workdir of the test's own."""
    path = tmp_path / "w"
    yield path
    end_supervisor(path)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name in ("texts.txt", "dialogues.jsonl", "rankings.jsonl"):
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


# One supervisor serves these.


def test_a_pipeline_runs_and_is_skipped_and_reruns_what_changed(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        user = document(data, "whole", stages=CHAIN)
        desired = submit(session, user)
        status = follow(session, desired)
        assert status.holds(ConditionType.COMPLETE), status.conditions
        assert all(status.stage(stage).state is StageState.SUCCEEDED for stage in CHAIN)
        assert [starts(session, "whole", stage) for stage in CHAIN] == [["a1"]] * 3
        ppo = session.manifest("whole", Stage.PPO)
        assert ppo is not None
        assert {each.stage for each in ppo.inputs} == {Stage.SFT, Stage.RM}
        assert session.pipelines() == ["whole"]
        assert any("step 3" in line for line in session.logs("whole", Stage.RM))

        # The same again: nothing runs, and it says so.
        again = follow(session, submit(session, user))
        assert again.holds(ConditionType.COMPLETE)
        assert all(again.stage(stage).state is StageState.SKIPPED for stage in CHAIN)

        # A training field of rm: rm and ppo run, sft does not.
        user["spec"]["stages"]["rm"]["learningRate"] = 3e-4
        user["spec"]["stages"]["sft"]["retries"] = 7  # operational
        prepared = prepare(session, user)
        assert [each.action for each in prepared.forecasts] == ["skip", "run", "run"]
        changed = follow(session, session.apply(prepared.desired))
        states = [changed.stage(stage).state for stage in CHAIN]
        assert states == [StageState.SKIPPED] + [StageState.SUCCEEDED] * 2
        assert changed.stage(Stage.RM).changes == ["spec.stages.rm.learningRate: 0.0001 -> 0.0003"]
        assert [sorted(starts(session, "whole", stage)) for stage in CHAIN] == [
            ["a1"],
            ["a1", "a2"],
            ["a1", "a2"],
        ]


def test_the_dashboard_wants_the_token_and_shows_no_secret(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        session.warm()
        assert wait_until(lambda: session.dashboard_url is not None, 60)
        url = f"{session.dashboard_url}/api/jobs/"
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=10)
        refused.value.close()
        assert refused.value.code in (401, 403)
        token_file = session.workdir.token_file
        assert token_file.stat().st_mode & 0o777 == 0o600
        assert str(token_file) in (session.dashboard_login or "")
        request = urllib.request.Request(
            url, headers={"Authorization": f"Bearer {token_file.read_text().strip()}"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            shown = answer.read().decode()
        secret = session.workdir.environment()["AWS_SECRET_ACCESS_KEY"]
        assert secret not in shown
        assert secret not in (session.workdir.path / "supervisor.json").read_text()
        assert (session.workdir.path / "environment.json").stat().st_mode & 0o777 == 0o600


def test_the_jobs_api_adopts_refuses_and_forgets(workdir: Path) -> None:
    with open_session(workdir) as session:
        session.warm()
        assert wait_until(lambda: live(session).ray is not None, 60)
        ray = live(session).ray
        assert ray is not None
        token = session.workdir.token_file.read_text().strip()
        jobs = RayJobsBackend(ray.dashboard_url, token, python=sys.executable, package="fake_stage_jobs")
        name = f"direct-{os.getpid()}"
        job = JobRequest(
            submission_id=name, stage=Stage.RM, request_uri="s3://zhongjing/none", metadata={"specHash": "1"}
        )
        assert jobs.describe(name).state is JobState.UNKNOWN
        jobs.stop(name)  # of an unknown job: nothing
        jobs.submit(job)
        jobs.submit(job)  # adopted
        with pytest.raises(ForeignJobError):
            jobs.submit(job.model_copy(update={"metadata": {"specHash": "2"}}))
        lines = list(jobs.tail_logs(name))  # follows to the end
        assert any("NotFoundError" in line for line in lines)
        assert wait_until(lambda: jobs.describe(name).state is JobState.FAILED, 20)
        assert "exit code 1" in jobs.describe(name).message
        with pytest.raises(BackendError, match="token"):
            RayJobsBackend(ray.dashboard_url, "wrong").describe(name)


def test_a_killed_client_changes_nothing_and_the_same_again_attaches(workdir: Path, data: Path) -> None:
    user = document(data, "killed-client", stages=(Stage.SFT,), steps="30", step_seconds="0.2")
    script = (
        "import json, sys, time; from pathlib import Path\n"
        "from zhongjing.backends.local.session import LocalSession\n"
        "from zhongjing.pipeline.prepare import prepare\n"
        "session = LocalSession.open(Path(sys.argv[1]), start=True)\n"
        "session.apply(prepare(session, json.loads(sys.argv[2])).desired)\n"
        "print('applied', flush=True)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", script, str(workdir), json.dumps(user)], stdout=subprocess.PIPE, cwd=root
    ) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"applied\n"
        client.kill()
    with open_session(workdir) as session:
        desired = submit(session, user)
        assert desired.generation == 1, "the same document attaches"
        follow(session, desired, is_running(Stage.SFT))

        other = document(data, "other", stages=(Stage.SFT,))
        with pytest.raises(ConfigError, match="killed-client runs") as refused:
            submit(session, other)
        assert refused.value.exit_code == 2
        changed = json.loads(json.dumps(user))
        changed["spec"]["stages"]["sft"]["learningRate"] = 0.5
        with pytest.raises(ConfigError, match="another document") as refused:
            submit(session, changed)
        assert "learningRate" in str(refused.value)
        assert refused.value.exit_code == 2

        assert follow(session, desired).holds(ConditionType.COMPLETE)
        assert starts(session, "killed-client", Stage.SFT) == ["a1"]


def test_stop_with_a_checkpoint_and_go_on_from_it(workdir: Path, data: Path) -> None:
    user = document(data, "stopped", stages=(Stage.SFT,), steps="25", step_seconds="0.2")
    with open_session(workdir) as session:
        desired = submit(session, user)
        follow(session, desired, is_running(Stage.SFT))
        wait_for_step(session, "stopped", 3)
        status = follow(session, session.suspend("stopped"))
        assert status.holds(ConditionType.SUSPENDED)
        assert "checkpoint at step" in status.stage(Stage.SFT).message
        progress = session.progress("stopped", Stage.SFT)
        assert progress is not None
        assert 2 < progress.step < 25

        status = follow(session, session.resume("stopped"))
        assert status.holds(ConditionType.COMPLETE)
        assert sorted(starts(session, "stopped", Stage.SFT)) == ["a1", "a2"]
        first_steps = [line for line in session.logs("stopped", Stage.SFT) if line.startswith("step ")]
        assert first_steps[0] == f"step {progress.step + 1}", "the second attempt goes on where it stopped"


def test_a_job_that_dies_is_tried_again_and_a_hopeless_one_is_not(workdir: Path, data: Path) -> None:
    with open_session(workdir) as session:
        user = document(data, "dies", stages=(Stage.SFT, Stage.RM), fail_once="sft", fail_data="rm")
        status = follow(session, submit(session, user))
        sft, rm = status.stage(Stage.SFT), status.stage(Stage.RM)
        assert (sft.state, sft.attempt) == (StageState.SUCCEEDED, 2)
        assert sorted(starts(session, "dies", Stage.SFT)) == ["a1", "a2"]
        assert (rm.state, rm.attempt, rm.reason) == (StageState.FAILED, 1, "EmptySource")
        assert (rm.message, rm.remedy) == ("the corpus is empty", "fill it")
        assert status.holds(ConditionType.FAILED)
        # The log of the attempt that was killed is kept too.
        assert any("begins" in line for line in session.logs("dies", Stage.SFT, attempt=1))


# These end services on purpose.


@pytest.mark.slow
def test_a_killed_supervisor_is_replaced_and_the_job_goes_on(workdir: Path, data: Path) -> None:
    user = document(data, "orphaned", stages=(Stage.SFT,), steps="30", step_seconds="0.2")
    with open_session(workdir) as session:
        desired = submit(session, user)
        follow(session, desired, is_running(Stage.SFT))
        wait_for_step(session, "orphaned", 2)
        before = live(session)
        job = job_process(session, Stage.SFT)
        os.kill(before.process.pid, signal.SIGKILL)
        status = follow(session, desired)
        after = live(session)
        assert after.process.pid != before.process.pid
        assert after.ray == before.ray, "the orphaned Ray is adopted"
        assert status.holds(ConditionType.COMPLETE)
        assert starts(session, "orphaned", Stage.SFT) == ["a1"]
        assert not job.is_running()


@pytest.mark.slow
def test_ray_and_s3_are_started_again_when_they_die(workdir: Path, data: Path) -> None:
    user = document(data, "unlucky", stages=(Stage.SFT,), steps="20", step_seconds="0.2")
    with open_session(workdir) as session:
        desired = submit(session, user)
        follow(session, desired, is_running(Stage.SFT))
        wait_for_step(session, "unlucky", 2)
        server = json.loads((session.workdir.s3 / "server.json").read_text())
        os.kill(server["pid"], signal.SIGKILL)
        ray = live(session).ray
        assert ray is not None
        os.kill(ray.process.pid, signal.SIGKILL)
        status = follow(session, desired, timeout=200)
        assert status.holds(ConditionType.COMPLETE), status.conditions
        assert status.stage(Stage.SFT).attempt == 2
        assert sorted(starts(session, "unlucky", Stage.SFT)) == ["a1", "a2"]
        again = live(session).ray
        assert again is not None
        assert again.process != ray.process


@pytest.mark.slow
def test_two_supervisors_race_and_one_stays(own_workdir: Path) -> None:
    command = [sys.executable, "-m", "zhongjing.backends.local.supervisor", "--workdir", str(own_workdir)]
    command += ["--idle-seconds", "60"]
    root = Path(__file__).parents[2]
    racers = [
        subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=root, start_new_session=True)
        for _ in range(3)
    ]
    try:
        # A session that finds no supervisor would start a fourth.
        assert wait_until(lambda: Workdir(own_workdir).record() is not None, 60)
        session = open_session(own_workdir)
        assert wait_until(lambda: sum(racer.poll() is None for racer in racers) == 1, 60)
        [winner] = [racer for racer in racers if racer.poll() is None]
        assert live(session).process.pid == winner.pid
        assert sorted(racer.returncode for racer in racers if racer is not winner) == [0, 0]
        assert live(session).ray is None, "without a stage to run there is no Ray"
        winner.terminate()
        assert winner.wait(30) == 0
        assert session.workdir.record() is None
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
