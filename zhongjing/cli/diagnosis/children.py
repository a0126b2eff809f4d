"""Child processes of doctor: a crash is a finding, a hang is cut off, and nothing of them is left behind.

A child sends one JSON object a line. What it sent before it died is kept: so the last line tells how far it
came. Its standard input stays open as long as doctor lives; when that ends (also by kill -9) the child cleans
up and ends itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

_FORCED_AFTER = 3.0  # seconds that a child gets to clean up


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a child.

    Attributes:
        lines: what it sent.
        code: exit code, negative for a signal; none if it was cut off.
        complaint: its standard error stream.
    """

    lines: tuple[dict[str, Any], ...]
    code: int | None
    complaint: str

    @property
    def death(self) -> str:
        """How it ended, in words."""
        if self.code is None:
            return "was cut off"
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return f"died of {signal.Signals(-self.code).name}"
        return f"ended with code {self.code}"

    @property
    def last_words(self) -> str:
        """The last line of its standard error stream."""
        return self.complaint.splitlines()[-1] if self.complaint else "nothing was said"

    def merged(self) -> dict[str, Any]:
        """All lines as one object; later ones win."""
        return {key: value for line in self.lines for key, value in line.items()}


class Children:
    """Starts children and ends what is left of them, with the folder that they share."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._closed = False
        self._at_end: list[Callable[[], None]] = []

    def __enter__(self) -> Children:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            self._closed = True
            left = list(self._running)
        for process in left:
            _end(process)
        for action in self._at_end:
            with contextlib.suppress(OSError):
                action()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def folder(self) -> Path:
        """A temporary folder that is removed at the end."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="zj-doctor-")).resolve()
            return self._folder

    def at_end(self, action: Callable[[], None]) -> None:
        """Has ``action`` called at the end, after the children were ended."""
        self._at_end.append(action)

    def run(
        self, module: str, arguments: Sequence[str] = (), *, seconds: float, environment: Mapping[str, str]
    ) -> Answer:
        """Runs ``python -m module`` and waits for it.

        Args:
            module: what to run.
            arguments: of the module.
            seconds: how long it may take; then it and its children are ended.
            environment: of the child.
        """
        from zhongjing.backends.local.processes import python_path

        path = os.pathsep.join(filter(None, [python_path(), environment.get("PYTHONPATH")]))
        # Files, not pipes: a pipe that a grandchild holds open would block the reader.
        with (
            tempfile.TemporaryFile("w+", errors="replace") as said,
            tempfile.TemporaryFile("w+", errors="replace") as complaint,
        ):
            with self._lock:
                if self._closed:
                    return Answer((), None, "")
                process = subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    cwd="/",  # no module of the user's folder is taken for an installed one
                    env={**environment, "PYTHONPATH": path},
                    stdin=subprocess.PIPE,
                    stdout=said,
                    stderr=complaint,
                    text=True,
                    start_new_session=True,
                )
                self._running.add(process)
            code: int | None = None
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:
                _end(process)
                with self._lock:
                    self._running.discard(process)
            for file in (said, complaint):
                file.seek(0)
            return Answer(tuple(_parsed(said)), code, complaint.read().strip())


def _parsed(said: Iterable[str]) -> Iterator[dict[str, Any]]:
    for line in said:
        with contextlib.suppress(ValueError):  # libraries print what they like
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def _end(process: subprocess.Popen[str]) -> None:
    """Lets a child clean up, then ends its whole group."""
    with contextlib.suppress(OSError, ValueError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_FORCED_AFTER)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_FORCED_AFTER)


# The child's side


def remove(folder: Path) -> None:
    """Removes a child's folder, and the one that children share if it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def tell(**facts: Any) -> None:
    """Sends facts to doctor."""
    sys.stdout.write(json.dumps(facts, default=str) + "\n")
    sys.stdout.flush()


def end_with_parent(clean_up: Callable[[], None] = lambda: None) -> None:
    """From now on this process cleans up and ends, with its group, when doctor ends or cuts it off."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        try:
            clean_up()
        finally:
            os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="parent", daemon=True).start()
