"""The Jobs API of a Ray that is started when a stage must run, and started again when it dies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator

from zhongjing.backends.local.processes import StartLimit, dump_stacks, end, is_uploading
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
OBEY_SECONDS = 6.0  # Ray gives a job 3 s after SIGTERM; what lives on after so long does not heed Ray


class LocalBackend:
    """Jobs on a local head. Without a running head no job is known: it died with it.

    Args:
        head: started by the first submission, or by :meth:`warm`.
        cpus: how many logical CPUs the wanted pipelines need.
        on_change: called after the head was started or ended.
    """

    def __init__(
        self, head: RayHead, *, cpus: Callable[[], int], package: str, on_change: Callable[[], None]
    ) -> None:
        self._head = head
        self._cpus = cpus
        self._package = package
        self._on_change = on_change
        self._limit = StartLimit("Ray", MAX_STARTS, START_WINDOW)
        self._silent_since: float | None = None
        self._lock = threading.RLock()
        self._stopped: set[str] = set()

    def submit(self, job: JobRequest) -> None:
        """Submits, as :meth:`RayJobsBackend.submit`; starts Ray if it does not run.

        What earlier attempts of the pipeline left is ended first: a process that was stopped, say, and could
        wake up later and write. Only a checkpoint on its way may still get there.
        """
        pipeline = _pipeline(job.submission_id)
        self._end(lambda other: other != job.submission_id and _pipeline(other) == pipeline)
        self.warm()
        self._jobs().submit(job)

    def request_workers(self, job: JobRequest) -> None:
        """Nothing to ask for: workers are processes of the head."""

    def describe(self, submission_id: str) -> JobDescription:
        """State of a job; UNKNOWN while no Ray runs, and lost once nothing of that Ray is left."""
        if not self._head.is_running:
            if self._head.record is not None:
                # Of a head that died, jobs and workers may live on, unseen.
                self._head.stop(spare_uploads=True)
                self._on_change()
            return JobDescription(
                submission_id=submission_id, state=JobState.UNKNOWN, lost=self._head.is_gone
            )
        try:
            job = self._jobs().describe(submission_id)
        except BackendUnavailableError:
            self._end_if_silent()
            raise
        self._silent_since = None
        return job

    def stop(self, submission_id: str) -> None:
        """Ends a job at once; what of it does not heed Ray is killed some seconds later."""
        with self._lock:
            if submission_id not in self._stopped:
                self._stopped.add(submission_id)
                later = threading.Timer(OBEY_SECONDS, self._end, [lambda other: other == submission_id])
                later.daemon = True
                later.start()
        if self._head.is_running:
            self._jobs().stop(submission_id)

    def stacks(self, submission_id: str) -> str:
        """Where the processes of a job are that makes no step."""
        return dump_stacks(self._head.attempt_processes(lambda other: other == submission_id))

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log."""
        if not self._head.is_running:
            raise BackendError("no Ray runs here, and the log went with it", code=NO_LOG, where=submission_id)
        return self._jobs().tail_logs(submission_id)

    def warm(self) -> None:
        """Starts Ray unless one runs that is large enough."""
        with self._lock:
            needed = self._cpus()
            there = self._head.record
            if self._head.is_running and there is not None and there.cpus >= needed:
                return
            if self._limit.is_reached():
                raise BackendError(
                    self._limit.message,
                    code=RAY_FAILED,
                    where=str(self._head.log),
                    remedy="see the log; too little memory is the usual reason",
                )
            try:
                self._head.start(needed)
            finally:
                self._silent_since = None
                self._on_change()

    def _end(self, belongs: Callable[[str], bool]) -> None:
        """Kills processes of attempts, by their submission ids. A stopped process heeds nothing else."""
        left = [process for process in self._head.attempt_processes(belongs) if not is_uploading(process)]
        if left:
            logger.warning("killing %d processes of an attempt that is over", len(left))
            end(left, force=True, grace=5.0)

    def _jobs(self) -> RayJobsBackend:
        return self._head.backend(self._package)

    def _end_if_silent(self) -> None:
        now = time.monotonic()
        self._silent_since = self._silent_since if self._silent_since is not None else now
        if now - self._silent_since > SILENT_SECONDS:
            logger.warning("Ray lives but has not answered for %.0f s: it is ended", now - self._silent_since)
            self._head.stop()
            self._silent_since = None
            self._on_change()


def _pipeline(submission_id: str) -> str:
    """``<pipeline>-<uid8>`` of ``<pipeline>-<uid8>-<stage>-a<N>``."""
    return submission_id.rsplit("-", 2)[0]
