"""The TrainingPipelines of the namespace as they are now: listed in full now and then, watched in between.

A watch only saves time. What it misses is found by the next listing, so nothing depends on it.
"""

from __future__ import annotations

import logging
import threading
import time

from zhongjing.backends.kubernetes.resources import PIPELINES
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline, Pipelines
from zhongjing.errors import ZhongjingError

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 240.0
_PAUSE_SECONDS = 2.0  # after a watch that broke off


class Inventory:
    """What there is, by name; listed in full every ``resync_seconds``."""

    def __init__(self, pipelines: Pipelines, resync_seconds: float) -> None:
        self._pipelines = pipelines
        self._resync = resync_seconds
        self._items: dict[str, Pipeline] = {}
        self._deleted: set[str] = set()  # seen by the watch since the last listing was asked for
        self._version = ""
        self._listed = -float("inf")
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._versions = threading.Condition(self._lock)
        self._watcher = threading.Thread(target=self._watch, name="watch", daemon=True)

    def start(self) -> None:
        """Begins to watch, from the first listing on."""
        self._watcher.start()

    def close(self) -> None:
        """Stops watching."""
        self._ending.set()
        with self._versions:
            self._versions.notify_all()

    def wait(self, seconds: float) -> None:
        """Waits for a change, or so long."""
        self._wake.wait(max(0.0, seconds))
        self._wake.clear()

    def expire(self) -> None:
        """Has the next :meth:`refresh` list anew."""
        self._listed = -float("inf")
        self._wake.set()

    def refresh(self) -> bool:
        """Lists anew when that is due; whether it did.

        Raises:
            BackendError: the API does not answer, refuses, or knows no TrainingPipelines.
        """
        if time.monotonic() - self._listed < self._resync:
            return False
        with self._lock:
            self._deleted.clear()
        listed, version = self._pipelines.find()
        with self._versions:
            # The watch may have seen more by now than the listing, which is of the time it was asked for.
            before = self._items
            self._items = {
                each.name: _newer(before.get(each.name), each)
                for each in listed
                if each.uid not in self._deleted
            }
            self._version = version
            self._versions.notify_all()
        self._listed = time.monotonic()
        return True

    def all(self) -> list[Pipeline]:
        """All objects."""
        with self._lock:
            return list(self._items.values())

    def put(self, pipeline: Pipeline) -> None:
        """Takes note of an object as it was just written; what is newer, or gone by now, stays so."""
        with self._lock:
            known = self._items.get(pipeline.name)
            if known is not None and known.uid == pipeline.uid:
                self._items[pipeline.name] = _newer(known, pipeline)

    def remove(self, pipeline: Pipeline) -> None:
        """Takes note that an object is gone."""
        with self._lock:
            known = self._items.get(pipeline.name)
            if known is not None and known.uid == pipeline.uid:
                del self._items[pipeline.name]

    def _watch(self) -> None:
        while not self._ending.is_set():
            with self._versions:
                self._versions.wait_for(lambda: self._version or self._ending.is_set())
                version = self._version
                self._version = ""
            try:
                while version and not self._ending.is_set():
                    version = self._follow(version)
            except ZhongjingError as error:
                logger.debug("the watch broke off: %s", error)
            except Exception:
                logger.exception("unexpected error in the watch of TrainingPipelines")
            self.expire()
            self._ending.wait(_PAUSE_SECONDS)

    def _follow(self, version: str) -> str:
        """One watch; returns the version to go on from, empty when it must be listed anew."""
        for change in self._pipelines.api.watch(PIPELINES, version, seconds=_WATCH_SECONDS):
            if change.type == "ERROR":
                return ""
            version = str(change.object["metadata"]["resourceVersion"])
            if change.type == "BOOKMARK":
                continue
            self._take(change.type, Pipeline(change.object))
            if self._ending.is_set():
                break
        return version

    def _take(self, type_: str, pipeline: Pipeline) -> None:
        with self._lock:
            known = self._items.get(pipeline.name)
            if known is not None and _newer(known, pipeline) is known:
                return  # what this process wrote itself comes back by the watch
            if type_ == "DELETED":
                self._items.pop(pipeline.name, None)
                self._deleted.add(pipeline.uid)
            else:
                self._items[pipeline.name] = pipeline
        self._wake.set()


def _newer(known: Pipeline | None, other: Pipeline) -> Pipeline:
    """Of two states of a name the later one; versions of one collection rise over all its objects."""
    if known is None or int(other.version) > int(known.version):
        return other
    return known
