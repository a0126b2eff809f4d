"""Signals as calls in a thread of their own.

A handler runs in the main thread between any two instructions: also while that thread holds the lock of the
very event that the handler would set, and then the process never ends. So the interpreter writes the number
of a signal into a pipe (``signal.set_wakeup_fd``, which takes no lock), and a thread reads it.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable
from types import FrameType


def handle_signals(numbers: Iterable[signal.Signals], act: Callable[[], None]) -> None:
    """Has ``act`` called in a thread whenever one of the signals comes. For the main thread, once a process.

    Args:
        numbers: the signals.
        act: may take locks and do whatever takes time.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    for number in numbers:
        signal.signal(number, _nothing)  # in Python, or the signal would have its usual effect
    signal.set_wakeup_fd(writing)

    def follow() -> None:
        while os.read(reading, 1):
            act()

    threading.Thread(target=follow, name="signals", daemon=True).start()


def _nothing(number: int, frame: FrameType | None) -> None:
    """The number is in the pipe already."""
