"""The Jobs API of a Ray that is started when a stage must run, and started again when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator

from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.codes.command import NO_LOG
from zhongjing.codes.ray import RAY_FAILED
from zhongjing.errors import BackendError, BackendUnavailableError
from zhongjing.pipeline.backend import JobDescription, JobRequest, JobState

logger = logging.getLogger(__name__)

MAX_STARTS = 5  # of Ray within START_WINDOW seconds; more means that something kills it every time
START_WINDOW = 900.0
SILENT_SECONDS = 90.0  # a head that does not answer for so long is ended


class LocalBackend:
    """Jobs on a local head. Without a running head no job is known: it died with it.

    Args:
        head: started by the first submission, or by :meth:`warm`.
        cpus: how many logical CPUs the wanted pipelines need.
        package: package of the entry points.
        on_change: called after the head was started or ended.
    """

    def __init__(
        self, head: RayHead, *, cpus: Callable[[], int], package: str, on_change: Callable[[], None]
    ) -> None:
        self._head = head
        self._cpus = cpus
        self._package = package
        self._on_change = on_change
        self._starts: deque[float] = deque(maxlen=MAX_STARTS)
        self._silent_since: float | None = None
        self._lock = threading.RLock()

    def submit(self, job: JobRequest) -> None:
        """Submits, as :meth:`RayJobsBackend.submit`; starts Ray if it does not run.

        Raises:
            BackendError: Ray does not start, or died too often.
        """
        self.warm()
        self._jobs().submit(job)

    def describe(self, submission_id: str) -> JobDescription:
        """State of a job; UNKNOWN while no Ray runs."""
        if not self._head.is_running:
            return JobDescription(submission_id=submission_id, state=JobState.UNKNOWN)
        try:
            job = self._jobs().describe(submission_id)
        except BackendUnavailableError:
            self._end_if_silent()
            raise
        self._silent_since = None
        return job

    def stop(self, submission_id: str) -> None:
        """Ends a job at once."""
        if self._head.is_running:
            self._jobs().stop(submission_id)

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log."""
        if not self._head.is_running:
            raise BackendError("no Ray runs here, and the log went with it", code=NO_LOG, where=submission_id)
        return self._jobs().tail_logs(submission_id)

    def render(self, job: JobRequest) -> dict[str, object]:
        """What ``submit`` would send."""
        return RayJobsBackend("http://127.0.0.1", None, package=self._package).render(job)

    def warm(self) -> None:
        """Starts Ray unless one runs that is large enough."""
        with self._lock:
            needed = self._cpus()
            there = self._head.record
            if self._head.is_running and there is not None and there.cpus >= needed:
                return
            now = time.monotonic()
            if len(self._starts) == MAX_STARTS and now - self._starts[0] < START_WINDOW:
                raise BackendError(
                    f"Ray died {MAX_STARTS} times within {START_WINDOW / 60:.0f} minutes",
                    code=RAY_FAILED,
                    where=str(self._head.log),
                    remedy="see the log; too little memory is the usual reason",
                )
            self._starts.append(now)
            try:
                self._head.start(needed)
            finally:
                self._silent_since = None
                self._on_change()

    def _jobs(self) -> RayJobsBackend:
        return self._head.backend(self._package)

    def _end_if_silent(self) -> None:
        now = time.monotonic()
        if self._silent_since is None:
            self._silent_since = now
        elif now - self._silent_since > SILENT_SECONDS:
            logger.warning("Ray lives but has not answered for %.0f s: it is ended", now - self._silent_since)
            self._head.stop()
            self._silent_since = None
            self._on_change()
