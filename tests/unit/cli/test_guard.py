"""Errors, exit codes and where traces go; kubeconfigs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import pytest
import typer

from zhongjing.cli.guard import asks_for_json, guarded, run, write_traceback
from zhongjing.cli.places import find_kubeconfig, local_workdir
from zhongjing.errors import BackendError, ConfigError, DataError, StorageError, TrainingError, ZhongjingError

KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: {current}
clusters: [{{name: c, cluster: {{server: https://127.0.0.1:1}}}}]
contexts: [{{name: prod, context: {{cluster: c, user: u}}}}, {{name: test, context: {{cluster: c, user: u}}}}]
"""


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
        (ConfigError("m"), 2),
        (DataError("m"), 2),
        (StorageError("m"), 3),
        (BackendError("m"), 3),
        (TrainingError("m"), 1),
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


def test_an_error_shows_place_and_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    error = ConfigError("must be positive", where="spec.seed", remedy="write 1")
    run(app_that(error), [], "work")
    assert capsys.readouterr().err == "error: spec.seed: must be positive\n  remedy: write 1\n"


def test_an_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    error: ZhongjingError = ConfigError("must be positive", where="spec.seed", remedy="write 1")
    assert run(app_that(error), ["-o", "json"], "work") == 2
    assert json.loads(capsys.readouterr().out) == error.as_dict()


def test_a_missing_package_names_the_extra(capsys: pytest.CaptureFixture[str]) -> None:
    run(app_that(ModuleNotFoundError("No module named 'peft'", name="peft.tuners")), [], "work")
    assert "pip install 'zhongjing[train]'" in capsys.readouterr().err


def test_usage_errors_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that(), ["--odd"], "work") == 2
    shown = capsys.readouterr()
    assert "--odd" in shown.err
    assert shown.out == ""


def test_usage_errors_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app_that(), ["-o", "json", "--odd"], "work") == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["error"] == "ConfigError"
    assert "--odd" in shown["message"]
    assert shown["remedy"] == "work --help"


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


def test_a_trace_goes_into_the_workdir_or_else_the_temporary_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    inside = write_traceback(ValueError("odd"), tmp_path)
    assert inside.parent == tmp_path / "logs"
    assert "ValueError: odd" in inside.read_text()
    outside = write_traceback(ValueError("odd"), tmp_path / "missing")
    assert not outside.is_relative_to(tmp_path / "missing")
    outside.unlink()


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_kubeconfig_is_usable_when_its_context_exists(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert find_kubeconfig() is None
    home = no_cluster / ".kube" / "config"
    home.parent.mkdir()
    home.write_text(KUBECONFIG.format(current="gone"))
    assert find_kubeconfig() is None
    home.write_text(KUBECONFIG.format(current="prod"))
    assert find_kubeconfig() == str(home)
    assert find_kubeconfig("test") == str(home)
    with pytest.raises(ConfigError, match="no context 'other'") as caught:
        find_kubeconfig("other")
    assert caught.value.remedy == "the contexts are: prod, test"
    monkeypatch.setenv("KUBECONFIG", str(no_cluster / "missing"))
    assert find_kubeconfig() is None


@pytest.mark.parametrize("content", ["", "[]", "{", "clusters: []", "\x00"])
def test_a_broken_kubeconfig_is_none(no_cluster: Path, monkeypatch: pytest.MonkeyPatch, content: str) -> None:
    file = no_cluster / "config"
    file.write_text(content)
    monkeypatch.setenv("KUBECONFIG", str(file))
    assert find_kubeconfig() is None


def test_with_a_kubeconfig_the_message_says_not_yet(
    no_cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = no_cluster / "config"
    file.write_text(KUBECONFIG.format(current="prod"))
    monkeypatch.setenv("KUBECONFIG", str(file))
    with pytest.raises(BackendError, match="does not submit to clusters yet") as caught:
        local_workdir(local=False, workdir=None, strict=True)
    assert "--local" in str(caught.value)


def test_only_local_means_this_machine_to_submit(no_cluster: Path) -> None:
    with pytest.raises(BackendError, match="--local"):
        local_workdir(local=False, workdir=no_cluster, strict=True)
    assert local_workdir(local=False, workdir=no_cluster) == no_cluster
    assert local_workdir(local=True, workdir=no_cluster, strict=True) == no_cluster
