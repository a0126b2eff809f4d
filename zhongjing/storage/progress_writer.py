"""Writers and readers of progress.json and of the metric points.

The training only hands over; a thread writes. An outage of the store never reaches the loop: of the progress
the newest is kept, of the points all, until the store is back.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import ValidationError

from zhongjing.codes import storage as codes
from zhongjing.errors import NotFoundError, StorageError, ZhongjingError
from zhongjing.storage.documents import record_bytes
from zhongjing.storage.heartbeat import HEARTBEAT, Heartbeat
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.progress import Activity, MetricPoint, Progress, time_stamp

logger = logging.getLogger(__name__)

INTERVAL = 5.0  # seconds between writes
CLOSE_SECONDS = 60.0
_ENDS = (Activity.DONE, Activity.SUSPENDED, Activity.FAILED)
# A part is rewritten while it grows, then the next begins: 100 hours do not make 70,000 objects.
PART_BYTES = 256 * 2**10


class _Worker:
    """Calls ``flush`` in a thread: at the interval when there is something, at once when urged."""

    def __init__(
        self, name: str, interval: float, pending: Callable[[], bool], flush: Callable[[], None]
    ) -> None:
        self._interval = interval
        self._pending = pending
        self._flush = flush
        self._condition = threading.Condition()
        self._urgent = False
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def wake(self, *, urgent: bool = False) -> None:
        """Tells the thread that there is something to write."""
        with self._condition:
            self._urgent = self._urgent or urgent
            self._condition.notify()

    def close(self, seconds: float) -> bool:
        """Writes what is left and ends the thread; False if that took longer than ``seconds``."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        last = float("-inf")
        failing = False
        while True:
            with self._condition:
                while not self._closing:
                    due = last + self._interval - time.monotonic()
                    if self._pending() and (self._urgent or due <= 0):
                        break
                    self._condition.wait(max(due, 0.01) if self._pending() else self._interval)
                self._urgent = False
                closing = self._closing
            if self._pending():
                try:
                    self._flush()
                    failing = False
                except ZhongjingError as error:
                    # Never into the training; what is pending stays so. Told once an outage.
                    if not failing:
                        logger.warning("%s: not written, will be tried again: %s", self._thread.name, error)
                    failing = True
                last = time.monotonic()
            if closing:
                return


