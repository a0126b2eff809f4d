"""The heartbeat of a supervisor, and how a client judges that there is none.

The supervisor touches a file every second, from a thread, but only as long as its loop has said that it may
be away. A loop that hangs outlives its allowance, and a process that was stopped has no running thread: in
both cases the file grows old. Starting Ray or S3 takes long and is allowed for.

A client goes by the time that it has itself spent looking. A machine that slept, or a container that was
frozen, leaves an old file behind, but no such time: a long pause between two looks counts like a short one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

BEAT_SECONDS = 1.0
SILENT_SECONDS = 20.0
FRESH_SECONDS = 5.0  # a sign not older than this needs no second look
_LONGEST_LOOK = 0.5  # what the time between two looks counts for, at most


class Heartbeat:
    """Signs of life of this process.

    Args:
        beat: leaves one sign; called from a thread.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._until = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self, seconds: float) -> None:
        """Begins, with an allowance as of :meth:`allow`."""
        self.allow(seconds)
        self._beat()
        self._thread.start()

    def allow(self, seconds: float) -> None:
        """The loop is alive now, and will say so again within ``seconds``."""
        self._until = time.monotonic() + seconds

    @contextmanager
    def busy(self, seconds: float) -> Iterator[None]:
        """Allows for work that takes long; afterwards what was left before counts again."""
        before = self._until - time.monotonic()
        self.allow(seconds)
        try:
            yield
        finally:
            self.allow(before)

    def close(self) -> None:
        """Ends the thread."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            if time.monotonic() < self._until:
                self._beat()


class Monitor:
    """Judges another process by its signs of life.

    Args:
        sign: when the last sign was left; only a change of it counts, not the time it tells.
        clock: this process's own clock, in seconds.
    """

    def __init__(self, sign: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._sign = sign
        self._clock = clock
        self._last = sign()
        self._looked = clock()
        self.heard = False  # whether a sign came since this began to listen
        self.silence = 0.0

    def check(self) -> bool:
        """Looks once; returns whether it has been silent for too long. To be called a few times a second."""
        now, sign = self._clock(), self._sign()
        if sign != self._last:
            self._last, self.heard, self.silence = sign, True, 0.0
        else:
            self.silence += min(now - self._looked, _LONGEST_LOOK)
        self._looked = now
        return self.silence > SILENT_SECONDS
