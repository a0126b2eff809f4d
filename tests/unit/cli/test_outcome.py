"""How a run that did not succeed is told of: codes, exit codes, lines for people, keys for programs."""

from __future__ import annotations

import pytest

from tests.unit.cli.fakes import desired_state, pipeline_status, stage_status
from zhongjing.cli.display.view import RunView, view
from zhongjing.cli.outcome import ending, exit_code, problem, problem_keys
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import ConditionType, StageState
from zhongjing.storage.progress import Failure

TRACE = "s3://zhongjing/local/demo/sft/k/logs/traceback-a1.txt"


def failed(code: str, *, failure: Failure | None = None, message: str = "went wrong") -> RunView:
    stages = {
        Stage.SFT: stage_status(
            StageState.FAILED,
            reason=code,
            message=message,
            remedy="do better",
            failure=failure,
            submission_id="demo-sft-a1",
        ),
        Stage.RM: stage_status(StageState.BLOCKED, reason="Upstream", message="needs sft (Failed)"),
    }
    status = pipeline_status(stages, ConditionType.FAILED, reason=code, message=f"sft: {message}")
    return view(desired_state(), status, {})


@pytest.mark.parametrize(
    ("code", "exit_status"),
    [
        ("NoGoodRecord", 2),
        ("TooLongForModel", 2),
        ("MissingInput", 2),
        ("AccessDenied", 3),
        ("DiskFull", 3),
        ("Diverged", 1),
        ("JobFailed", 1),
        ("Hung", 1),
        ("SubmissionRefused", 1),
        ("UnexpectedError", 1),
        ("CodeOfAnotherRelease", 1),
    ],
)
def test_a_failed_run_exits_as_its_code_says(code: str, exit_status: int) -> None:
    assert exit_code(failed(code)) == exit_status


def test_a_failed_stage_shows_code_message_remedy_traceback_and_log() -> None:
    failure = Failure(error="DataError", code="NoGoodRecord", message="all 9 are bad", traceback_uri=TRACE)
    assert ending(failed("NoGoodRecord", failure=failure, message="s3://b/k: all 9 are bad")) == [
        "error[NoGoodRecord]: sft: s3://b/k: all 9 are bad",
        "  remedy: do better",
        f"  traceback: {TRACE}",
        "  log: zhongjing logs demo --stage sft --local",
        "rm: blocked: needs sft (Failed)",
    ]


def test_a_failed_stage_as_keys() -> None:
    failure = Failure(
        error="DataError", code="NoGoodRecord", message="all 9 are bad", where="s3://b/k", traceback_uri=TRACE
    )
    seen = failed("NoGoodRecord", failure=failure, message="s3://b/k: all 9 are bad")
    assert problem_keys(seen, exit_code(seen)) == {
        "error": "DataError",
        "code": "NoGoodRecord",
        "message": "all 9 are bad",
        "where": "s3://b/k",
        "remedy": "do better",
        "traceback": TRACE,
    }


def test_a_run_that_fails_before_any_stage_tells_its_own_condition() -> None:
    status = pipeline_status(
        {}, ConditionType.FAILED, reason="DamagedObject", message="s3://b/k: is cut", remedy="run it again"
    )
    seen = view(desired_state(), status, {})
    assert exit_code(seen) == 3
    assert ending(seen) == ["error[DamagedObject]: demo: s3://b/k: is cut", "  remedy: run it again"]


def test_an_input_that_was_never_made_is_told_once() -> None:
    blocked = stage_status(
        StageState.BLOCKED, reason="MissingInput", message="was not made", remedy="make it"
    )
    status = pipeline_status(
        {Stage.SFT: blocked},
        ConditionType.FAILED,
        reason="MissingInput",
        message="ppo needs the result of sft",
        remedy="make it",
    )
    seen = view(desired_state(), status, {})
    lines = ending(seen)
    assert lines[0] == "error[MissingInput]: demo: ppo needs the result of sft"
    assert lines.count("  remedy: make it") == 1
    assert problem_keys(seen, exit_code(seen))["error"] == "MissingInputError"


def test_waiting_and_being_stopped_are_no_problems_for_people_but_have_keys() -> None:
    waits = pipeline_status(
        {Stage.RM: stage_status(StageState.WAITING_FOR_INPUT, message="waits for ranked")},
        reason="WaitingForInput",
    )
    seen = view(desired_state(), waits, {})
    assert problem(seen) is None
    assert ending(seen) == ["rm: waiting for input: waits for ranked"]
    keys = problem_keys(seen, exit_code(seen))
    assert (keys["error"], keys["code"]) == ("MissingInputError", "WaitingForInput")
    stopped = view(desired_state(), pipeline_status({}, ConditionType.SUSPENDED, reason="Suspended"), {})
    assert problem(stopped) is None
    assert exit_code(stopped) == 130
    assert problem_keys(stopped, 130)["code"] == "Interrupted"


def test_a_stage_that_cannot_fit_is_bad_input() -> None:
    entry = stage_status(
        StageState.BLOCKED,
        reason="DoesNotFit",
        message="sft cannot fit: 90 of 78 GiB",
        remedy="set it smaller",
    )
    status = pipeline_status(
        {Stage.SFT: entry}, reason="DoesNotFit", message=entry.message, remedy="set it smaller"
    )
    seen = view(desired_state(), status, {})
    assert seen.settled
    assert exit_code(seen) == 2
    assert ending(seen)[0] == "error[DoesNotFit]: demo: sft cannot fit: 90 of 78 GiB"
    assert ending(seen).count("  remedy: set it smaller") == 1
    keys = problem_keys(seen, 2)
    assert (keys["error"], keys["code"]) == ("ConfigError", "DoesNotFit")


def test_a_complete_run_has_no_keys() -> None:
    seen = view(desired_state(), pipeline_status({}, ConditionType.COMPLETE), {})
    assert exit_code(seen) == 0
    assert problem_keys(seen, 0) == {}
    assert ending(seen) == []
