"""An outage of the object store as a state: since when it lasts, and when the store is asked again.

The controller has one thread for all pipelines, so nothing in it waits for a store. A request that fails
begins an outage if the store as a whole is away, which one more request finds out. Until a later one
succeeds no pipeline asks the store for anything: what runs goes on by itself. A short outage is not told at
all; of a longer one the conditions of those pipelines tell that would do something now.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from zhongjing.codes.storage import ACCESS_DENIED, SETTINGS
from zhongjing.errors import (
    ConflictError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    ZhongjingError,
)
from zhongjing.pipeline.faults import UNREADABLE, sentence
from zhongjing.pipeline.repeats import Repeats
from zhongjing.storage.failures import ROTATION_SECONDS

logger = logging.getLogger(__name__)

SILENCE_SECONDS = 10.0  # a shorter outage is not reported: its pod was replaced, say
_FIRST_PAUSE = 1.0  # between two looks at a store that is away; doubles
_LONGEST_PAUSE = 15.0
_STORE = "the object store"


class Outage:
    """Whether the object store can be used.

    Args:
        ask: sends the store a request that needs next to nothing; raises what is wrong with it.
    """

    def __init__(self, ask: Callable[[], None]) -> None:
        self._ask = ask
        self._asked = False
        self.error: ZhongjingError | None = None
        """What was wrong with the store when it was last asked."""
        self._since = self._again = 0.0
        self._pause = _FIRST_PAUSE
        self._repeats = Repeats(logger)

    @property
    def holds(self) -> bool:
        """Whether the store could not be used when it was last asked."""
        return self.error is not None

    def look(self, now: float) -> None:
        """Asks the store if it was never asked, or if it is away and the time to ask it again has come.

        Args:
            now: seconds since the epoch.
        """
        if not self._asked or (self.error is not None and now >= self._again):
            self._look(now)

    def explains(self, error: Exception, now: float) -> bool:
        """Whether an error of a request comes of an outage, rather than of what was asked for.

        Keys that one folder is closed to, and a bucket of one document's source that is in another region,
        say nothing of the store: others use it meanwhile. So the store is asked once.
        """
        if not _may_be_outage(error):
            return False
        if self.error is None:
            self._look(now)
        return self.error is not None

    def told(self, now: float) -> ZhongjingError | None:
        """What is wrong with the store, if it has been so for longer than is borne in silence."""
        late = self.error is not None and now - self._since >= _patience(self.error)
        return self.error if late else None

    def wait(self, now: float) -> float:
        """Seconds until something may be new: the store is asked again, or its outage is told."""
        if self.error is None:
            return 0.0
        telling = self._since + _patience(self.error)
        return max(0.0, min([self._again, telling] if telling > now else [self._again]) - now)

    def _look(self, now: float) -> None:
        self._asked = True
        try:
            self._ask()
        except ZhongjingError as error:
            self._note(error, now)
            return
        if self._repeats.forget(_STORE):
            logger.warning("the object store is back after %.0f s", now - self._since)
        self.error = None
        self._pause = _FIRST_PAUSE

    def _note(self, error: ZhongjingError, now: float) -> None:
        if self.error is None:
            self._since = now
        self._repeats.say(_STORE, f"cannot be used: {sentence(error)}", key=error.code.name)
        self.error = error
        self._again = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE)


def _patience(error: ZhongjingError) -> float:
    """Seconds for which an outage is nothing to tell of."""
    if not isinstance(error, StorageUnavailableError):
        return 0.0
    # Keys that were good are being replaced: a kubelet brings the new ones in a minute or two.
    return ROTATION_SECONDS if error.code is ACCESS_DENIED else SILENCE_SECONDS


def _may_be_outage(error: Exception) -> bool:
    if isinstance(error, NotFoundError | ConflictError) or not isinstance(error, ZhongjingError):
        return False
    return error.code in SETTINGS.codes or (isinstance(error, StorageError) and error.code not in UNREADABLE)
