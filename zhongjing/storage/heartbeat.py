"""How much this process has done: a counter that moves only when something was done.

Whatever may take long calls :func:`beat` for each piece that it has finished: a range of a file that arrived,
a micro-batch, a tensor, a token of a rollout. :class:`~zhongjing.storage.progress_writer.ProgressWriter`
publishes the counter with the progress. So a watcher of an attempt can tell long work from a hang, and a
timer cannot pretend to work. Small requests (progress itself, looking for a stop) do not count.
"""

from __future__ import annotations

import threading


class Heartbeat:
    """The counter of a process, and the fraction of what it does now, where that is known."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._fraction: float | None = None

    @property
    def count(self) -> int:
        """Pieces of work done since the process began."""
        return self._count

    @property
    def fraction(self) -> float | None:
        """How much of the present activity is done, 0 to 1; None where it is not known."""
        return self._fraction

    def beat(self, fraction: float | None = None) -> None:
        """A piece of work is done.

        Args:
            fraction: of the present activity, that is done now.
        """
        with self._lock:
            self._count += 1
            if fraction is not None:
                self._fraction = fraction

    def begin(self) -> None:
        """Another activity begins; its fraction is not known yet."""
        with self._lock:
            self._fraction = None


HEARTBEAT = Heartbeat()
beat = HEARTBEAT.beat
