"""What a decision may look at. Plain data; :mod:`zhongjing.pipeline.reconcile` gathers it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zhongjing.config.commands import Commands
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import Conclude
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.pipeline.fit import Unfit
from zhongjing.storage.progress import Activity, Progress

_ENDED = (Activity.DONE, Activity.SUSPENDED, Activity.FAILED)
_ON_WORKERS = (Activity.TRAINING, Activity.EVALUATING, Activity.SAVING)


@dataclass(frozen=True)
class ResultView:
    """A manifest that exists."""

    manifest_uri: str
    model_uri: str | None
    attempt: int
    submission_id: str


@dataclass(frozen=True)
class AttemptView:
    """The latest attempt of a stage, as the world shows it.

    ``progress`` is that attempt's own, or None. ``quiet_seconds`` is how long its progress has not changed,
    ``stuck_seconds`` how long it has made no step and done nothing else that counts; both by the
    reconciler's clock, from its own first look, because a worker's clock may differ.
    """

    job: JobDescription
    progress: Progress | None = None
    quiet_seconds: float = 0.0
    stuck_seconds: float = 0.0

    @property
    def is_alive(self) -> bool:
        """Whether the backend says that the job may still do something."""
        return self.job.state in (JobState.PENDING, JobState.RUNNING)

    @property
    def has_ended(self) -> bool:
        """Whether the attempt itself said that it is over."""
        return self.progress is not None and self.progress.activity in _ENDED

    @property
    def lacks_workers(self) -> bool:
        """Whether workers that the attempt is at work on do not serve any more."""
        at_work = self.progress is not None and self.progress.activity in _ON_WORKERS
        return at_work and self.job.state is JobState.RUNNING and bool(self.job.lacks)

    @property
    def is_prepared(self) -> bool:
        """Whether the job runs and all that it waits for is its workers."""
        prepared = self.progress is not None and self.progress.activity is Activity.PREPARED
        return prepared and self.job.state is JobState.RUNNING


@dataclass(frozen=True)
class Observed:
    """Everything seen in one pass.

    Jobs are read before progress, and progress before manifests: a job writes its manifest before it ends,
    so a manifest that is missing after the job's end was never written. ``blocked_by`` says why no stage may
    start now: another pipeline has the cluster. ``unfit`` has the stages that would not fit into memory.
    ``away`` is the condition while the backend does not answer: the state of a job is UNREACHABLE then.
    """

    now: float
    results: Mapping[tuple[Stage, str], ResultView] = field(default_factory=dict)
    attempts: Mapping[Stage, AttemptView] = field(default_factory=dict)
    blocked_by: str | None = None
    unfit: Mapping[Stage, Unfit] = field(default_factory=dict)
    away: Conclude | None = None


@dataclass(frozen=True)
class Policy:
    """Times that decisions use, in seconds, and how users reach the place."""

    stop_seconds: float = 600.0  # from a stop request to a forced stop: a large checkpoint takes minutes
    hung_stop_seconds: float = 30.0  # the same for an attempt that does nothing any more
    finish_seconds: float = 60.0  # from the manifest to a forced end of a job that does not exit
    unknown_seconds: float = 15.0  # a job that the backend has forgotten for so long is lost
    lost_seconds: float = 45.0  # no work for so long, and workers that are gone: the attempt will not go on
    quiet_seconds: float = 15.0  # no new attempt while the last one's progress moved within this time
    backoff_seconds: float = 10.0  # before the first retry; doubles
    max_backoff_seconds: float = 300.0
    commands: Commands = field(default_factory=lambda: Commands(name="zhongjing"))  # that remedies name