class ProgressWriter:
    """Publishes ``progress.json``: at most every five seconds, at once when the activity changes.

    Between two reports it is written again whenever this process has done something
    (:mod:`zhongjing.storage.heartbeat`), and only then.

    Args:
        store: the object store.
        layout: URIs of the run of the stage.
        interval: seconds between writes.
        heartbeat: of this process.
    """

    def __init__(
        self,
        store: ObjectStore,
        layout: StageLayout,
        interval: float = INTERVAL,
        heartbeat: Heartbeat = HEARTBEAT,
    ) -> None:
        self._store = store
        self._uri = layout.progress
        self._lock = threading.Lock()
        self._heartbeat = heartbeat
        self._newest: Progress | None = None
        self._last: Progress | None = None  # handed over last
        self._told = heartbeat.count
        self._worker = _Worker("progress", interval, self._pending, self._flush)

    def write(self, progress: Progress) -> None:
        """Hands over the newest progress; returns at once and never raises for the store's sake."""
        with self._lock:
            last = self._last
            changed = last is None or progress.activity is not last.activity
            # The fraction of another activity, or one that was just told better.
            if last is None or changed or progress.message != last.message or progress.fraction is not None:
                self._heartbeat.begin()
            self._newest = self._last = progress
        self._worker.wake(urgent=changed)

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Writes what is pending; False if the store did not take it in time."""
        return self._worker.close(seconds) and self._newest is None

    def _flush(self) -> None:
        with self._lock:
            newest, last = self._newest, self._last
        if last is None:
            return
        beats, fraction = self._heartbeat.count, self._heartbeat.fraction
        update: dict[str, Any] = {"beats": beats}
        if newest is None:
            update["updated_at"] = time_stamp()
        if fraction is not None and last.activity not in (Activity.TRAINING, *_ENDS):
            update["fraction"] = fraction
        self._store.put(self._uri, record_bytes(last.model_copy(update=update)))
        with self._lock:
            self._told = beats
            if self._newest is newest:
                self._newest = None

    def _pending(self) -> bool:
        if self._newest is not None:
            return True
        last = self._last
        return last is not None and last.activity not in _ENDS and self._heartbeat.count != self._told


class MetricsWriter:
    """Stores metric points in parts while the stage runs, and as one ``metrics.jsonl`` at its end.

    Args:
        store: the object store.
        layout: URIs of the run of the stage.
        interval: seconds between writes.
    """

    def __init__(self, store: ObjectStore, layout: StageLayout, interval: float = INTERVAL) -> None:
        self._store = store
        self._layout = layout
        self._lock = threading.Lock()
        self._flushing = threading.Lock()  # held while parts are read or written
        self._pending: list[bytes] = []
        self._open = b""  # content of the part that still grows
        self._part: int | None = None  # its number, known once the store was asked
        self._worker = _Worker("metrics", interval, lambda: bool(self._pending), self.flush)

    def add(self, point: MetricPoint) -> None:
        """Hands over a point; returns at once and never raises for the store's sake."""
        line = point.model_dump_json().encode() + b"\n"
        with self._lock:
            self._pending.append(line)
        self._worker.wake()

    def unstored(self) -> bytes:
        """JSON lines of the points that the store may not have yet, for a checkpoint that is being taken."""
        with self._lock:
            return b"".join(self._pending)

    def truncate(self, step: int | None, unstored: bytes = b"") -> None:
        """Brings the stored points to where a checkpoint was taken: the steps after it are run again.

        Points later than ``step`` are dropped; None, where there is no checkpoint, drops all. Points of
        ``unstored``, the checkpoint's own, are added unless they came into the store after it was taken.

        To be called before the first ``add`` of an attempt. Each part is rewritten by itself, so a crash
        in between leaves nothing twice.

        Raises:
            StorageError: a part is damaged or the store refused.
        """
        with self._flushing:
            parts = _list_parts(self._store, self._layout)
            compacted = _read_points(self._store, self._layout.metrics)
            if compacted is not None:
                # The last attempt ended between this file and its manifest. It holds all points.
                kept = [point for point in compacted if step is not None and point.step <= step]
                first = self._layout.metrics_part(0)
                self._store.put(first, _lines(kept))
                self._store.delete([uri for uri in parts if uri != first])
                self._store.delete(self._layout.metrics)
                parts = [first]
            else:
                for uri in parts:
                    points = _read_points(self._store, uri) or []
                    kept = [point for point in points if step is not None and point.step <= step]
                    if not kept:
                        self._store.delete(uri)
                    elif len(kept) < len(points):
                        self._store.put(uri, _lines(kept))
            self._part = 1 + max((_part_number(uri) for uri in parts), default=-1)
            self._open = b""
            stored = {point.model_dump_json() for point in read_metrics(self._store, self._layout)}
            missing = [line for line in unstored.splitlines() if line.decode() not in stored]
            if missing:
                self._open = b"".join(line + b"\n" for line in missing)
                self._store.put(self._layout.metrics_part(self._part), self._open)

    def compact(self) -> list[MetricPoint]:
        """Writes ``metrics.jsonl``, removes the parts and returns all points.

        Raises:
            StorageError: a part is damaged or the store refused; nothing is lost then.
        """
        self.flush()
        with self._flushing:
            points = read_metrics(self._store, self._layout)
            self._store.put(self._layout.metrics, _lines(points))
            self._store.delete(_list_parts(self._store, self._layout))
            self._part, self._open = None, b""
        return points

    def close(self, seconds: float = CLOSE_SECONDS) -> bool:
        """Writes what is pending and ends the thread; False if the store did not take it in time."""
        return self._worker.close(seconds) and not self._pending

    def flush(self) -> None:
        """Writes what is pending.

        Raises:
            StorageError: the store did not take it; it stays pending.
        """
        with self._flushing:
            if self._part is None:
                parts = _list_parts(self._store, self._layout)
                self._part = 1 + max((_part_number(uri) for uri in parts), default=-1)
            with self._lock:
                lines = list(self._pending)
            if not lines:
                return
            content = self._open + b"".join(lines)
            self._store.put(self._layout.metrics_part(self._part), content)
            with self._lock:
                del self._pending[: len(lines)]
            if len(content) >= PART_BYTES:
                self._part, self._open = self._part + 1, b""
            else:
                self._open = content


def read_metrics(store: ObjectStore, layout: StageLayout) -> list[MetricPoint]:
    """All metric points in the order in which they were logged, while the stage runs and after.

    Raises:
        StorageError: an object is damaged; names it and the line.
    """
    compacted = _read_points(store, layout.metrics)
    if compacted is not None:
        return compacted
    points: list[MetricPoint] = []
    for uri in _list_parts(store, layout):
        part = _read_points(store, uri)
        if part is None:
            # Compacted since it was listed.
            compacted = _read_points(store, layout.metrics)
            return points if compacted is None else compacted
        points.extend(part)
    return points


def _list_parts(store: ObjectStore, layout: StageLayout) -> list[str]:
    folder = layout.metrics_part(0).rpartition("/")[0]
    return [info.uri for info in store.list(folder)]


def _part_number(uri: str) -> int:
    return int(uri.rpartition("part-")[2].removesuffix(".jsonl"))


def _read_points(store: ObjectStore, uri: str) -> list[MetricPoint] | None:
    try:
        data = store.get(uri)
    except NotFoundError:
        return None
    points: list[MetricPoint] = []
    for number, line in enumerate(data.splitlines(), start=1):
        try:
            points.append(MetricPoint.model_validate(json.loads(line)))
        except (ValueError, ValidationError):
            raise StorageError(
                f"the metrics are damaged at line {number}",
                code=codes.DAMAGED_OBJECT,
                where=uri,
                remedy="remove the object: the points are lost, the training is not touched",
            ) from None
    return points


def _lines(points: Sequence[MetricPoint]) -> bytes:
    return b"".join(point.model_dump_json().encode() + b"\n" for point in points)
