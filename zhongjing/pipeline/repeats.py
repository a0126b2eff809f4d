"""Log lines about a state that lasts: one when it changes, then one in ten minutes."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable

AGAIN_SECONDS = 600.0
_REMEMBERED = 4096


class Repeats:
    """Says the same thing about the same subject once in ten minutes. Bounded in memory.

    Args:
        logger: takes the lines.
        clock: seconds of any origin; the monotonic clock unless given.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] | None = None) -> None:
        self._logger = logger
        self._clock = clock or time.monotonic
        self._said: dict[Hashable, tuple[Hashable, float]] = {}

    def say(self, subject: str, text: str, level: int = logging.WARNING, key: Hashable = None) -> bool:
        """Logs ``subject: text`` unless that was the last line about it, and recent; whether it did.

        Args:
            subject: what the line is about.
            text: the line.
            level: of the line.
            key: what makes a line the same as the last; None: its text.
        """
        news = self.is_news(subject, text if key is None else key)
        if news:
            self._logger.log(level, "%s: %s", subject, text)
        return news

    def is_news(self, subject: Hashable, key: Hashable = None) -> bool:
        """Whether ``key`` is not what was last noted about the subject, or not recently; notes it."""
        now = self._clock()
        before = self._said.get(subject)
        if before is not None and before[0] == key and now - before[1] < AGAIN_SECONDS:
            return False
        if len(self._said) >= _REMEMBERED:
            self._said = {each: said for each, said in self._said.items() if now - said[1] < AGAIN_SECONDS}
        self._said[subject] = (key, now)
        return True

    def forget(self, subject: Hashable) -> bool:
        """Makes the next line about a subject news; whether there had been one."""
        return self._said.pop(subject, None) is not None
