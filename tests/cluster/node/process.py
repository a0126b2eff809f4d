"""A long-running program inside of the node, with a log file."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from tests.cluster.node.namespaces import entered, wait_until
from tests.cluster.node.place import HarnessError


class NodeProcess:
    """One program of the cluster; it can be stopped and started again, as tests of failures do.

    It is known by its command line, which names files of this cluster: so a later test run finds it too.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, init: int) -> None:
        """Does not start it yet.

        Args:
            name: as in messages.
            command: program and arguments, all paths absolute.
            log: file that gets its output, added to.
            init: process id of the node's first process.
        """
        self.name = name
        self.command = list(command)
        self.log = log
        self._init = init
        self._entries: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Starts it; whether it is ready is for the caller to find out."""
        with self.log.open("ab") as log:
            self._entries.append(
                subprocess.Popen(
                    [*entered(self._init), *self.command],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )

    def find(self) -> psutil.Process | None:
        """The process, if it runs."""
        for process in psutil.process_iter(["cmdline"]):
            if process.info["cmdline"] == self.command:
                return process
        return None

    def check(self) -> bool:
        """True while it runs, or is being started.

        Raises:
            HarnessError: it has ended; with the end of its log.
        """
        if self._entries and self._entries[-1].poll() is not None:
            lines = self.log.read_text(errors="replace").splitlines()[-15:]
            raise HarnessError("\n".join([f"{self.name} has ended; its log says:", *lines]))
        return True

    def stop(self, *, seconds: float = 10.0) -> None:
        """Ends it: asked first, killed after so long."""
        process = self.find()
        if process is None:
            return
        try:
            process.send_signal(signal.SIGTERM)
            process.wait(seconds)
        except psutil.TimeoutExpired:
            process.kill()
        except psutil.NoSuchProcess:
            pass
        wait_until(f"{self.name} ends", lambda: self.find() is None)
        self.forget()

    def forget(self) -> None:
        """Takes leave of the entries of this run, once the program has ended."""
        for entry in self._entries:
            entry.wait()
