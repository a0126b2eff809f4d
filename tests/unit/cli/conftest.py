"""Runs command lines against a session in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tests.unit.cli.fakes import MemorySession
from zhongjing.cli.app import app
from zhongjing.cli.target import OPENER


class CommandLine:
    """Runs command lines in this process, in an empty folder, without a cluster in sight."""

    def __init__(self, session: MemorySession) -> None:
        self.session = session
        self.workdirs: list[Path] = []

    def __call__(self, *arguments: str, stdin: str | None = None) -> Result:
        token = OPENER.set(self._open)
        try:
            return CliRunner().invoke(app, list(arguments), input=stdin)
        finally:
            OPENER.reset(token)

    def _open(self, workdir: Path, start: bool) -> MemorySession:
        self.workdirs.append(workdir)
        return self.session


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tracebacks go that belong to no workdir."""
    folder = tmp_path / "state"
    monkeypatch.setenv("XDG_STATE_HOME", str(folder))
    monkeypatch.setattr("zhongjing.config.commands.program", lambda: "zhongjing")
    return folder


@pytest.fixture
def session() -> MemorySession:
    return MemorySession()


@pytest.fixture
def command(session: MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr("zhongjing.cli.watch.POLL_SECONDS", 0.0)
    return CommandLine(session)


@pytest.fixture
def workdir(tmp_path: Path) -> Path:
    """The default workdir, there already."""
    folder = tmp_path / "zhongjing-runs"
    folder.mkdir()
    return folder
