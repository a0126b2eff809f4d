"""Probes of doctor: what may crash or hang, or must not load into the command line, in a process of its own.

A probe is a function that yields findings. Each is sent as soon as it is made: what a probe found before it
died is kept. Its standard input stays open as long as doctor lives; when that ends (also by kill -9) the
probe cleans up and ends itself.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zhongjing.cli.diagnosis.finding import Finding, Status, fails
from zhongjing.codes import Code, machine

_FORCED_AFTER = 3.0  # seconds that a probe gets to clean up
_CHILD = "from zhongjing.cli.diagnosis.probes import serve; serve()"


class Probes:
    """Starts probes and ends what is left of them, with the folder that they share."""

    def __init__(self) -> None:
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()
        self._folder: Path | None = None
        self._closed = False
        self._at_end = contextlib.ExitStack()

    def __enter__(self) -> Probes:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._closed = True
            left = list(self._running)
        for process in left:
            _end(process)
        with contextlib.suppress(OSError):
            self._at_end.close()

    def folder(self) -> Path:
        """A temporary folder that is removed at the end."""
        with self._lock:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="zj-doctor-")).resolve()
                self._at_end.callback(shutil.rmtree, self._folder, ignore_errors=True)
            return self._folder

    def at_end(self, action: Callable[[], object]) -> None:
        """Has ``action`` called at the end, after the probes were ended."""
        self._at_end.callback(action)

    def run(
        self,
        probe: str,
        steps: Mapping[str, Code],
        *,
        seconds: float,
        environment: Mapping[str, str],
        **arguments: str | None,
    ) -> list[Finding]:
        """Runs a probe and waits for it.

        Args:
            probe: module and function: ``zhongjing.cli.diagnosis.ray:probe``.
            steps: what it finds, in order, each with the code of a process that dies there.
            seconds: how long it may take; then it and its children are ended.
            environment: of the process.
            arguments: of the function.
        """
        from zhongjing.backends.local.processes import python_path

        path = os.pathsep.join(filter(None, [python_path(), environment.get("PYTHONPATH")]))
        # Files, not pipes: a pipe that a grandchild holds open would block the reader.
        with (
            tempfile.TemporaryFile("w+", errors="replace") as sent,
            tempfile.TemporaryFile("w+", errors="replace") as complaint,
        ):
            with self._lock:
                if self._closed:
                    return []
                process = subprocess.Popen(
                    [sys.executable, "-c", _CHILD, probe, json.dumps(arguments)],
                    cwd="/",  # no module of the user's folder is taken for an installed one
                    env={**environment, "PYTHONPATH": path},
                    stdin=subprocess.PIPE,
                    stdout=sent,
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
            for file in (sent, complaint):
                file.seek(0)
            return complete(list(_received(sent)), steps, code, complaint.read(), seconds)


def complete(
    findings: list[Finding], steps: Mapping[str, Code], code: int | None, complaint: str, seconds: float
) -> list[Finding]:
    """A probe's findings, with one more if it did not come to its end.

    Args:
        findings: that it sent.
        steps: what it should find, each with the code of a process that dies there.
        code: the exit code, negative for a signal; None: it was cut off.
        complaint: its standard error stream.
        seconds: that it had.
    """
    if code == 0:
        return findings
    found = {each.name for each in findings}
    name = next((step for step in steps if step not in found), list(steps)[-1])
    if code is None:
        return [*findings, fails(name, f"no answer within {seconds:.0f} s: cut off", machine.CHECK_HUNG)]
    words = (complaint.strip() or "nothing was said").splitlines()[-1]
    death = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
    return [*findings, fails(name, f"the check {death}: {words}", steps[name])]


def _received(sent: Iterable[str]) -> Iterator[Finding]:
    for line in sent:
        with contextlib.suppress(ValueError, TypeError):  # libraries print what they like
            value = json.loads(line)
            yield Finding(**{**value, "status": Status(value["status"])})


def _end(process: subprocess.Popen[str]) -> None:
    """Lets a probe clean up, then ends its whole group."""
    with contextlib.suppress(OSError, ValueError):
        if process.stdin is not None:
            process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_FORCED_AFTER)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_FORCED_AFTER)


# The probe's side

_clean_ups: list[Callable[[], Any]] = []


def clean_up_with(action: Callable[[], Any]) -> None:
    """Has ``action`` called when this process ends, and when doctor ends first or cuts it off."""
    _clean_ups.append(action)


def remove(folder: Path) -> None:
    """Removes a probe's folder, and the one that probes share if it was the last."""
    shutil.rmtree(folder, ignore_errors=True)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def serve() -> None:
    """Runs the probe that the arguments name, and sends its findings, one JSON object a line."""
    threading.Thread(target=_watch, name="parent", daemon=True).start()
    logging.getLogger("zhongjing").setLevel(logging.ERROR)  # each retry would be a warning
    module, _, function = sys.argv[1].partition(":")
    try:
        for finding in getattr(importlib.import_module(module), function)(**json.loads(sys.argv[2])):
            sys.stdout.write(json.dumps(finding.as_dict()) + "\n")
            sys.stdout.flush()
    finally:
        _clean_up()


def _watch() -> None:
    while os.read(0, 1):
        pass
    try:
        _clean_up()
    finally:
        os.killpg(0, signal.SIGKILL)


def _clean_up() -> None:
    for action in _clean_ups:
        action()
