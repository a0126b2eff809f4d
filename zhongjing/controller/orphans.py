"""Jobs whose pipeline is gone. Deleting a pipeline ends its job.

An object without a finalizer is gone at once, with its status. What is left of it is in the job's metadata:
which stage, key and attempt it is. So it is asked to stop with a checkpoint, and ended when it does not.
While one lives it has the cluster.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence

from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.config.release import ReleaseConfig
from zhongjing.config.stages import Resources, Stage
from zhongjing.controller.fencing import RELEASE, ClusterJobs
from zhongjing.controller.services import Services
from zhongjing.controller.verify import CPUS, GPUS, VERIFIES
from zhongjing.errors import BackendError, ZhongjingError
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.pipeline.faults import unavailable
from zhongjing.pipeline.repeats import Repeats
from zhongjing.pipeline.state import StopReason
from zhongjing.storage.artifacts import request_stop
from zhongjing.storage.layout import Layout

logger = logging.getLogger(__name__)

_ALIVE = (JobState.PENDING, JobState.RUNNING)
_AGAIN_SECONDS = 10.0  # until a job that does not end is ended once more


class Orphans:
    """Finds and stops them."""

    def __init__(self, backend: ClusterJobs, services: Services, release: ReleaseConfig) -> None:
        self._backend = backend
        self._services = services
        self._release = release
        self._asked: dict[str, float] = {}
        self._ended: dict[str, float] = {}
        self._looked = False
        self._repeats = Repeats(logger)
        self.holder: str | None = None
        """What has the cluster, in words; None where no orphan lives."""
        self.verification: Demand | None = None
        """What a ``helm test`` asks for that goes on."""

    def look(self, pipelines: Sequence[Pipeline], now: float, *, force: bool) -> None:
        """Looks at the jobs, if there is reason to.

        Args:
            pipelines: the objects that are this release's: one that went to another is run elsewhere.
            now: seconds since the epoch.
            force: there may be new ones: an object has gone, or much time has passed.
        """
        fence = self._services.backend
        if not force and self._looked and fence.unseen is None and self.holder is None:
            return
        self._looked = True
        try:
            jobs = self._backend.jobs()
        except BackendError as error:
            self._repeats.say("Ray's jobs cannot be listed", error.message)
            # Whatever it is: until Ray says what runs, nothing else may begin there.
            fence.unseen = unavailable(error)
            return
        if fence.unseen is not None:
            fence.unseen = None
            self._repeats.forget("Ray's jobs cannot be listed")
        # What another namespace has on the same Ray is none of our business.
        jobs = [job for job in jobs if job.metadata.get("namespace") == self._release.namespace]
        self.verification = verification(jobs, self._release.release)
        alive = orphans(jobs, pipelines, self._release.release)
        self._asked = {job.submission_id: self._asked.get(job.submission_id, now) for job in alive}
        self._ended = {name: at for name, at in self._ended.items() if name in self._asked}
        self.holder = f"{alive[0].submission_id}, a job whose pipeline was deleted" if alive else None
        for job in alive:
            try:
                self._end(job, now)
            except ZhongjingError as error:
                self._repeats.say(job.submission_id, f"could not be stopped: {error.message}")

    def _end(self, job: JobDescription, now: float) -> None:
        services = self._services
        patience = services.policy.stop_seconds
        uri = self._stop_object(job)
        late = now - self._asked[job.submission_id] >= patience
        if job.state is JobState.PENDING or late or uri is None:
            if now - self._ended.get(job.submission_id, 0.0) >= _AGAIN_SECONDS:
                self._repeats.say(job.submission_id, "is stopped: its pipeline was deleted", logging.INFO)
                self._ended[job.submission_id] = now
                services.backend.stop(job.submission_id)
        elif not services.outage.holds and not services.store.exists(uri):
            logger.info("asked %s to stop: its pipeline was deleted", job.submission_id)
            message = "the pipeline was deleted, or moved to another release"
            request_stop(services.store, uri, StopReason.SUPERSEDED, message)

    def _stop_object(self, job: JobDescription) -> str | None:
        told = job.metadata
        try:
            stage, key, attempt = Stage(told["stage"]), told["key"], int(told["attempt"])
            layout = Layout(self._release.storage.uri, told["namespace"], told["pipeline"])
        except (KeyError, ValueError):
            return None
        return layout.stage(stage, key).stop(attempt)


def orphans(
    jobs: Iterable[JobDescription], pipelines: Iterable[Pipeline], release: str
) -> list[JobDescription]:
    """Jobs of a release that are alive and belong to none of its pipelines any more.

    A job that was submitted by hand, or by another release on the same Ray, is none.
    """
    known = tuple(f"{each.name}-{each.short_uid}-" for each in pipelines)
    return [
        job
        for job in jobs
        if job.state in _ALIVE
        and job.metadata.get(RELEASE) == release
        and not job.submission_id.startswith(known)
    ]


def verification(jobs: Iterable[JobDescription], release: str) -> Demand | None:
    """What the job of a ``helm test`` of this release asks for, while it is alive."""
    for job in jobs:
        told = job.metadata
        if job.state not in _ALIVE or told.get(VERIFIES) != release:
            continue
        try:
            resources = Resources(cpus=float(told.get(CPUS, 1)), gpus=int(told.get(GPUS, 0)))
        except ValueError:
            continue  # submitted by hand: no test asks for that
        return Demand(job.submission_id, 1, resources)
    return None
