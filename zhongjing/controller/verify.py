"""``python -m zhongjing.controller.verify --config release.yaml``: what ``helm test`` runs in the cluster.

Every check is a line, ``fine`` or ``failed`` with its remedy. The exit code is 0 if all are fine, else 1.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from zhongjing.backends.kubernetes.api import connect
from zhongjing.backends.kubernetes.diagnosis import S3, Explainer
from zhongjing.backends.kubernetes.pod_diagnosis import Finding
from zhongjing.backends.kubernetes.workloads import HEAD
from zhongjing.backends.ray_jobs import RayJobsBackend, TokenRefusedError
from zhongjing.codes.ray import RAY_REFUSED, RAY_UNREACHABLE
from zhongjing.config.release import ReleaseConfig, load_release
from zhongjing.errors import BackendError, BackendUnavailableError, ZhongjingError
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.probe import try_object

TOKEN_FILE = Path("/etc/zhongjing/ray/auth_token")
PATIENCE = 120.0  # seconds for a head that is still starting
POLL_SECONDS = 1.0
PROBE_SECONDS = 3.0  # a policy drops packets: no answer says that a port is closed
GCS_PORT = 6379
LOG_LINES = 40

# Keys of the job's metadata: the release that it checks, and what its worker needs.
VERIFIES, CPUS, GPUS = "verifies", "cpus", "gpus"

_MARK = "zhongjing.verify "  # before the line that the job ends with

T = TypeVar("T")


class Verification:
    """The checks of one release.

    Args:
        release: what was installed.
        address: of the Jobs API.
        token: of Ray.
        seconds: for everything together.
        tell: takes each line.
        findings: what keeps the release's pods.
        closed: host and port that the release's policies close to this pod; None: it has no policies.
        python: interpreter of the job, in the image of the Ray pods.
    """

    def __init__(
        self,
        release: ReleaseConfig,
        address: str,
        *,
        token: str,
        seconds: float,
        tell: Callable[[str], None],
        findings: Callable[[], Sequence[Finding]] = tuple,
        closed: tuple[str, int] | None = None,
        python: str = "python",
    ) -> None:
        self._release = release
        self._jobs = RayJobsBackend(address, token, python=python)
        self._deadline = time.monotonic() + seconds
        self._tell = tell
        self._findings = findings
        self._closed = closed

    def run(self, zero2: str) -> bool:
        """Runs all checks, also after one has failed; whether all are fine.

        Args:
            zero2: whether to train a step too: true, false, or auto: if GPUs are there and free.
        """
        checks: list[tuple[str, Callable[[], str]]] = [
            ("ray token", self.ray),
            ("s3 access", self.objects),
            ("s3 conditions", self.conditions),
        ]
        good = [self._check(name, check) for name, check in checks]
        if self._closed is not None and good[0]:
            good.append(self._check("network policy", self.policies))
        for finding in () if all(good) else self._findings():
            self._tell(f"why        {finding} [{finding.code}]")
            self._tell(f"           remedy: {finding.remedy}")
        if zero2 == "false":
            self._tell("not tried  zero-2: --zero2=false")
        elif not good[0]:
            self._tell("not tried  zero-2: Ray does not answer")
            good.append(zero2 == "auto")
        else:
            good.append(self._check("zero-2", lambda: self.step(zero2 == "true")))
        return all(good)

    def _check(self, name: str, check: Callable[[], str]) -> bool:
        try:
            said = check()
        except ZhongjingError as error:
            where = f"{error.where}: " if error.where else ""
            self._tell(f"failed     {name}: {where}{error.message} [{error.code}]")
            self._tell(f"           remedy: {self._remedy(error)}")
            return False
        not_tried = said.startswith("not tried")
        self._tell(f"{'not tried' if not_tried else 'fine':<10} {name}: {said.removeprefix('not tried: ')}")
        return True

    def _remedy(self, error: ZhongjingError) -> str:
        if isinstance(error, TokenRefusedError):
            secret = self._release.ray.token_secret
            return f"the Secret {secret} is not what Ray was started with: restart the Ray pods"
        if error.code is RAY_UNREACHABLE:
            return "see that the head's pod is ready, and that a NetworkPolicy lets this pod reach it"
        return error.remedy

    # Ray

    def ray(self) -> str:
        """The Jobs API answers with the token, and refuses requests without it."""
        address = self._jobs.address
        self._patiently(self._jobs.jobs, min(self._deadline, time.monotonic() + PATIENCE))
        try:
            RayJobsBackend(address, None).jobs()
        except TokenRefusedError:
            return f"{address} answers with the token, and refuses without"
        raise BackendError(
            "Ray answers without a token: anyone who can reach it can run code",
            code=RAY_REFUSED,
            where=address,
            remedy="start Ray with RAY_AUTH_MODE=token, as the chart does: see ray.env of its values",
        )

    def _patiently(self, ask: Callable[[], T], until: float) -> T:
        """The answer, asked for again while there is none."""
        while True:
            try:
                return ask()
            except BackendUnavailableError:
                if time.monotonic() > until:
                    raise
            time.sleep(POLL_SECONDS)

    def policies(self) -> str:
        """Whether the cluster's network enforces policies; this pod is a probe: Ray's GCS is closed to it."""
        assert self._closed is not None
        host, port = self._closed
        try:
            with socket.create_connection((host, port), timeout=PROBE_SECONDS):
                return f"not tried: this network does not enforce policies: {host}:{port} should be closed"
        except OSError:
            return f"enforced: {host}:{port} is closed to this pod"

    def resources(self) -> tuple[float, float]:
        """The most CPUs that a live node has, and the GPUs of all."""
        nodes = self._jobs.query("/api/v0/nodes?detail=1")["data"]["result"]["result"]
        totals = [node.get("resources_total") or {} for node in nodes if node.get("state") == "ALIVE"]
        cpus = max((float(each.get("CPU", 0.0)) for each in totals), default=0.0)
        return cpus, sum(float(each.get("GPU", 0.0)) for each in totals)

    def busy(self) -> str | None:
        """A job that is not over, if there is one; a driver that was started by hand counts."""
        for job in self._jobs.query("/api/jobs/"):
            if job.get("status") in ("PENDING", "RUNNING"):
                return str(job.get("submission_id") or job.get("job_id"))
        return None

    def step(self, must: bool) -> str:
        """One optimizer step under ZeRO-2 by a job, on a GPU where the release has any.

        Args:
            must: also where no worker is up, which the controller then starts, and while something else runs.
        """
        cpus, gpus = self.resources()
        if not must:
            if gpus < 1:
                return "not tried: no worker with a GPU is up (--zero2=true tries it on a CPU)"
            running = self.busy()
            if running is not None:
                return f"not tried: {running} has the cluster"
        grouped = any(group.gpus for group in self._release.ray.groups)
        asked = {CPUS: "1", GPUS: "1" if gpus >= 1 or grouped else "0"}
        name = f"verify-{uuid.uuid4().hex[:8]}"
        metadata = {"namespace": self._release.namespace, VERIFIES: self._release.release, **asked}
        entry = ["-m", "jobs.verify", "--gpus", asked[GPUS], "--cpus", asked[CPUS]]
        self._patiently(lambda: self._jobs.start(name, entry, metadata), self._deadline)
        began = time.monotonic()
        job = self._end_of(name)
        seconds = time.monotonic() - began
        log = self._log(name)
        if job.state is JobState.SUCCEEDED:
            self._remove(name)
            said = [line for line in log if _MARK in line] or log or [""]
            return f"{said[-1].split(_MARK)[-1]}, {seconds:.0f} s"
        for line in log[-LOG_LINES:]:
            self._tell(f"           | {line}")
        if job.state.is_terminal:
            message = f"{job.state.lower()}: {job.message or job.state}"
            remedy = "the end of its log is above"
        elif job.state is JobState.UNKNOWN:
            message = "is not known to Ray any more"
            remedy = "the head was started again: see why with `kubectl describe pod`, and test again"
        else:
            self._remove(name)
            message = f"was {job.state.lower()} for {seconds:.0f} s"
            remedy = (
                f"see that worker pods are up and free ({cpus:g} CPUs and {gpus:g} GPUs were seen), "
                "or give more time with --timeout"
            )
        raise BackendError(
            f"the job {name} {message}", code=RAY_REFUSED, where=self._jobs.address, remedy=remedy
        )

    def _end_of(self, name: str) -> JobDescription:
        """The job when it has ended, or when the time is up."""
        job = JobDescription(submission_id=name, state=JobState.PENDING)
        while not job.state.is_terminal and time.monotonic() < self._deadline:
            time.sleep(POLL_SECONDS)
            try:
                job = self._jobs.describe(name)
            except BackendUnavailableError:
                continue
            if job.state is JobState.UNKNOWN:
                break
        return job

    def _remove(self, name: str) -> None:
        """Ends the job and deletes it, once Ray's monitor, which polls each second, has seen its end.

        The monitor would else record the deleted job anew, as one that failed.
        """
        self._jobs.stop(name)
        time.sleep(3 * POLL_SECONDS)
        self._jobs.delete(name)

    def _log(self, name: str) -> list[str]:
        try:
            return list(self._jobs.read_log(name))
        except BackendError:
            return []

    # The object store

    def objects(self) -> str:
        """An object is written, read, listed and deleted."""
        return try_object(*self._folder())

    def conditions(self) -> str:
        """A second writer is refused: what decides who completed a stage."""
        store, folder = self._folder()
        store.require_conditional_writes(folder)
        return "a second write with If-None-Match is refused, a stale one with If-Match too"

    def _folder(self) -> tuple[ObjectStore, str]:
        storage = self._release.storage.storage()
        left = max(min(storage.deadline_seconds, self._deadline - time.monotonic()), 1.0)
        store = open_store(storage.model_copy(update={"deadline_seconds": left}))
        root = f"{storage.uri.rstrip('/')}/{self._release.namespace}"
        return store, f"{root}/.verify-{uuid.uuid4().hex[:12]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the checks; returns the exit status: 0 all fine, 1 not."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.ERROR)  # each retry would be a warning

    def tell(line: str) -> None:
        sys.stdout.write(f"{line}\n")
        sys.stdout.flush()

    try:
        release = load_release(options.config)
        token = _token(options.ray_token)
    except ZhongjingError as error:
        tell(f"failed     release: {error}")
        return 1
    address = options.ray_address or release.ray_address
    verification = Verification(
        release,
        address,
        token=token,
        seconds=options.timeout,
        tell=tell,
        findings=lambda: _findings(release),
        closed=(f"{release.ray.service}.{release.namespace}.svc", GCS_PORT) if options.policies else None,
        python=options.python,
    )
    return 0 if verification.run(options.zero2) else 1


def _findings(release: ReleaseConfig) -> Sequence[Finding]:
    """What keeps the release's pods, as far as this pod may know."""
    try:
        return Explainer(connect(namespace=release.namespace), release, components=(HEAD, S3)).findings()
    except ZhongjingError:
        return ()


def _token(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise BackendError(
            f"the token of Ray cannot be read: {error.strerror}",
            code=RAY_REFUSED,
            where=str(file),
            remedy="the controller makes the Secret at its start: see its log",
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Checks an installed release from inside the cluster.")
    parser.add_argument("--config", type=Path, required=True, help="the mounted release.yaml")
    parser.add_argument("--zero2", choices=["auto", "true", "false"], default="auto", help="train a step")
    parser.add_argument("--policies", action="store_true", help="the release has network policies: try one")
    parser.add_argument("--timeout", type=float, default=600.0, help="for everything, in seconds")
    parser.add_argument(
        "--ray-token",
        type=Path,
        default=Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or TOKEN_FILE),
        help="file with the token",
    )
    parser.add_argument("--ray-address", help="of the Jobs API, instead of the release's service")
    parser.add_argument("--python", default="python", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
