"""Memory of this process as Linux counts it, for tests and benchmarks of loading."""

from __future__ import annotations

import re
import threading
from pathlib import Path

_MAPPING = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ \d+ *(.*)$")


def private_bytes() -> int:
    """Memory that this process shares with no file (RssAnon)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) << 10
    raise AssertionError("no RssAnon")


class PeakWatch:
    """The largest private memory of this process in bytes while it is entered, looked at every 2 ms."""

    def __init__(self) -> None:
        self.peak = private_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> PeakWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self.peak = max(self.peak, private_bytes())

    def _run(self) -> None:
        while not self._over.wait(0.002):
            self.peak = max(self.peak, private_bytes())


def mapped_file(address: int) -> tuple[str, int] | None:
    """The file that is mapped at ``address``, and how many bytes of that mapping this process has written.

    What was written is a copy of its own (Anonymous of /proc/self/smaps). None where no file is mapped.
    """
    here: str | None = None
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = _MAPPING.match(line)
        if found is not None:
            inside = int(found.group(1), 16) <= address < int(found.group(2), 16)
            here = found.group(3) if inside else None
        elif here is not None and line.startswith("Anonymous:"):
            return (here, int(line.split()[1]) << 10) if here.startswith("/") else None
    return None
