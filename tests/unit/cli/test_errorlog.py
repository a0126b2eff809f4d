"""Files with tracebacks: where they go, what stands in them, how many are kept."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from zhongjing.cli import errorlog
from zhongjing.codes.storage import DAMAGED_OBJECT
from zhongjing.errors import StorageError


def an_error() -> StorageError:
    try:
        try:
            raise ValueError("line 3 is cut")
        except ValueError as cause:
            raise StorageError("is no manifest", code=DAMAGED_OBJECT, where="s3://b/k") from cause
    except StorageError as error:
        return error


def test_the_workdir_has_it_and_only_the_owner_may_read(workdir: Path) -> None:
    file = errorlog.keep(an_error(), workdir)
    assert file is not None
    assert file.parent == workdir / "logs"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]


def test_it_holds_the_command_and_the_whole_chain(workdir: Path) -> None:
    token = errorlog.COMMAND_LINE.set(["zhongjing", "submit", "-f", "my file.yaml"])
    try:
        file = errorlog.keep(an_error(), workdir)
    finally:
        errorlog.COMMAND_LINE.reset(token)
    assert file is not None
    text = file.read_text()
    assert "command: zhongjing submit -f 'my file.yaml'\n" in text
    assert "version: zhongjing 0." in text
    assert "error: StorageError DamagedObject\n" in text
    assert text.index("ValueError: line 3 is cut") < text.index("direct cause") < text.index("is no manifest")


def test_without_a_workdir_the_state_folder_has_it(tmp_path: Path, state: Path) -> None:
    missing = tmp_path / "never-made"
    file = errorlog.keep(an_error(), missing)
    assert file is not None
    assert file.parent == state / "zhongjing" / "logs"
    assert not missing.exists()


def test_the_standards_default_is_below_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    file = errorlog.keep(an_error(), tmp_path / "none")
    assert file is not None
    assert file.parent == tmp_path / "home" / ".local" / "state" / "zhongjing" / "logs"


def test_the_next_folder_is_taken_where_one_cannot_be_written(
    workdir: Path, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A file in the way stops root too, which a folder without permissions does not.
    (workdir / "logs").write_text("in the way")
    file = errorlog.keep(an_error(), workdir)
    assert file is not None
    assert file.is_relative_to(state)

    monkeypatch.setenv("XDG_STATE_HOME", str(workdir / "logs"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    file = errorlog.keep(an_error(), workdir)
    assert file is not None
    assert file.is_relative_to(tmp_path / "temporary")

    monkeypatch.setattr(tempfile, "tempdir", str(workdir / "logs"))
    assert errorlog.keep(an_error(), workdir) is None


def test_the_newest_are_kept(workdir: Path) -> None:
    logs = workdir / "logs"
    logs.mkdir()
    for day in range(1, 26):
        (logs / f"error-202501{day:02}T000000.000000Z-1.log").touch()
    other = logs / "supervisor.log"
    other.touch()
    dead, alive = logs / ".error-20250101-7.log.partial", logs / ".error-20250101-8.log.partial"
    dead.touch()
    alive.touch()
    os.utime(dead, (0, 0))
    file = errorlog.keep(an_error(), workdir)
    assert file is not None
    kept = sorted(entry.name for entry in logs.glob("error-*.log"))
    assert len(kept) == errorlog.KEPT
    assert kept[-1] == file.name
    assert kept[0].startswith("error-20250107")
    assert other.exists()
    assert (dead.exists(), alive.exists()) == (False, True)
