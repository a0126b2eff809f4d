"""The command line of ``zhongjing report``: options, refusals, what it prints."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from zhongjing.backends.local.workdir import Workdir
from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The machine's own temporary folder may hold logs of other commands."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_a_workdir_without_pipelines_is_packed(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    (workdir / "supervisor.log").write_text("started\n")
    result = command("report", "--local", "--no-doctor")
    assert result.exit_code == 0, result.output
    (archive,) = tmp_path.glob("zhongjing-report-*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert names == {
        "README.txt",
        "settings.json",
        "versions.json",
        "workdir/sizes.json",
        "workdir/supervisor.log",
    }
    assert "there are no pipelines here yet" in result.output
    assert not list(tmp_path.glob(".zhongjing-report-*")), "the spool is left behind"


def test_json_is_one_object(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    result = command("report", "--local", "--no-doctor", "-o", "json", "--output", "r.tgz")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["archive"] == str((tmp_path / "r.tgz").resolve())
    assert shown["bytes"] == (tmp_path / "r.tgz").stat().st_size
    assert shown["files"] == 4
    assert shown["pipeline"] is None
    assert {"what": "run", "why": "there are no pipelines here yet"} in shown["leftOut"]
    assert "packing" in result.stderr


def test_a_file_that_is_there_is_kept(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    target = tmp_path / "r.tar.gz"
    target.write_text("mine")
    result = command("report", "--local", "--no-doctor", "--output", "r.tar.gz", "-o", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == "TargetInUse"
    assert target.read_text() == "mine"
    assert command("report", "--local", "--no-doctor", "--output", "r.tar.gz", "--force").exit_code == 0
    with tarfile.open(target) as tar:
        assert tar.getnames()


@pytest.mark.parametrize("value", ["r.zip", "yaml", "missing/r.tar.gz"])
def test_other_outputs_are_refused(command: CommandLine, workdir: Path, tmp_path: Path, value: str) -> None:
    result = command("report", "--local", "--output", value)
    assert result.exit_code == 2
    assert "remedy" in result.stderr
    assert not list(tmp_path.glob(".zhongjing-report-*"))


def test_a_folder_is_not_replaced(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    (tmp_path / "r.tar.gz").mkdir()
    assert command("report", "--local", "--output", "r.tar.gz", "--force").exit_code == 2


def test_an_unknown_pipeline_is_an_error(command: CommandLine, workdir: Path, tmp_path: Path) -> None:
    result = command("report", "other", "--local", "--no-doctor", "-o", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == "UnknownPipeline"
    assert not list(tmp_path.glob("*.tar.gz"))


def test_a_workdir_that_is_not_there_is_an_error_only_if_it_was_named(
    command: CommandLine, tmp_path: Path
) -> None:
    assert command("report", "--workdir", "nowhere", "--no-doctor").exit_code == 3
    result = command("report", "--local", "--no-doctor")
    assert result.exit_code == 0, result.output
    assert "nothing was run here yet" in result.output


def test_a_session_that_does_not_open_leaves_the_workdir(
    command: CommandLine, workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: CommandLine, place: Path, start: bool) -> None:
        raise StorageError("the S3 server did not start", code=codes.S3_SERVER_FAILED, where=str(place))

    monkeypatch.setattr(CommandLine, "_open", broken)
    Workdir(workdir).prepare()
    Workdir(workdir).touch("pipelines/tiny")
    result = command("report", "--local", "--no-doctor", "-o", "json")
    assert result.exit_code == 0, result.output
    shown = json.loads(result.stdout)
    assert shown["pipeline"] == "tiny"
    assert {"what": "run", "why": "the S3 server did not start"} in shown["leftOut"]


def test_errors_of_commands_without_a_workdir_are_packed(
    command: CommandLine, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf-token-of-mine")
    folder = state / "zhongjing" / "logs"
    folder.mkdir(parents=True)
    (folder / "error-20260102T030405Z-1.log").write_text("ValueError: hf-token-of-mine\n")
    (folder / "other.log").write_text("not ours")
    assert command("report", "--local", "--no-doctor", "--output", "r.tar.gz").exit_code == 0
    with tarfile.open(tmp_path / "r.tar.gz") as tar:
        logs = [member for member in tar.getmembers() if "/commands/" in member.name]
        assert [member.name.rpartition("/")[2] for member in logs] == ["error-20260102T030405Z-1.log"]
        file = tar.extractfile(logs[0])
        assert file is not None
        assert file.read() == b"ValueError: <redacted:HF_TOKEN>\n"
