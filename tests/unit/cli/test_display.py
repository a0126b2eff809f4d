"""What is shown of a run: numbers, views, plain lines, bars, the table at the end."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console as RichConsole

from tests.unit.cli.fakes import (
    desired_state,
    manifest,
    pipeline_status,
    stage_status,
    training_progress,
)
from zhongjing.cli.display import text
from zhongjing.cli.display.live import LiveDisplay
from zhongjing.cli.display.plain import PlainDisplay
from zhongjing.cli.display.summary import answers_of, metric_table, result, status_lines, summary
from zhongjing.cli.display.view import RunView, view
from zhongjing.config.stages import Stage
from zhongjing.pipeline import headline
from zhongjing.pipeline.headline import main_metrics
from zhongjing.pipeline.state import ConditionType, StageState, StageStatus
from zhongjing.storage.manifest import MixtureCounts, SourceCounts, StageManifest, Unused
from zhongjing.storage.progress import Activity, Progress


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0"), (2.13456, "2.135"), (0.03125, "0.03125"), (1.23e-5, "1.2e-05"), (12345.6, "12346")],
)
def test_numbers(value: float, shown: str) -> None:
    assert headline.number(value) == shown
    assert headline.number(-value) == (f"-{shown}" if value else shown)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59, "59s"), (80, "1m20s"), (7500, "2h05m"), (273600, "3d04h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert headline.duration(seconds) == shown


@pytest.mark.parametrize(("value", "shown"), [(812, "812"), (12345, "12.3k"), (4.56e6, "4.56M")])
def test_counts(value: float, shown: str) -> None:
    assert text.count(value) == shown


def test_clock_gets_hours_when_it_needs_them() -> None:
    assert [text.clock(value) for value in (7, 751, 3723)] == ["00:07", "12:31", "1:02:03"]


def test_chinese_takes_two_columns_in_a_table() -> None:
    assert text.table(["a", "b"], [["发烧", "1"], ["x", "22"]], right=(1,)) == [
        "a      b",
        "发烧   1",
        "x     22",
    ]


def test_the_metric_that_tells_most_comes_first() -> None:
    assert main_metrics(Stage.RM, ["loss", "accuracy", "reward_mean", "reward_std"]) == ["accuracy", "loss"]
    assert main_metrics(Stage.PPO, ["policy_loss", "kl_coef", "kl", "reward_std", "reward_mean"]) == [
        "reward_mean",
        "kl",
    ]
    assert main_metrics(Stage.PPO, ["kl", "kl_coef", "objective", "reward"]) == ["objective", "reward", "kl"]
    assert main_metrics(Stage.SFT, ["perplexity"]) == ["perplexity"]


def shown(
    stages: dict[Stage, StageStatus],
    progress: dict[Stage, Progress] | None = None,
    condition: ConditionType = ConditionType.PROGRESSING,
) -> RunView:
    return view(
        desired_state(),
        pipeline_status(stages, condition),
        progress or {},
        dashboard_url="http://127.0.0.1:8265",
        dashboard_login="the token is in token.txt",
    )


RUNNING = stage_status(StageState.RUNNING)


def test_progress_of_another_attempt_or_key_is_not_shown() -> None:
    late = training_progress(Stage.SFT, 30, attempt=2)
    other = training_progress(Stage.SFT, 30, key="x" * 16)
    for progress in (late, other):
        assert shown({Stage.SFT: RUNNING}, {Stage.SFT: progress}).stages[0].progress is None


def test_a_view_without_a_status_is_pending() -> None:
    seen = view(desired_state(), None, {})
    assert [stage.doing for stage in seen.stages] == ["pending", "pending"]
    assert not seen.settled


class Clock:
    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def test_plain_lines_of_a_whole_stage() -> None:
    clock = Clock()
    lines: list[str] = []
    display = PlainDisplay(lines.append, now=clock)

    def at(seconds: float, status: StageStatus, progress: Progress | None = None) -> None:
        clock.time = seconds
        display.update(shown({Stage.SFT: status}, {Stage.SFT: progress} if progress else None))

    at(0, StageStatus())
    at(1, stage_status(StageState.QUEUED, message="first run"))
    prepares = training_progress(Stage.SFT, 0, activity=Activity.PREPARING, message="reading sources")
    at(3, RUNNING, prepares)
    at(4, RUNNING, prepares)
    for second in range(5, 40):
        step = second - 5
        # Evaluated after step 20, and seen two seconds later: the value keeps the step it was taken at.
        held: dict[str, Any] = (
            {"validation": {"loss": 5.2, "perplexity": 181.0}, "validation_step": 20} if step >= 22 else {}
        )
        at(second, RUNNING, training_progress(Stage.SFT, step, **held))
    at(40, stage_status(StageState.SUCCEEDED))
    assert lines == [
        "[00:00]          Ray dashboard: http://127.0.0.1:8265",
        "[00:00]          the token is in token.txt",
        "[00:01] sft      queued: first run",
        "[00:03] sft      preparing: reading sources",
        "[00:05] sft      training 0/100  loss 4.5  12.3k tokens/s  ETA 1m20s",
        "[00:15] sft      training 10/100  loss 4.5  12.3k tokens/s  ETA 1m20s",
        "[00:25] sft      training 20/100  loss 4.5  12.3k tokens/s  ETA 1m20s",
        "[00:27] sft      held-out at step 20: loss 5.2",
        "[00:35] sft      training 30/100  loss 4.5  12.3k tokens/s  ETA 1m20s",
        "[00:40] sft      succeeded",
    ]


def test_plain_lines_say_why_a_stage_failed_and_which_attempt_runs() -> None:
    lines: list[str] = []
    display = PlainDisplay(lines.append, now=Clock())
    display.update(shown({Stage.SFT: stage_status(StageState.QUEUED, attempt=2)}))
    display.update(shown({Stage.SFT: stage_status(StageState.FAILED, attempt=2, message="out of memory")}))
    assert lines[2:] == [
        "[00:00] sft      queued (attempt 2)",
        "[00:00] sft      failed: out of memory",
    ]


def test_bars_show_every_stage_and_what_came_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    display = LiveDisplay(stream)
    display._console = RichConsole(file=stream, force_terminal=True, width=120, highlight=False)
    display._live.console = display._console
    progress = training_progress(Stage.SFT, 31, validation={"loss": 5.2}, validation_step=30)
    with display:
        display.update(shown({Stage.SFT: RUNNING}, {Stage.SFT: progress}))
        display.update(shown({Stage.SFT: stage_status(StageState.FAILED, message="[odd] disk full")}))
    drawn = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue())
    assert "Ray dashboard: http://127.0.0.1:8265" in drawn
    assert "sft      held-out at step 30: loss 5.2" in drawn
    assert "31/100" in drawn
    assert "12.3k tokens/s" in drawn
    assert "failed: [odd] disk full" in drawn  # text of an error is no markup
    assert "rm" in drawn


def test_the_table_has_before_and_after() -> None:
    stages = shown({Stage.SFT: stage_status(StageState.SUCCEEDED), Stage.RM: RUNNING}).stages
    ranked = manifest(
        Stage.RM,
        metrics_before={"loss": 1.79, "accuracy": 0.5},
        metrics={"loss": 0.9, "accuracy": 0.8125},
        test_metrics={"loss": 1.25, "accuracy": 0.75},
        steps=40,
        seconds=12.0,
    )
    assert metric_table(stages, {Stage.SFT: manifest(Stage.SFT), Stage.RM: ranked}) == [
        "stage  state      held-out  before   after  test  steps   time",
        "sft    succeeded  loss         6.5    3.25   3.5    100  1m15s",
        "rm     running    accuracy     0.5  0.8125  0.75     40    12s",
        "                  loss        1.79     0.9  1.25",
    ]


def test_answers_stand_side_by_side_and_cannot_move_the_cursor() -> None:
    answers = {"question": "发烧怎么办？", "base": "\x1b[2J的\n的", "sft": "多喝水。" * 12, "ppo": ""}
    done = {Stage.PPO: manifest(Stage.PPO, extra={"answers": answers})}
    assert answers_of(done) == answers
    lines = summary(shown({}), done)
    begin = lines.index("the same question to each of them")
    assert lines[begin + 1] == "  question  发烧怎么办？"
    assert lines[begin + 2] == "  base      [2J的 的"
    assert lines[begin + 3].startswith("  sft       多喝水。")
    assert lines[begin + 4].startswith(" " * 12 + "多喝水。")
    assert lines[-1] == "  ppo       (nothing)"


def test_answers_of_the_last_stage_count() -> None:
    def with_answer(stage: Stage, answer: str) -> StageManifest:
        return manifest(stage, extra={"answers": {"question": "?", stage.value: answer}})

    found = answers_of({Stage.SFT: with_answer(Stage.SFT, "a"), Stage.PPO: with_answer(Stage.PPO, "b")})
    assert found == {"question": "?", "ppo": "b"}
    assert answers_of({Stage.SFT: manifest(Stage.SFT)}) is None


def test_no_result_no_summary() -> None:
    assert summary(shown({}), {}) == []


LOSSES: dict[str, Any] = {
    "sources": [
        SourceCounts(
            name="own", digest="d", read=289, kept=185, train=166, validation=19, truncated=51, too_long=104
        )
    ],
    "mixture": [MixtureCounts(name="singleTurn", samples=30, drawn=120)],
    "warnings": ["own: 104 of 289 records (36%) are dropped"],
}


def test_counts_and_warnings_of_the_data_stand_in_the_lines_of_a_run() -> None:
    lines: list[str] = []
    display = PlainDisplay(lines.append, now=Clock())
    for step in (1, 2):
        display.update(shown({Stage.SFT: RUNNING}, {Stage.SFT: training_progress(Stage.SFT, step, **LOSSES)}))
    assert lines[2:] == [
        "[00:00] sft      data own: 289 read, 185 kept, 51 cut, 104 too long",
        "[00:00] sft      mixture singleTurn: 120 an epoch of 30, 90 repeated",
        "[00:00] sft      warning: own: 104 of 289 records (36%) are dropped",
        "[00:00] sft      training 1/100  loss 4.5  12.3k tokens/s  ETA 1m20s",
    ]


def test_counts_and_warnings_of_the_data_stand_in_status_the_closing_table_and_json() -> None:
    running = shown({Stage.SFT: RUNNING}, {Stage.SFT: training_progress(Stage.SFT, 1, **LOSSES)})
    done = shown({Stage.SFT: stage_status(StageState.SUCCEEDED)})
    results = {Stage.SFT: manifest(Stage.SFT, **LOSSES)}
    for lines in (status_lines(running, {}), status_lines(done, results), summary(done, results)):
        begin = next(index for index, line in enumerate(lines) if "records of" in line)
        assert lines[begin : begin + 4] == [
            "stage  records of  read  kept  train  held out  cut  too long",
            "sft    own          289   185    166        19   51       104",
            "sft      mixture singleTurn: 120 an epoch of 30, 90 of them repeated",
            "warning: sft: own: 104 of 289 records (36%) are dropped",
        ]
    for found in (result(running, {}), result(done, results)):
        sft = found["stages"]["sft"]
        assert sft["data"][0]["read"] == 289
        assert sft["data"][0]["tooLong"] == 104
        assert sft["mixture"][0]["repeated"] == 90
        assert sft["warnings"] == LOSSES["warnings"]
    assert result(done, {})["stages"]["rm"]["warnings"] == []


def test_an_accuracy_is_shown_with_its_n_and_its_interval() -> None:
    sure = {"accuracy": 10 / 21, "accuracy_low": 0.283, "accuracy_high": 0.676, "pairs": 21.0, "loss": 0.7}
    assert headline.describe(Stage.RM, sure) == "accuracy 0.4762 (n 21, 95% 0.28-0.68) loss 0.7"
    assert headline.describe(Stage.RM, {"accuracy": 0.5}) == "accuracy 0.5"
    stages = shown({Stage.RM: stage_status(StageState.SUCCEEDED)}).stages
    ranked = manifest(Stage.RM, metrics_before={"accuracy": 0.5}, metrics=sure, test_metrics={})
    table = metric_table(stages, {Stage.RM: ranked})
    assert table[2].split() == ["rm", "succeeded", "accuracy", "0.5", "0.4762", "-", "100", "1m15s"]
    assert table[3].split() == ["95", "%,", "n", "0.28-0.68,", "21"]


def test_an_objective_is_shown_with_its_n_and_its_interval() -> None:
    """An evaluation of a few sampled responses is noise; the table shows how much."""
    sure = {"objective": 0.6, "objective_low": -0.2, "objective_high": 1.4, "prompts": 23.0, "kl": 0.1}
    assert headline.describe(Stage.PPO, sure) == "objective 0.6 (n 23, 95% -0.20 to 1.40) kl 0.1"
    assert headline.interval("kl", sure) is None


def test_what_was_not_used_of_a_source_is_told_once() -> None:
    own = SourceCounts(
        name="own", digest="d", read=3, kept=3, unused={"note": Unused(records=3, characters=9)}
    )
    stages = (Stage.SFT, Stage.RM)
    done = shown({stage: stage_status(StageState.SUCCEEDED) for stage in stages})
    results = {stage: manifest(stage, sources=[own]) for stage in stages}
    told = [line for line in summary(done, results) if "not used" in line]
    assert told == ["not used of own: note (3 records, 9 characters)"]
    lines: list[str] = []
    running = shown({Stage.SFT: RUNNING}, {Stage.SFT: training_progress(Stage.SFT, 1, sources=[own])})
    PlainDisplay(lines.append, now=Clock()).update(running)
    assert lines[2].endswith("data own: 3 read, 3 kept; not used: note (3 records, 9 characters)")


def test_a_failing_stage_prints_no_stale_line_before_why_it_failed() -> None:
    lines: list[str] = []
    display = PlainDisplay(lines.append, now=lambda: 0.0)
    stale = training_progress(Stage.SFT, 3, activity=Activity.FAILED, message="writing the token cache")
    running = pipeline_status({Stage.SFT: stage_status(StageState.RUNNING)})
    failed = pipeline_status({Stage.SFT: stage_status(StageState.FAILED, message="the corpus is empty")})
    display.update(view(desired_state(), running, {Stage.SFT: stale}))
    display.update(view(desired_state(), failed, {Stage.SFT: stale}))
    told = [line for line in lines if " sft " in line]
    assert [line.split("  ")[-1].strip() for line in told] == ["failed: the corpus is empty"]


def test_the_tables_time_is_that_of_the_attempt_with_its_start_and_its_end() -> None:
    entry = stage_status(
        StageState.SUCCEEDED, started_at="2026-01-01T00:00:00Z", finished_at="2026-01-01T00:01:40Z"
    )
    seen = view(desired_state(), pipeline_status({Stage.SFT: entry}), {})
    table = metric_table(seen.stages, {Stage.SFT: manifest(Stage.SFT, seconds=75.0)})
    assert table[1].split()[-1] == "1m40s"
    before = view(desired_state(), pipeline_status({Stage.SFT: stage_status(StageState.SKIPPED)}), {})
    assert (
        metric_table(before.stages, {Stage.SFT: manifest(Stage.SFT, seconds=75.0)})[1].split()[-1] == "1m15s"
    )
