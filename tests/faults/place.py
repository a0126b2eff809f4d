"""A workdir of the harness's own, and the real command line over it, killed and given again at will."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from zhongjing.backends.local.workdir import Workdir
from zhongjing.storage.identity import start_mark

# What every process of a place has in its environment, but the S3 server, which gets none.
MARK = "ZHONGJING_FAULTS_PLACE"
# A shell starts what runs in the background with SIGINT ignored, and children inherit that.
_LISTENING = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("zhongjing", run_name="__main__", alter_sys=True)
"""


def wait_for(condition: Callable[[], bool], seconds: float, interval: float = 0.05) -> bool:
    """Waits until ``condition()`` is true; returns whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(interval)
    return True


class Place:
    """A workdir, a home folder and a temporary folder, and one ``submit`` at a time.

    Args:
        folder: made if it does not exist; a path of up to 30 bytes keeps Ray's sockets below the workdir.
        document: YAML text of what is submitted.
    """

    def __init__(self, folder: Path, document: str) -> None:
        self.folder = folder.resolve()
        self.workdir = Workdir(self.folder / "w")
        self.home = self.folder / "home"
        self.temporary = self.folder / "tmp"
        for made in (self.folder, self.home, self.temporary):
            made.mkdir(parents=True, exist_ok=True)
        self.document = self.folder / "document.yaml"
        self.document.write_text(document, encoding="utf-8")
        self.mark = uuid.uuid4().hex
        # Ray and others write into HOME; credentials of this machine are not ours to use.
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "RAY_"))
        } | {
            "HOME": str(self.home),
            "TMPDIR": str(self.temporary),
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "200",
            MARK: self.mark,
        }
        self.submits = 0
        self._process: subprocess.Popen[bytes] | None = None

    # The command

    @property
    def output(self) -> Path:
        """What the latest ``submit`` says while it runs."""
        return self.folder / f"submit-{self.submits}.txt"

    @property
    def answer(self) -> Path:
        """The JSON object that it ends with."""
        return self.folder / f"submit-{self.submits}.json"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The latest ``submit``."""
        assert self._process is not None
        return self._process

    def submit(self) -> None:
        """Gives the command, the same every time."""
        assert self._process is None or self._process.poll() is not None, "one at a time"
        self.submits += 1
        arguments = ["submit", "-f", str(self.document), "--stage", "all", "-o", "json", "--local"]
        arguments += ["--workdir", str(self.workdir.path)]
        with self.answer.open("wb") as answer, self.output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _LISTENING, *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=output,
            )

    def said(self, text: str) -> bool:
        """Whether the latest ``submit`` has printed ``text``."""
        return text in self.output.read_text(encoding="utf-8", errors="replace")

    # The processes

    def processes(self) -> list[psutil.Process]:
        """All that this place has running, by the mark, or by the workdir in the command line."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get(MARK) == self.mark
                if ours or any(str(self.workdir.path) in word for word in process.cmdline()):
                    found.append(process)
            except (psutil.Error, OSError):
                continue  # another user's, or gone
        return [process for process in found if start_mark(process.pid) is not None]

    def end(self) -> None:
        """Ends the supervisor as its idle end would, or kills what is left without one."""
        record = self.workdir.live_record()
        if record is not None:
            os.kill(record.process.pid, signal.SIGTERM)
            wait_for(lambda: not record.process.is_alive, 60)
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def destroy(self) -> None:
        """Kills whatever runs here: for the end of a run that failed."""
        self.end()
        for process in self.processes():
            try:
                process.kill()
            except psutil.Error:
                continue
