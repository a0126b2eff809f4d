"""Log lines about what goes on being so: one when it changes, then one in ten minutes."""

from __future__ import annotations

import logging
import time

AGAIN_SECONDS = 600.0


class Repeats:
    """Says the same thing about the same subject once in ten minutes.

    Args:
        logger: takes the lines.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._said: dict[str, tuple[str, float]] = {}

    def say(self, subject: str, text: str, level: int = logging.WARNING) -> bool:
        """Logs ``subject: text``, unless that was the last thing said of it, and lately; whether it did."""
        now = time.monotonic()
        before = self._said.get(subject)
        if before is not None and before[0] == text and now - before[1] < AGAIN_SECONDS:
            return False
        self._said[subject] = (text, now)
        self._logger.log(level, "%s: %s", subject, text)
        return True

    def forget(self, subject: str) -> bool:
        """Lets go of a subject: what is said of it next is news. Whether anything had been said."""
        return self._said.pop(subject, None) is not None
