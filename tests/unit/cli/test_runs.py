"""status, logs, stop and resume over a session in memory."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import (
    MemorySession,
    desired_state,
    manifest,
    pipeline_status,
    stage_status,
    training_progress,
)
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import ConditionType, DesiredState, PipelineStatus, StageState
from zhongjing.storage.progress import Activity

SFT_RUNS = {
    Stage.SFT: stage_status(
        StageState.RUNNING, submission_id="demo-0a1b2c3d-sft-a1", submitted_at="2026-01-02"
    ),
    Stage.RM: stage_status(StageState.PENDING, attempt=0),
}
ALL_DONE = {Stage.SFT: stage_status(StageState.SUCCEEDED), Stage.RM: stage_status(StageState.SKIPPED)}


def test_status_shows_a_table(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    session.frames = [(pipeline_status(SFT_RUNS), {Stage.SFT: training_progress(Stage.SFT, 30)})]
    result = command("status", "--local")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "demo: Progressing (Running)",
        "Ray dashboard: http://127.0.0.1:8265",
        "stage  state     attempt  step    training  speed           left",
        "sft    training  1        30/100  loss 4.5  12.3k tokens/s  ETA 1m20s",
        "rm     pending",
    ]
    assert command.workdirs == [Path("zhongjing-runs")]
    assert session.closed


def test_status_as_json_is_one_object(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    session.frames = [(pipeline_status(ALL_DONE, ConditionType.COMPLETE), {})]
    session.manifests = {Stage.SFT: manifest(Stage.SFT), Stage.RM: manifest(Stage.RM)}
    result = command("status", "demo", "--local", "-o", "json")
    shown = json.loads(result.stdout)
    assert shown["condition"] == "Complete"
    assert shown["stages"]["sft"]["metricsBefore"]["loss"] == 6.5
    assert shown["stages"]["rm"]["state"] == "Skipped"


def test_status_of_all_pipelines(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    for name in ("one", "two"):
        session.add(desired_state(name))
    result = command("status", "--local")
    assert result.stdout.splitlines() == [
        "pipeline  state              stage",
        "one       not looked at yet  sft pending",
        "two       not looked at yet  sft pending",
        "more of one: zhongjing status NAME --local",
    ]
    session.frames = [(pipeline_status(SFT_RUNS), {Stage.SFT: training_progress(Stage.SFT, 30)})]
    assert command("status", "--local").stdout.splitlines()[:2] == [
        "pipeline  state    stage         step    training  left",
        "one       Running  sft training  30/100  loss 4.5  ETA 1m20s",
    ]
    shown = json.loads(command("status", "--local", "-o", "json").stdout)
    assert sorted(shown["pipelines"]) == ["one", "two"]


def test_watch_follows_to_the_end(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    session.frames = [
        (pipeline_status(SFT_RUNS), {Stage.SFT: training_progress(Stage.SFT, 30)}),
        (pipeline_status(ALL_DONE, ConditionType.COMPLETE), {}),
    ]
    result = command("status", "--local", "--watch")
    assert result.exit_code == 0
    assert "training 30/100" in result.stdout
    assert "demo: Complete" in result.stdout
    assert session.watched == 1


def test_leaving_a_watch_stops_nothing(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    session.frames = [KeyboardInterrupt()]
    result = command("status", "--local", "--watch")
    assert result.exit_code == 130
    assert "the run goes on" in result.stderr
    assert session.calls == []


def test_a_run_in_the_default_folder_is_found_without_local(
    command: CommandLine, session: MemorySession, workdir: Path
) -> None:
    session.add(desired_state())
    assert command("status").exit_code == 0
    assert command.workdirs == [Path("zhongjing-runs")]


def test_without_runs_and_without_a_cluster_the_message_mentions_local(command: CommandLine) -> None:
    result = command("status")
    assert result.exit_code == 3
    assert "--local" in result.stderr
    result = command("status", "--local")
    assert result.exit_code == 3
    assert "nothing was run here yet" in result.stderr


@pytest.mark.parametrize("verb", ["status", "logs", "stop", "resume"])
def test_an_unknown_name_is_bad_input(
    command: CommandLine, session: MemorySession, workdir: Path, verb: str
) -> None:
    session.add(desired_state("demo"))
    result = command(verb, "dmo", "--local")
    assert result.exit_code == 2
    assert "there is no pipeline 'dmo'" in result.stderr
    assert "demo" in result.stderr


@pytest.mark.parametrize("verb", ["logs", "stop", "resume"])
def test_several_pipelines_need_a_name(
    command: CommandLine, session: MemorySession, workdir: Path, verb: str
) -> None:
    for name in ("one", "two"):
        session.add(desired_state(name))
    result = command(verb, "--local")
    assert result.exit_code == 2
    assert "name one of: one, two" in result.stderr


def test_logs_take_the_stage_that_runs(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    session.frames = [(pipeline_status(SFT_RUNS), {Stage.SFT: training_progress(Stage.SFT, 30)})]
    session.log_lines = {Stage.SFT: ["\x1b[36m(worker)\x1b[0m first", "second\n"]}
    result = command("logs", "--local", "--follow")
    assert (result.stdout, result.stderr) == ("(worker) first\nsecond\n", "")
    assert session.calls == ["logs demo sft follow=True attempt=None"]


def test_logs_of_a_job_that_prepares_say_so(
    command: CommandLine, session: MemorySession, workdir: Path
) -> None:
    session.add(desired_state())
    prepares = training_progress(Stage.SFT, 0, activity=Activity.PREPARING, message="reading sources")
    session.frames = [(pipeline_status(SFT_RUNS), {Stage.SFT: prepares})]
    result = command("logs", "--local")
    assert (result.stdout, result.exit_code) == ("", 0)
    assert result.stderr == "sft: preparing: reading sources (there may be no log yet)\n"


def test_logs_of_the_stage_that_ran_last(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    done = {
        Stage.SFT: stage_status(StageState.SUCCEEDED, submission_id="x", submitted_at="2026-01-03"),
        Stage.RM: stage_status(StageState.FAILED, submission_id="y", submitted_at="2026-01-02"),
    }
    session.frames = [(pipeline_status(done, ConditionType.FAILED), {})]
    command("logs", "--local", "--attempt", "2")
    command("logs", "--local", "--stage", "rm")
    assert session.calls == ["logs demo sft follow=False attempt=2", "logs demo rm follow=False attempt=None"]


@pytest.mark.parametrize(
    ("options", "words"),
    [((), "no stage was started yet"), (("--stage", "ppo"), "the pipeline has no stage ppo")],
)
def test_logs_that_there_are_not(
    command: CommandLine, session: MemorySession, workdir: Path, options: tuple[str, ...], words: str
) -> None:
    session.add(desired_state())
    result = command("logs", "--local", *options)
    assert result.exit_code == 2
    assert words in result.stderr


STOPPED = pipeline_status(
    {Stage.SFT: stage_status(StageState.SUSPENDED, message="stopped at step 30")},
    ConditionType.SUSPENDED,
    reason="Suspended",
)


@pytest.mark.parametrize(
    ("options", "before", "calls", "words", "watched"),
    [
        ((), pipeline_status(SFT_RUNS), ["suspend demo"], "sft: suspended: stopped at step 30", 1),
        (("--now",), pipeline_status(SFT_RUNS), ["kill demo"], "sft: suspended: stopped at step 30", 1),
        (
            ("--no-wait",),
            pipeline_status(SFT_RUNS),
            ["suspend demo"],
            "demo: asked to stop with a checkpoint\n",
            0,
        ),
        (("--now", "--no-wait"), pipeline_status(SFT_RUNS), ["kill demo"], "demo: told to end at once\n", 0),
        (
            (),
            pipeline_status(ALL_DONE, ConditionType.COMPLETE),
            [],
            "demo: is complete, there is nothing to stop\n",
            0,
        ),
    ],
)
def test_stop(
    command: CommandLine,
    session: MemorySession,
    workdir: Path,
    options: tuple[str, ...],
    before: PipelineStatus,
    calls: list[str],
    words: str,
    watched: int,
) -> None:
    session.add(desired_state())
    session.frames = [(before, {})]
    going = (pipeline_status(SFT_RUNS), {Stage.SFT: training_progress(Stage.SFT, 30)})
    session.after_suspend = session.after_kill = [going, (STOPPED, {})]
    result = command("stop", "--local", *options)
    assert result.exit_code == 0, result.output
    assert session.calls == calls
    assert words in result.stdout
    assert session.watched == watched


def test_status_of_what_is_done_shows_what_it_brought(
    command: CommandLine, session: MemorySession, workdir: Path
) -> None:
    session.add(desired_state())
    session.frames = [(pipeline_status(ALL_DONE, ConditionType.COMPLETE, reason="Complete"), {})]
    session.manifests = {Stage.SFT: manifest(Stage.SFT)}
    session.dashboard_url = None
    assert command("status", "--local").stdout.splitlines() == [
        "demo: Complete",
        "stage  state      attempt  step  held-out",
        "sft    succeeded  1        100   loss 6.5 -> 3.25",
        "rm     succeeded  1",
    ]


def test_resume_follows_to_the_end(command: CommandLine, session: MemorySession, workdir: Path) -> None:
    session.add(desired_state())
    session.frames = [
        (pipeline_status(SFT_RUNS), {Stage.SFT: training_progress(Stage.SFT, 60)}),
        (pipeline_status(ALL_DONE, ConditionType.COMPLETE), {}),
    ]
    session.manifests = {Stage.SFT: manifest(Stage.SFT), Stage.RM: manifest(Stage.RM)}
    result = command("resume", "--local", "-o", "json")
    assert result.exit_code == 0
    assert session.calls == ["resume demo"]
    assert json.loads(result.stdout)["condition"] == "Complete"
    assert "training 60/100" in result.stderr


def test_options_of_a_cluster_do_not_go_with_local(command: CommandLine) -> None:
    result = command("status", "--local", "-n", "team", "--context", "prod")
    assert result.exit_code == 2
    assert "--namespace and --context belong to a cluster" in result.stderr


def test_a_pipeline_that_is_deleted_while_it_is_watched_ends_the_watching(
    command: CommandLine, session: MemorySession, workdir: Path
) -> None:
    session.add(desired_state())
    session.frames = [(pipeline_status(SFT_RUNS), {})]
    known = session.desired

    def gone(pipeline: str) -> DesiredState | None:
        return known(pipeline) if session.looks < 2 else None

    session.desired = gone  # type: ignore[method-assign]
    result = command("status", "demo", "--local", "--watch")
    assert result.exit_code == 2
    assert "error[UnknownPipeline]: the pipeline demo was deleted" in result.stderr
