"""Fencing: only the leader submits, and only when no forgotten job may still run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from zhongjing.backends.kubernetes.capacity import Capacity
from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.secrets import Rollout
from zhongjing.codes.storage import CONFLICT
from zhongjing.errors import BackendUnavailableError, ConflictError
from zhongjing.pipeline.backend import Backend, ImpossibleJobError, JobDescription, JobRequest
from zhongjing.pipeline.repeats import Repeats

logger = logging.getLogger(__name__)

_repeats = Repeats(logger)

RELEASE = "release"
"""Key of a job's metadata."""


class ClusterJobs(Backend, Protocol):
    """A backend that can also say which jobs there are."""

    def jobs(self) -> list[JobDescription]:
        """All jobs that Ray knows, ended ones too."""


@dataclass(frozen=True)
class RayCluster:
    """The Ray of a release, with what looks after its pods; a Ray that is not in the cluster has none.

    Attributes:
        jobs: runs jobs.
        capacity: scales its workers down when nothing runs.
        rollout: has it take up a changed token.
    """

    jobs: ClusterJobs
    capacity: Capacity | None = None
    rollout: Rollout | None = None

    @property
    def worker_pods(self) -> Mapping[str, int]:
        """How many worker pods are asked for, by group; none where nothing scales them."""
        return self.capacity.asked if self.capacity is not None else {}

    def look_after(
        self, *, busy: bool, preparing: str | None = None, verification: Demand | None = None
    ) -> None:
        """Does what is due now and then.

        Args:
            busy: whether a stage needs its workers, or would if it could run.
            preparing: id of the job that prepares and needs none yet.
            verification: what a ``helm test`` that goes on asks for.

        Raises:
            BackendError: the API does not answer, or refuses.
        """
        if self.rollout is not None:
            self.rollout.follow_token()
        if self.capacity is None:
            return
        if busy:
            self.capacity.restore()
            return
        if verification is None:
            self.capacity.scale_down(preparing)
            return
        try:
            self.capacity.ensure_workers(verification)
        except ImpossibleJobError as error:
            _repeats.say(verification.stage, f"cannot be scheduled: {error.message}")


class FencedBackend:
    """A backend that refuses to act when it must not.

    Args:
        backend: does the work.
        release: is noted on every job: releases may share a Ray.
        may_act: whether this process still leads.
    """

    def __init__(self, backend: ClusterJobs, release: str, may_act: Callable[[], bool]) -> None:
        self._backend = backend
        self._release = release
        self._may_act = may_act
        self.unseen: BackendUnavailableError | None = None
        """Why the jobs could not be listed: one of a pipeline that is gone may be alive."""

    def submit(self, job: JobRequest) -> None:
        """Submits.

        Raises:
            ConflictError: another controller leads now.
            BackendError: as the backend says; also while it is not known what runs there.
        """
        self._check()
        if self.unseen is not None:
            raise self.unseen
        metadata = {**job.metadata, RELEASE: self._release}
        self._backend.submit(job.model_copy(update={"metadata": metadata}))

    def request_workers(self, job: JobRequest) -> None:
        """Asks for the workers of a job.

        Raises:
            ConflictError: another controller leads now.
            BackendError: they are not there yet.
        """
        self._check()
        self._backend.request_workers(job)

    def describe(self, submission_id: str) -> JobDescription:
        """State of a job."""
        return self._backend.describe(submission_id)

    def stop(self, submission_id: str) -> None:
        """Ends a job at once. Raises ConflictError where another controller leads now."""
        self._check()
        self._backend.stop(submission_id)

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log."""
        return self._backend.tail_logs(submission_id)

    def stacks(self, submission_id: str) -> str:
        """Where each process of the job is."""
        return self._backend.stacks(submission_id)

    def _check(self) -> None:
        if not self._may_act():
            raise ConflictError("another controller leads now", code=CONFLICT)
