"""The Ray of a release, as the sequencer's backend: jobs, and pods to run them in.

To what :class:`RayJobsBackend` does it adds what a cluster needs:

- a submission waits for the head alone, where the job prepares; worker pods are asked for when that is done,
  or at once while there is no head, and what keeps them is said;
- without a head no job is known and none is listed: what ran there is over;
- Ray's token is read from its Secret, again when Ray refuses it: a rotation is no failure;
- a job that Ray has forgotten is lost for certain once every worker container is younger than the head's;
- worker pods in which an attempt hung, or that Ray has lost, are replaced first;
- of a running job it is said which of its workers do not serve any more, and why.

Whatever Kubernetes or a token may say, a job is not refused for it: the pipeline waits, and its condition
says why. Only what can never run is refused. No call takes longer than some seconds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

from zhongjing.backends.kubernetes.api import KubeApi
from zhongjing.backends.kubernetes.capacity import Availability, Capacity
from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.diagnosis import Explainer, sentence
from zhongjing.backends.kubernetes.pod_diagnosis import Finding
from zhongjing.backends.kubernetes.resources import PODS, Object
from zhongjing.backends.kubernetes.secrets import TOKEN_KEY, read_secret
from zhongjing.backends.kubernetes.worker_pods import END_SECONDS, Hangs, Leftovers, never_ran, started
from zhongjing.backends.kubernetes.workloads import HEAD, WORKER, end_pod, is_ready, of_component, pod_labels
from zhongjing.backends.ray_jobs import RayJobsBackend, TokenRefusedError
from zhongjing.codes import pods as codes
from zhongjing.codes.cluster import RAY_TOKEN_REFUSED
from zhongjing.config.release import ReleaseConfig
from zhongjing.errors import BackendError, BackendUnavailableError, ZhongjingError
from zhongjing.pipeline.backend import (
    ForeignJobError,
    ImpossibleJobError,
    JobDescription,
    JobRequest,
    JobState,
)
from zhongjing.pipeline.repeats import Repeats

logger = logging.getLogger(__name__)

REQUEST_SECONDS = 8.0  # a submission takes 0.3 s, a busy head some seconds
EXPLAIN_SECONDS = 10.0  # between two looks at why pods are not there

T = TypeVar("T")


class ClusterBackend:
    """Jobs on the Ray of a release. Safe to use from several threads.

    Args:
        capacity: sees to worker pods; none: one of its own.
        address: of the Jobs API; none: the service of the release.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        api: KubeApi,
        release: ReleaseConfig,
        *,
        capacity: Capacity | None = None,
        address: str | None = None,
        package: str = "jobs",
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._api = api
        self._release = release
        self.capacity = capacity or Capacity(api, release, clock=clock, in_use=self._is_in_use)
        self._address = address or release.ray_address
        self._package = package
        self._clock = clock
        self._explainer = Explainer(api, release, components=(HEAD, WORKER), clock=clock)
        self._hangs = Hangs(api, release)
        self._leftovers = Leftovers(lambda path: self._ask(lambda ray: ray.query(path)))
        self._told: tuple[float, str, list[Finding]] = (float("-inf"), "", [])
        self._lacks: tuple[float, str, str | None] = (float("-inf"), "", None)
        self._ray: RayJobsBackend | None = None
        self._repeats = Repeats(logger)
        self._lock = threading.Lock()

    # Backend

    def submit(self, job: JobRequest) -> None:
        """Submits, or adopts a job of the same id and spec hash, once the head is there."""
        with _waits():
            there = self.capacity.ensure_head(_demand(job), job.submission_id)
            # Now, while no job runs: workers that come later have never run anything.
            self._clear(there.pods)
            self._require(there)
        self._ask(lambda ray: ray.submit(job))

    def request_workers(self, job: JobRequest) -> None:
        """Asks for the worker pods of a job that is prepared."""
        with _waits():
            self._require(self.capacity.ensure_workers(_demand(job)))

    def _require(self, there: Availability) -> None:
        if not there.ready:
            raise self._explained(_starting(there.message))

    def describe(self, submission_id: str) -> JobDescription:
        """State of a job; UNKNOWN, and perhaps lost, if this head has never heard of it, or there is none."""
        try:
            job = self._ask(lambda ray: ray.describe(submission_id))
        except BackendUnavailableError as error:
            lost = all(never_ran(pod) for pod in self._left_without_head(error))
            return JobDescription(submission_id=submission_id, state=JobState.UNKNOWN, lost=lost)
        if job.state is JobState.UNKNOWN and self._is_lost():
            return job.model_copy(update={"lost": True})
        if job.state is JobState.RUNNING:
            lacks, remedy = self._lacking()
            return job.model_copy(update={"lacks": lacks, "remedy": remedy})
        return job

    def _lacking(self) -> tuple[str, str | None]:
        """Which workers do not serve, by their pods, and what to do; looked at every ten seconds.

        Ray finds out about a node that is gone within a minute, and the collective that waits for it may wait
        much longer; Kubernetes takes a node for lost after 40 s (kube-controller-manager,
        --node-monitor-grace-period) and its pods are unready from then on.
        """
        now = time.monotonic()
        if now - self._lacks[0] >= EXPLAIN_SECONDS:
            found: tuple[str, str | None] = ("", None)
            try:
                if short := self.capacity.short():
                    error = self._explained(_starting(short))
                    found = (error.message, error.remedy)
            except ZhongjingError as error:
                logger.info("the worker pods cannot be looked at: %s", error)
            self._lacks = (now, *found)
        return self._lacks[1:]

    def stop(self, submission_id: str) -> None:
        """Ends a job at once. What does not heed Ray ends with its pod, before the next submission."""
        with _waits():
            self._hangs.killed(submission_id)
        try:
            self._ask(lambda ray: ray.stop(submission_id))
        except BackendUnavailableError as error:
            self._left_without_head(error)  # then there is nothing to end

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        """Lines of the driver's log, following until the job ends."""
        self._ask(lambda ray: ray.describe(submission_id))  # follows a changed token
        yield from self._jobs().tail_logs(submission_id)

    def jobs(self) -> list[JobDescription]:
        """All jobs that Ray knows, ended ones too; none without a head."""
        try:
            return self._ask(lambda ray: ray.jobs())
        except BackendUnavailableError as error:
            self._left_without_head(error)
            return []

    def stacks(self, submission_id: str) -> str:
        """Where the workers of a job are that hangs; never raises.

        That it hangs is noted: if it has to be ended by force, its pods are replaced.
        """
        try:
            self._hangs.note(submission_id)
        except ZhongjingError as error:
            logger.warning("that %s hangs could not be noted: %s", submission_id, error)
        try:
            self._ask(lambda ray: ray.describe(submission_id))  # takes up a token that has changed
            return self._jobs().stacks(submission_id)
        except ZhongjingError as error:
            return f"the workers of {submission_id} could not be listed: {error}\n"

    # Pods

    def _clear(self, pods: Sequence[Object]) -> None:
        """Sees to it that nothing of an earlier attempt is left where the next one will run."""
        heads = [pod for pod in of_component(pods, HEAD) if is_ready(pod)]
        workers = of_component(pods, WORKER)
        if not heads:
            return
        hung = self._hangs.clear(workers)  # what was noted is forgotten, where no pod is left of it
        if hung:
            raise _replaced(hung, "an attempt hung there")
        if not workers:
            return
        coming, going = self._leftovers.look(heads[0], workers, self._clock())
        for pod in going:
            end_pod(self._api, pod, END_SECONDS)
        if going:
            raise _replaced(going, "processes of an earlier attempt may be there")
        if coming:
            raise _starting(f"{_names(coming)}: what an earlier attempt left there is ending")

    def _explained(self, error: BackendUnavailableError) -> BackendUnavailableError:
        """The error with what keeps Ray's pods, and the code and the remedy of the gravest of it."""
        now = time.monotonic()
        found_at, said, findings = self._told
        # Another trouble has other causes: those of before may be over.
        if now - found_at >= EXPLAIN_SECONDS or said != error.message:
            findings = self._explainer.findings()
            self._told = (now, error.message, findings)
        if not findings:
            return error
        # What is on its way is no trouble.
        grave = next((each for each in findings if each.code is not codes.POD_STARTING), None)
        return BackendUnavailableError(
            f"{error.message}; {sentence(findings)}",
            code=grave.code if grave is not None else codes.WORKERS_STARTING,
            where=error.where,
            remedy=grave.remedy if grave is not None else None,
        )

    def _left_without_head(self, error: BackendUnavailableError) -> list[Object]:
        """The worker pods that are there although no head is: whatever ran in one is over.

        Raises:
            BackendUnavailableError: the error, explained: a head may run, or what there is cannot be seen.
        """
        if error.code is RAY_TOKEN_REFUSED:
            raise error
        try:
            pods = self._pods()
            if all(never_ran(pod) for pod in of_component(pods, HEAD)):
                return of_component(pods, WORKER)
            explained = self._explained(error)
        except ZhongjingError as other:
            self._note("the pods of Ray", other)
            raise error from None
        raise explained from None

    def _pods(self) -> list[Object]:
        return self._api.find(PODS, labels=pod_labels(self._release, HEAD, WORKER)).items

    def _is_in_use(self, preparing: str | None = None) -> bool:
        """Whether a job may use workers; True where that cannot be told.

        Of a job that prepares its driver does not; tasks that it gave to workers do.
        """
        try:
            try:
                listed = self._ask(lambda ray: ray.query("/api/jobs/"))
                alive = [job for job in listed if job.get("status") in ("PENDING", "RUNNING")]
                if preparing is None or any(job.get("submission_id") != preparing for job in alive):
                    return bool(alive)
                return bool(alive) and self._leftovers.tasks_on_workers()
            except BackendUnavailableError as error:
                self._left_without_head(error)
                return False
        except ZhongjingError as error:
            self._note("the use of Ray", error)
            return True

    def _is_lost(self) -> bool:
        """Whether no process can be left of a job that the head does not know.

        Its driver ran in the head's container, its workers in theirs. A container that is younger than the
        head's has never run anything of an earlier head.
        """
        try:
            pods = self._pods()
        except ZhongjingError as error:
            self._note("the pods of Ray", error)
            return False
        heads = [pod for pod in of_component(pods, HEAD) if started(pod)]
        if len(heads) != 1 or not is_ready(heads[0]):
            return False
        born = started(heads[0])
        return all(started(pod) > born or never_ran(pod) for pod in of_component(pods, WORKER))

    def _note(self, subject: str, error: ZhongjingError) -> None:
        self._repeats.say(subject, f"cannot be seen: {error.message}", logging.INFO)

    # Ray

    def _jobs(self, *, renew: bool = False) -> RayJobsBackend:
        """The Jobs API, with the token of the Secret, which is read when it is first needed or to be renewed.

        It is read through the API, not from a mounted file: a kubelet brings a change up to two minutes late.

        Raises:
            BackendUnavailableError: there is no token (yet).
        """
        with self._lock, _waits():
            if self._ray is None or renew:
                secret = self._release.ray.token_secret
                token = (read_secret(self._api, secret) or {}).get(TOKEN_KEY, "").strip()
                if not token:
                    message, where = f"there is no {TOKEN_KEY} in it", f"secret/{secret}"
                    raise BackendUnavailableError(message, code=codes.SECRET_INCOMPLETE, where=where)
                self._ray = RayJobsBackend(
                    self._address, token, package=self._package, timeout=REQUEST_SECONDS
                )
            return self._ray

    def _ask(self, question: Callable[[RayJobsBackend], T]) -> T:
        """Asks Ray, a second time with the token read anew.

        Raises:
            BackendUnavailableError: no answer, or another token.
        """
        with suppress(TokenRefusedError):
            return question(self._jobs())
        try:
            return question(self._jobs(renew=True))
        except TokenRefusedError as error:
            # Ray's pods may not have been rolled yet, or read a Secret that was changed after they started.
            message = f"Ray does not take the token of secret/{self._release.ray.token_secret}"
            raise BackendUnavailableError(message, code=RAY_TOKEN_REFUSED, where=error.where) from None


@contextmanager
def _waits() -> Iterator[None]:
    """What Kubernetes refuses or does not answer is waited out: no stage fails for it."""
    try:
        yield
    except (ImpossibleJobError, ForeignJobError, BackendUnavailableError):
        raise
    except BackendError as error:
        raise BackendUnavailableError(
            error.message, code=error.code, where=error.where, remedy=error.remedy
        ) from error


def _demand(job: JobRequest) -> Demand:
    return Demand(job.stage, job.workers, job.resources)


def _starting(message: str) -> BackendUnavailableError:
    return BackendUnavailableError(message, code=codes.WORKERS_STARTING)


def _replaced(pods: Sequence[Object], why: str) -> BackendUnavailableError:
    message = f"{_names(pods)}: replaced, because {why}"
    logger.warning("%s", message)
    return _starting(message)


def _names(pods: Sequence[Object]) -> str:
    return ", ".join(str(pod["metadata"]["name"]) for pod in pods)
