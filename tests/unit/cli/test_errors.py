"""Errors, exit codes and where traces go."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Annotated

import pytest
import typer

from zhongjing.cli.app import app as zhongjing
from zhongjing.cli.errors import asks_for_json, guarded, run
from zhongjing.codes.data import NO_GOOD_RECORD
from zhongjing.codes.document import INVALID_VALUE
from zhongjing.codes.ray import RAY_FAILED
from zhongjing.codes.storage import ACCESS_DENIED
from zhongjing.codes.training import DIVERGED
from zhongjing.codes.unexpected import UNEXPECTED
from zhongjing.config import commands
from zhongjing.errors import BackendError, ConfigError, DataError, StorageError, TrainingError, ZhongjingError


def app_that(raises: BaseException | None = None, code: int | None = None) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    @guarded
    def work(
        output: Annotated[str, typer.Option("--output", "-o")] = "text",
        workdir: Annotated[Path | None, typer.Option()] = None,
    ) -> int | None:
        if raises is not None:
            raise raises
        return code

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("m", code=INVALID_VALUE), 2),
        (DataError("m", code=NO_GOOD_RECORD), 2),
        (StorageError("m", code=ACCESS_DENIED), 3),
        (BackendError("m", code=RAY_FAILED), 3),
        (TrainingError("m", code=DIVERGED), 1),
        (PermissionError(errno.EACCES, "denied", "/x"), 3),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("No module named 'torch'", name="torch"), 2),
        (ModuleNotFoundError("No module named 'zhongjing.x'", name="zhongjing.x"), 1),
        (OSError("odd"), 1),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(app_that(error), ["--workdir", str(tmp_path)], "work") == code
    shown = capsys.readouterr()
    assert "Traceback" not in shown.err
    assert shown.out == ""


def test_a_returned_code_reaches_the_shell() -> None:
    assert run(app_that(code=None), [], "work") == 0
    assert run(app_that(code=1), [], "work") == 1


def test_an_error_shows_code_place_remedy_and_traceback(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = BackendError("it died", code=RAY_FAILED, where="ray.log", remedy="free memory")
    assert run(app_that(error), ["-o", "json", "--workdir", str(tmp_path)], "work") == 3
    [log] = (tmp_path / "logs").iterdir()
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "error[RayFailed]: ray.log: it died",
        "  remedy: free memory",
        f"  traceback: {log}",
    ]
    assert json.loads(shown.out) == {
        "error": "BackendError",
        "code": "RayFailed",
        "message": "it died",
        "where": "ray.log",
        "remedy": "free memory",
        "log": str(log),
        "exitCode": 3,
    }
    text = log.read_text()
    assert f"command: work -o json --workdir {tmp_path}" in text
    assert "error: BackendError RayFailed" in text
    assert "Traceback (most recent call last)" in text


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("must be positive", code=INVALID_VALUE, where="spec.seed"),
        DataError("nothing is there", code=NO_GOOD_RECORD, where="a.jsonl"),
    ],
)
def test_bad_input_keeps_no_traceback(
    error: ZhongjingError, capsys: pytest.CaptureFixture[str], tmp_path: Path, state: Path
) -> None:
    assert run(app_that(error), ["-o", "json", "--workdir", str(tmp_path)], "work") == 2
    shown = capsys.readouterr()
    assert json.loads(shown.out)["log"] is None
    assert "traceback" not in shown.err
    assert list(tmp_path.rglob("error-*")) == list(state.rglob("error-*")) == []


def test_an_unexpected_error_has_a_code_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that(ZeroDivisionError("division by zero")), ["-o", "json"], "work") == 1
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert (found["error"], found["code"]) == ("ZeroDivisionError", "UnexpectedError")
    assert found["remedy"] == UNEXPECTED.remedy.replace("`", "").replace(" NAME", "")
    assert shown.err.startswith("error[UnexpectedError]: ZeroDivisionError: division by zero\n")


def test_a_full_disk_is_recognised(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    assert run(app_that(error), ["--workdir", str(tmp_path)], "work") == 3
    assert capsys.readouterr().err.startswith(f"error[DiskFull]: {tmp_path}: the disk is full\n")


def test_an_interruption_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that(KeyboardInterrupt()), ["-o", "json"], "work") == 130
    found = json.loads(capsys.readouterr().out)
    assert (found["error"], found["code"], found["exitCode"]) == ("Interrupted", "Interrupted", 130)


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    run(app_that(ModuleNotFoundError("No module named 'peft'", name="peft.tuners")), [], "work")
    assert "pip install 'zhongjing[train]'" in capsys.readouterr().err


def test_usage_errors_are_bad_input_and_need_no_traceback(
    capsys: pytest.CaptureFixture[str], state: Path
) -> None:
    assert run(app_that(), ["--odd"], "work") == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines() == [
        "error[InvalidOption]: No such option: --odd",
        "  remedy: work --help",
        "Usage: work [OPTIONS]",
    ]
    assert shown.out == ""
    assert not state.exists()


def test_usage_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that(), ["-o", "json", "--odd"], "work") == 2
    assert json.loads(capsys.readouterr().out) == {
        "error": "ConfigError",
        "code": "InvalidOption",
        "message": "No such option: --odd",
        "where": None,
        "remedy": "work --help",
        "log": None,
        "exitCode": 2,
    }


def test_a_usage_error_names_the_command_that_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(zhongjing, ["submit", "--stage", "dance"], "zhongjing") == 2
    error = capsys.readouterr().err
    assert error.startswith(
        "error[InvalidOption]: Invalid value for '--stage': 'dance' is not one of 'construct', 'pretrain'"
    )
    assert f"  remedy: {commands.program()} submit --help\n" in error


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(zhongjing, [], "zhongjing") == 2
    shown = capsys.readouterr()
    assert "First steps:" in shown.out + shown.err
    assert "InvalidOption" not in shown.err


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["-o", "json"], True),
        (["--output=json", "x"], True),
        (["-ojson"], True),
        (["-o", "yaml"], False),
        (["json"], False),
    ],
)
def test_json_is_recognised_in_a_line_that_does_not_parse(arguments: list[str], wanted: bool) -> None:
    assert asks_for_json(arguments) is wanted
