"""submit over a session in memory: bad input, plan, dry run, exit codes, Ctrl-C, JSON."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import (
    MemorySession,
    manifest,
    pipeline_status,
    stage_status,
    training_progress,
    user_document,
)
from zhongjing.codes.local import WORKDIR_IN_USE
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.resolve import recipe_origin
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError, ConfigError, ConflictError
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState

RECORDS = {
    "dialogue": '{"instruction": "感冒怎么办？", "output": "多喝水，注意休息。"}',
    "ranking": '{"prompt": "感冒怎么办？", "answers": ["多喝水。", "不用管。"]}',
}
RUNS = pipeline_status({Stage.SFT: stage_status(StageState.RUNNING)})
DONE = pipeline_status(
    {Stage.SFT: stage_status(StageState.SUCCEEDED), Stage.RM: stage_status(StageState.SKIPPED)},
    ConditionType.COMPLETE,
)
FAILED = pipeline_status(
    {
        Stage.SFT: stage_status(
            StageState.FAILED,
            reason="Diverged",
            message="loss is not finite",
            remedy="lower the learning rate",
            submission_id="s",
        ),
        Stage.RM: stage_status(StageState.PENDING, attempt=0),
    },
    ConditionType.FAILED,
    reason="Diverged",
    message="sft: loss is not finite",
)


def suspended(message: str) -> PipelineStatus:
    stages = {Stage.SFT: stage_status(StageState.SUSPENDED, message=message)}
    return pipeline_status(stages, ConditionType.SUSPENDED, reason="Suspended")


SUSPENDED = suspended("stopped with a checkpoint at step 7")
ENDED = suspended("was ended; goes on from the checkpoint of step 5")


@pytest.fixture
def my_yaml(tmp_path: Path) -> Path:
    """A document with two stages and local sources that exist."""
    data = user_document()
    for source in data["spec"]["sources"]:
        source["uri"] = f"{source['name']}.jsonl"
        (tmp_path / source["uri"]).write_text(f"{RECORDS[source['kind']]}\n")
    file = tmp_path / "my.yaml"
    file.write_text(yaml.safe_dump(data))
    return file


def submit(command: CommandLine, *more: str) -> Any:
    return command("submit", "--local", "-f", "my.yaml", *more)


def test_success_is_0_and_ends_with_the_table(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.frames = [(RUNS, {Stage.SFT: training_progress(Stage.SFT, 10)}), (DONE, {})]
    session.manifests = {Stage.SFT: manifest(Stage.SFT), Stage.RM: manifest(Stage.RM)}
    result = submit(command)
    assert result.exit_code == 0, result.output
    assert session.calls == ["apply demo sft,rm"]
    assert session.watched == 1
    assert session.closed
    lines = result.stdout.splitlines()
    assert lines[0] == "demo: runs in zhongjing-runs"
    assert lines[1:4] == [
        "stage  plan  why",
        "sft    run   was never run",
        "rm     run   was never run",
    ]
    table = lines[lines.index("stage  state      held-out  before  after  test  steps   time") :]
    assert table[1] == "sft    succeeded  loss         6.5   3.25   3.5    100  1m15s"
    assert "  sft      s3://zhongjing/local/demo/sft/kkkkkkkkkkkkkkkk/model" in table
    # The demo ends with the next two commands, as they are called here.
    assert table[-3:] == [
        "talk to it",
        "  zhongjing pull demo/sft ./model --local",
        "  zhongjing chat ./model",
    ]


def test_a_failed_stage_is_1_and_says_why(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.frames = [(FAILED, {})]
    result = submit(command, "-o", "json")
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-4:] == [
        "",
        "error[Diverged]: sft: loss is not finite",
        "  remedy: lower the learning rate",
        "  log: zhongjing logs demo --stage sft --local",
    ]
    shown = json.loads(result.stdout)
    assert (shown["error"], shown["code"], shown["exitCode"]) == ("TrainingError", "Diverged", 1)
    assert (shown["where"], shown["message"]) == ("demo/sft", "loss is not finite")
    assert (shown["remedy"], shown["traceback"]) == ("lower the learning rate", None)
    assert shown["stages"]["sft"]["message"] == "loss is not finite"


def test_how_an_earlier_run_ended_is_not_shown(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    before = FAILED.model_copy(update={"observed_generation": 0})
    session.frames = [(before, {}), (before, {}), (DONE, {})]
    result = submit(command)
    assert result.exit_code == 0
    assert "failed" not in result.output


def test_waiting_for_input_is_1_and_names_the_command(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    waits = pipeline_status(
        {
            Stage.RM: stage_status(
                StageState.WAITING_FOR_INPUT,
                message="waits for ranked: nothing is at s3://b/k yet",
                remedy="zhongjing feedback export",
            )
        },
        reason="WaitingForInput",
    )
    session.frames = [(waits, {})]
    result = submit(command, "-o", "json")
    assert result.exit_code == 1
    assert "remedy: zhongjing feedback export" in result.stderr
    assert json.loads(result.stdout)["error"] == "MissingInputError"

    session.frames = [(waits, {}), (waits, {}), (DONE, {})]
    assert submit(command, "--wait-for-input").exit_code == 0


def test_a_stage_that_was_never_made_is_bad_input(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    missing = pipeline_status(
        {Stage.SFT: stage_status(StageState.BLOCKED, message="was not made", remedy="submit --stage sft")},
        ConditionType.FAILED,
        reason="MissingInput",
    )
    session.frames = [(missing, {})]
    result = submit(command)
    assert result.exit_code == 2
    assert "remedy: submit --stage sft" in result.stderr


def test_json_is_exactly_one_object_on_stdout(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    answers = {"question": "发烧怎么办？", "base": "##", "sft": "多喝水。", "ppo": "请测体温。"}
    session.frames = [(RUNS, {Stage.SFT: training_progress(Stage.SFT, 10)}), (DONE, {})]
    session.manifests = {Stage.SFT: manifest(Stage.SFT, extra={"answers": answers})}
    result = submit(command, "-o", "json")
    assert result.exit_code == 0
    shown = json.loads(result.stdout)
    assert "error" not in shown
    assert shown["answers"] == answers
    assert shown["stages"]["sft"] == {
        "state": "Succeeded",
        "attempt": 1,
        "key": "k" * 16,
        "reason": "",
        "message": "",
        "remedy": None,
        "manifestUri": None,
        "modelUri": "s3://zhongjing/local/demo/sft/kkkkkkkkkkkkkkkk/model",
        "made": {},
        "metricsBefore": {"loss": 6.5, "perplexity": 665.1},
        "metrics": {"loss": 3.25, "perplexity": 25.8},
        "testMetrics": {"loss": 3.5},
        "data": [],
        "mixture": [],
        "warnings": [],
        "seconds": 75.0,
        "memory": None,
        "step": 100,
        "totalSteps": 100,
    }
    assert "training 10/100" in result.stderr
    assert "请测体温。" in result.stderr


def test_no_wait_leaves_at_once(command: CommandLine, session: MemorySession, my_yaml: Path) -> None:
    result = submit(command, "--no-wait")
    assert result.exit_code == 0
    assert "zhongjing status demo --watch --local" in result.stdout
    assert session.watched == 0


def test_ctrl_c_stops_with_a_checkpoint(command: CommandLine, session: MemorySession, my_yaml: Path) -> None:
    session.frames = [(RUNS, {}), KeyboardInterrupt()]
    session.after_suspend = [(RUNS, {}), (SUSPENDED, {})]
    result = submit(command)
    assert result.exit_code == 130
    assert session.calls == ["apply demo sft,rm", "suspend demo"]
    assert "stopping with a checkpoint (Ctrl-C again ends it now)" in result.stdout
    assert result.stderr == "sft: stopped with a checkpoint at step 7\ndemo: the same command goes on\n"


def test_a_run_that_another_command_stops_says_so_and_how_it_goes_on(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.frames = [(RUNS, {}), (SUSPENDED, {})]
    result = submit(command)
    assert result.exit_code == 130
    assert result.stderr.splitlines() == [
        "sft: stopped with a checkpoint at step 7",
        "demo: another command stopped the run (Ctrl-C, stop, or suspend)",
        "demo: the same command goes on",
    ]


def test_ctrl_c_before_it_was_applied_stops_nothing(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.refusals = [KeyboardInterrupt()]
    result = submit(command)
    assert result.exit_code == 130
    assert session.calls == ["apply demo sft,rm"]
    assert session.wanted == {}
    assert "interrupted" in result.stderr
    assert session.closed


def test_ctrl_c_while_it_was_applied_stops_it(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.interrupted_after_apply = True
    session.after_suspend = [(RUNS, {}), (SUSPENDED, {})]
    result = submit(command, "--no-wait")
    assert result.exit_code == 130
    assert session.calls == ["apply demo sft,rm", "suspend demo"]


def test_a_second_ctrl_c_ends_the_run_at_once(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.frames = [KeyboardInterrupt()]
    session.after_suspend = [KeyboardInterrupt()]
    session.after_kill = [(RUNS, {}), (ENDED, {})]
    result = submit(command, "-o", "json")
    assert result.exit_code == 130
    assert session.calls == ["apply demo sft,rm", "suspend demo", "kill demo"]
    assert json.loads(result.stdout)["error"] == "Interrupted"
    assert "sft: was ended; goes on from the checkpoint of step 5" in result.stderr
    assert "the same command goes on" in result.stderr


def test_a_run_that_does_not_end_at_once_is_not_waited_for(
    command: CommandLine, session: MemorySession, my_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.cli.watch.KILL_SECONDS", 0.3)
    session.frames = [KeyboardInterrupt()]
    session.after_suspend = [KeyboardInterrupt()]
    session.after_kill = [(RUNS, {})]
    started = time.monotonic()
    result = submit(command)
    assert time.monotonic() - started < 5
    assert result.exit_code == 130
    assert "demo: is ending; the same command goes on from the last checkpoint" in result.stderr


def test_a_third_ctrl_c_leaves_and_asks_nothing(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.frames = [KeyboardInterrupt()]
    session.after_suspend = [KeyboardInterrupt()]
    session.after_kill = [KeyboardInterrupt(), AssertionError("nothing is looked at any more")]
    result = submit(command, "-o", "json")
    assert result.exit_code == 130
    assert json.loads(result.stdout) == {
        "pipeline": "demo",
        "error": "Interrupted",
        "code": "Interrupted",
        "exitCode": 130,
    }
    assert "left; the run ends by itself" in result.stderr


def test_a_lost_race_is_prepared_again(command: CommandLine, session: MemorySession, my_yaml: Path) -> None:
    session.refusals = [ConflictError("another command wrote first", code=CONFLICT)]
    session.frames = [(DONE, {})]
    assert submit(command).exit_code == 0
    assert len(session.calls) == 2


def test_another_document_that_runs_is_bad_input(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.refusals = [
        ConfigError("another document runs here", code=WORKDIR_IN_USE, remedy="zhongjing stop")
    ]
    result = submit(command, "-o", "json")
    assert result.exit_code == 2
    shown = json.loads(result.stdout)
    assert (shown["code"], shown["message"], shown["remedy"]) == (
        "WorkdirInUse",
        "another document runs here",
        "zhongjing stop",
    )


def test_a_place_that_stays_away_is_3(
    command: CommandLine, session: MemorySession, my_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.cli.watch.PATIENCE_SECONDS", -1.0)
    session.frames = [BackendUnavailableError("no answer", code=RAY_UNREACHABLE, where="the supervisor")]
    result = submit(command)
    assert result.exit_code == 3
    assert "the supervisor: no answer" in result.stderr


def test_a_hiccup_is_sat_out(command: CommandLine, session: MemorySession, my_yaml: Path) -> None:
    session.frames = [BackendUnavailableError("no answer", code=RAY_UNREACHABLE), (RUNS, {}), (DONE, {})]
    assert submit(command).exit_code == 0


def test_an_unexpected_error_leaves_a_log_and_no_traceback(
    command: CommandLine, session: MemorySession, my_yaml: Path, tmp_path: Path
) -> None:
    session.frames = [ZeroDivisionError("odd")]
    result = submit(command, "-o", "json")
    assert result.exit_code == 1
    shown = json.loads(result.stdout)
    assert shown["error"] == "ZeroDivisionError"
    assert "Traceback" not in result.output
    log = Path(shown["log"])
    assert log.is_relative_to(tmp_path / "zhongjing-runs" / "logs")
    assert "ZeroDivisionError: odd" in log.read_text()
    assert str(log) in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "spec.seed"), "--set takes path=value"),
        (("--set", "spec.sed=1"), "did you mean 'seed'"),
        (("--set", "spec.seed=-1"), "spec.seed"),
        (("--set", "spec.sources.sft.uri=gone.jsonl"), "nothing is at gone.jsonl"),
        (("--stage", "ppo"), "the pipeline has no stage ppo"),
        (("--rerun", "pretrain"), "the pipeline has no stage pretrain"),
        (("--recipe", "tiny"), "give --file or --recipe, not both"),
        (("tiny",), "give FILE or --file, not both"),
        (("-o", "yaml"), "-o yaml prints a document"),
        (("--wait-for-input", "--no-wait"), "contradict each other"),
        (("--release", "z"), "--release belong"),
    ],
)
def test_bad_input_is_2_and_starts_nothing(
    command: CommandLine, session: MemorySession, my_yaml: Path, arguments: tuple[str, ...], words: str
) -> None:
    result = submit(command, *arguments)
    assert result.exit_code == 2, result.output
    assert words in result.stderr
    assert "Traceback" not in result.output
    assert command.workdirs == []
    assert session.calls == []


def test_a_document_may_be_a_word(command: CommandLine, session: MemorySession) -> None:
    applied = command("submit", "tiny", "--local", "--no-wait")
    assert applied.exit_code == 0, applied.output
    assert session.wanted["tiny"].origin == recipe_origin("tiny")
    wrong = command("submit", "teeny", "--local")
    assert wrong.exit_code == 2
    assert "teeny: there is no such file and no such recipe" in wrong.stderr


def test_without_local_and_without_a_cluster(command: CommandLine, my_yaml: Path, workdir: Path) -> None:
    result = command("submit", "-f", "my.yaml")
    assert result.exit_code == 3
    assert "--local" in result.stderr
    assert "no usable kubeconfig" in result.stderr
    for wrong in (("-o", "yaml"), ("tiny", "-f", "my.yaml"), ("--wait-for-input", "--no-wait")):
        assert command("submit", *wrong).exit_code == 2  # whether there is a cluster or not


def test_dry_run_in_a_fresh_place_starts_nothing(
    command: CommandLine, session: MemorySession, my_yaml: Path, tmp_path: Path
) -> None:
    result = submit(command, "--dry-run", "--set", "spec.stages.sft.learningRate=0.001")
    assert result.exit_code == 0
    assert command.workdirs == []
    assert not (tmp_path / "zhongjing-runs").exists()
    assert "# sft    run   was never run" in result.stdout
    shown = yaml.safe_load(result.stdout)
    assert shown["spec"]["stages"]["sft"]["learningRate"] == 0.001
    assert shown["spec"]["stages"]["rm"]["epochs"] == 10


def test_a_dry_run_tells_what_becomes_of_the_records(
    command: CommandLine, session: MemorySession, my_yaml: Path, tmp_path: Path
) -> None:
    result = submit(command, "--dry-run", "--set", "spec.stages.sft.maxLength=16")
    assert "# stage  records of  read" in result.stdout
    assert "spec.stages.sft.maxLength (16); raise it" in result.stdout
    shown = json.loads(submit(command, "--dry-run", "-o", "json").stdout)
    assert [each["stage"] for each in shown["data"]] == ["sft", "rm"]
    counts = shown["data"][0]["sources"][0]["counts"]
    assert counts["read"] == counts["kept"] + counts["duplicates"] > 0


def test_a_dry_run_for_a_cluster_counts_records_without_torch(tmp_path: Path, my_yaml: Path) -> None:
    code = (
        "import sys; from zhongjing.cli.preflight.rehearsal import dry_run_data; "
        "from zhongjing.config.resolve import load_document, resolve; "
        "from zhongjing.config.stages import Stage; "
        f"file = {str(my_yaml)!r}; document = resolve(load_document(file)); "
        "lines, data = dry_run_data(document, [Stage.SFT], origin=file, tokenize=False); "
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules; "
        "assert data[0]['sources'][0]['counts']['read'] > 0, data; print(*lines, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "records of" in done.stdout
    assert "a stage would stop" not in done.stdout
    assert f"data inspect -f {shlex.quote(str(my_yaml))} --tokenizer FOLDER" in done.stdout


def test_dry_run_as_json(command: CommandLine, session: MemorySession, my_yaml: Path, workdir: Path) -> None:
    result = submit(command, "--dry-run", "-o", "json")
    shown = json.loads(result.stdout)
    assert [entry["action"] for entry in shown["plan"]] == ["run", "run"]
    assert len(shown["plan"][0]["key"]) == 16
    assert shown["document"]["metadata"]["name"] == "demo"
    assert session.calls == []
    assert command.workdirs == [Path("zhongjing-runs")]


def test_dry_run_shows_what_is_skipped(
    command: CommandLine, session: MemorySession, my_yaml: Path, workdir: Path
) -> None:
    first = json.loads(submit(command, "--dry-run", "-o", "json").stdout)
    key = first["plan"][0]["key"]
    session.store.records[session.layout("demo").stage(Stage.SFT, key).manifest] = manifest(Stage.SFT)
    again = json.loads(submit(command, "--dry-run", "-o", "json").stdout)
    assert [(entry["action"], entry["reason"]) for entry in again["plan"]] == [
        ("skip", "is done"),
        ("run", "was never run"),
    ]


def test_a_document_printed_by_a_dry_run_is_a_document(
    command: CommandLine, session: MemorySession, my_yaml: Path, tmp_path: Path
) -> None:
    (tmp_path / "again.yaml").write_text(submit(command, "--dry-run").stdout)
    again = command("submit", "again.yaml", "--local", "--dry-run")
    assert again.exit_code == 0
    assert again.stdout == (tmp_path / "again.yaml").read_text()


def test_one_stage_whose_input_is_missing_names_the_command(
    command: CommandLine, session: MemorySession, tmp_path: Path, workdir: Path
) -> None:
    data = user_document(stages=("sft", "rm", "ppo"))
    for source in data["spec"]["sources"]:
        source["uri"] = "all.jsonl"
    (tmp_path / "all.jsonl").write_text(f"{RECORDS['ranking']}\n")
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(data))
    result = submit(command, "--stage", "ppo")
    assert result.exit_code == 2
    assert "zhongjing submit -f my.yaml --stage sft --local" in result.stderr
    shutil.rmtree(workdir)
    fresh = submit(command, "--stage", "ppo", "--dry-run")
    assert fresh.exit_code == 2
    assert "zhongjing submit -f my.yaml --stage sft --local" in fresh.stderr


def test_examples_are_written_into_the_workdir(
    command: CommandLine, session: MemorySession, tmp_path: Path
) -> None:
    data = user_document(stages=("sft",))
    data["spec"]["sources"][0]["uri"] = "example://dialogues?seed=1&scale=0.01"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(data))
    session.frames = [
        (pipeline_status({Stage.SFT: stage_status(StageState.SUCCEEDED)}, ConditionType.COMPLETE), {})
    ]
    assert submit(command).exit_code == 0
    folder = tmp_path / "zhongjing-runs" / "example" / "seed-1-scale-0.01"
    source = session.wanted["demo"].document.spec.sources[0]
    assert Path(source.place).parent == folder
    assert Path(source.place).read_text(encoding="utf-8")
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    assert submit(command).exit_code == 0
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before

    shown = yaml.safe_load(submit(command, "--dry-run").stdout)
    assert shown["spec"]["sources"][0]["uri"] == "example://dialogues?seed=1&scale=0.01"


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("example://nothing?scale=0.01", "there is no example 'nothing'"),
        ("example://dialogues?seed=x", "seed must be a whole number"),
        ("example://dialogues?size=3", "is not understood"),
        ("example://dialogues?scale=0", "is not understood"),
    ],
)
def test_examples_that_do_not_exist(
    command: CommandLine, session: MemorySession, tmp_path: Path, uri: str, words: str
) -> None:
    data = user_document(stages=("sft",))
    data["spec"]["sources"][0]["uri"] = uri
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(data))
    result = submit(command)
    assert result.exit_code == 2
    assert words in result.stderr


def test_what_cannot_fit_is_refused_before_anything_starts(
    command: CommandLine, session: MemorySession, my_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.backends.local.machine.memory", lambda: 2**30)
    result = submit(command, "--set", "spec.stages.sft.workers=2", "-o", "json")
    assert result.exit_code == 2
    shown = json.loads(result.stdout)
    assert (shown["code"], shown["where"]) == ("DoesNotFit", "spec.stages.sft")
    assert "set spec.stages.sft.workers=1" in shown["remedy"]
    assert (session.calls, command.workdirs) == ([], [])

    session.frames = [(DONE, {})]
    forced = submit(command, "--set", "spec.stages.sft.workers=2", "--force")
    assert forced.exit_code == 0, forced.output
    assert "note: started in spite of this (--force): sft cannot fit: a worker would need" in forced.stdout
    assert session.wanted["demo"].document.spec.force


def test_a_dry_run_says_what_would_be_refused(
    command: CommandLine, my_yaml: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.backends.local.machine.memory", lambda: 2**30)
    result = submit(command, "--set", "spec.stages.sft.workers=2", "--dry-run")
    assert result.exit_code == 1, result.output
    assert "# note: would be refused here: sft cannot fit" in result.stdout


def test_records_that_would_stop_a_stage_are_told_before_it_starts(
    command: CommandLine, session: MemorySession, my_yaml: Path, tmp_path: Path
) -> None:
    alone = '{"prompt": "感冒怎么办？", "answers": ["多喝水。"]}\n'
    (tmp_path / "rm.jsonl").write_text(f"{RECORDS['ranking']}\n{alone}")
    dry = submit(command, "--dry-run")
    assert dry.exit_code == 1
    assert "a stage would stop: only one answer is ranked" in dry.stdout
    assert yaml.safe_load(dry.stdout)["metadata"]["name"] == "demo"
    session.frames = [(DONE, {})]
    result = submit(command, "-o", "json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)
    before, _, _ = result.stderr.partition("stage  plan")
    assert "warning: rm: rm: a stage would stop: only one answer is ranked;" in before


def test_an_unknown_base_is_no_reason_to_refuse(
    command: CommandLine, session: MemorySession, my_yaml: Path
) -> None:
    session.frames = [(DONE, {})]
    result = submit(command, "--set", "spec.base={uri: someone/unheard-of}")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("whether sft, rm fits is not known: the sizes of the base") == 1
