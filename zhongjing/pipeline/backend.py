"""What the reconciler needs from a backend: local Ray or a cluster's, both by the Ray Jobs API."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Protocol

from pydantic import Field

from zhongjing.config.stages import Resources, Stage
from zhongjing.errors import BackendError
from zhongjing.storage.manifest import Record


class ForeignJobError(BackendError):
    """The submission id belongs to a job of another spec hash: the next attempt has another id."""


class ImpossibleJobError(BackendError):
    """This job can never run here: too few workers can ever be there, say. Its code is the stage's reason."""


class JobState(StrEnum):
    """State of a submitted job."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    STOPPED = "Stopped"
    UNKNOWN = "Unknown"  # the backend does not know the id: never submitted, or its history is lost
    UNREACHABLE = "Unreachable"  # the backend does not answer; what it runs may live on

    @property
    def is_terminal(self) -> bool:
        """Whether the job will not change any more."""
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.STOPPED)


class JobRequest(Record):
    """A job to submit; submitting the same twice is harmless."""

    submission_id: str  # <pipeline>-<uid8>-<stage>-a<N>
    stage: Stage
    request_uri: str  # of the StageRequest
    metadata: dict[str, str]  # has "specHash"; no secrets: Ray shows it in clear
    workers: int = 1  # processes that the job will ask Ray for
    resources: Resources = Field(default_factory=Resources, description="of each worker")


class JobDescription(Record):
    """What a backend knows of a job."""

    submission_id: str
    state: JobState
    message: str = ""
    metadata: dict[str, str] = Field(default_factory=dict)
    lost: bool = Field(default=False, description="unknown, and no process of it can be alive any more")
    lacks: str = Field(default="", description="workers of a running job that do not serve any more, and why")
    remedy: str | None = Field(default=None, description="what to do about that")


class Backend(Protocol):
    """Runs stage jobs. Every method may raise BackendUnavailableError, which means: try again later."""

    def submit(self, job: JobRequest) -> None:
        """Submits, or adopts a job of the same id and spec hash.

        The job prepares what its workers share before it needs them.

        Raises:
            ForeignJobError: the id belongs to a job of another hash.
            ImpossibleJobError: the job can never run here.
            BackendUnavailableError: not now; the message says what is missing.
        """

    def request_workers(self, job: JobRequest) -> None:
        """Asks for the workers of a job that runs and is prepared; the same again while it waits.

        Raises:
            BackendError: they are not there yet; says what is missing.
        """

    def describe(self, submission_id: str) -> JobDescription:
        """State of a job; UNKNOWN if the backend has never heard of it."""

    def stop(self, submission_id: str) -> None:
        """Ends a job at once. A stop with a checkpoint goes through the stop object instead."""

    def stacks(self, submission_id: str) -> str:
        """Where each process of a job is that makes no step, or why that is unknown.

        Never raises, and takes at most a minute or so: the caller has other pipelines to serve.
        """

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log, following until the job ends."""
