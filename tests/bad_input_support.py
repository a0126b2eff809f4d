"""Runs bad command lines and looks at everything that they say and leave: for ``test_bad_input``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).parents[1]
SEARCHED = "SECRET-OF-A-RECORD"
"""Stands in records of bad sources: no message and no log may show it."""

_HIDDEN = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST")
_MARK = "ZHONGJING_TEST_MARK"
_ERROR = re.compile(r"^error\[([A-Za-z0-9]+)\]: (.*)$")


@dataclass(frozen=True)
class Case:
    """A bad input and the answer to it.

    Attributes:
        name: of the case.
        code: of the error.
        exit_code: of the command.
        words: what the answer must say, in the message, its place or the remedy.
        arguments: of the command.
        files: what is written into the folder before, by name, over what stands there for every case.
        environment: variables of the command.
        module: what is run.
        log: whether a traceback is kept; a command line that cannot be parsed has none.
        json: whether the command has ``-o json``.
        said: what stands on stdout before the error comes up.
    """

    name: str
    code: str
    exit_code: int
    words: Sequence[str]
    arguments: Sequence[str] = ("--local", "-f", "my.yaml")
    files: Mapping[str, str | bytes] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    module: str = "zhongjing.submit"
    log: bool = True
    json: bool = True
    said: str = ""

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Told:
    """What a command said of its error."""

    code: str
    message: str
    where: str | None
    remedy: str
    log: str | None


class Shell:
    """Runs ``python -m <module>`` in a folder, with no cluster, no home and no foreign store in sight.

    Args:
        place: an empty folder; the commands' current one, and all others that they may write to, are made
            below it.
    """

    def __init__(self, place: Path) -> None:
        self.folder = place / "here"
        self.temporary = place / "temporary"
        self.state = place / "state"
        for folder in (self.folder, self.temporary, self.state, place / "home"):
            folder.mkdir()
        self.mark = uuid.uuid4().hex
        hidden = {name for name in os.environ if name.startswith(("AWS_", "RAY_"))} | set(_HIDDEN)
        self.environment = {name: value for name, value in os.environ.items() if name not in hidden}
        self.environment |= {
            "HOME": str(place / "home"),
            "XDG_STATE_HOME": str(self.state),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            _MARK: self.mark,
        }

    def start(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """Starts a command."""
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env={**self.environment, **(environment or {})},
        )

    def __call__(
        self, module: str, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return finish(self.start(module, *arguments, environment=environment))

    def processes(self) -> list[str]:
        """Command lines of what still runs of all that was started here, and of its children."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get(_MARK) == self.mark:
                    found.append(" ".join(process.cmdline()))
            except (psutil.Error, OSError):
                continue
        return found


def finish(process: subprocess.Popen[str], seconds: float = 240) -> subprocess.CompletedProcess[str]:
    """Waits for a command; one that does not end is killed, and the test fails."""
    try:
        stdout, stderr = process.communicate(timeout=seconds)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def listing(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file and folder below ``folder``, with size and time of change."""
    found = {}
    for path in sorted(folder.rglob("*")):
        state = path.lstat()
        found[str(path.relative_to(folder))] = (state.st_size if path.is_file() else 0, state.st_mtime_ns)
    return found


def told_on_stderr(done: subprocess.CompletedProcess[str]) -> Told:
    """What a command told people: exactly one error, with a remedy, and no traceback."""
    said = f"{done.stdout}\n{done.stderr}"
    assert "Traceback" not in said, said
    lines = done.stderr.splitlines()
    starts = [number for number, line in enumerate(lines) if _ERROR.match(line)]
    assert len(starts) == 1, done.stderr
    found = _ERROR.match(lines[starts[0]])
    assert found is not None
    text, remedy, log = found[2], "", None
    for line in lines[starts[0] + 1 :]:
        if line.startswith("  remedy: "):
            remedy = line.removeprefix("  remedy: ")
        elif line.startswith("  traceback: "):
            log = line.removeprefix("  traceback: ")
        elif not remedy:
            text += f"\n{line}"
    assert remedy, done.stderr
    return Told(found[1], text, None, remedy, log)


def told_as_json(done: subprocess.CompletedProcess[str]) -> tuple[Told, dict[str, Any]]:
    """What a command told programs: exactly one JSON object on stdout."""
    assert "Traceback" not in done.stdout + done.stderr, done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert isinstance(shown, dict)
    assert shown["error"]
    assert shown["remedy"], shown
    log = shown.get("log") or shown.get("traceback")
    return Told(shown["code"], shown["message"], shown["where"], shown["remedy"], log), shown


def check_people(case: Case, done: subprocess.CompletedProcess[str]) -> Told:
    """Compares what a command told people with what the case asks for."""
    told = told_on_stderr(done)
    assert (done.returncode, told.code) == (case.exit_code, case.code), done.stderr
    for word in case.words:
        assert word in f"{told.message}\n{told.remedy}", done.stderr
    assert SEARCHED not in done.stdout + done.stderr
    assert (told.log is not None) == case.log, done.stderr
    if told.log is not None:
        kept = Path(told.log).read_text(encoding="utf-8")
        assert "Traceback (most recent call last)" in kept
        assert SEARCHED not in kept
    return told


def check_programs(case: Case, done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Compares what a command told programs with what it told people beside it."""
    people, (programs, shown) = check_people(case, done), told_as_json(done)
    text = f"{programs.where}: {programs.message}" if programs.where else programs.message
    assert (programs.code, text, programs.remedy) == (people.code, people.message, people.remedy)
    assert programs.log == people.log
    assert shown["exitCode"] == case.exit_code
    return shown
