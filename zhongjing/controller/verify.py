"""``python -m zhongjing.controller.verify --config release.yaml``: what ``helm test`` runs in the cluster.

Every check is a line, ``fine`` or ``failed`` with its remedy. The exit code is 0 if all are fine, else 1.
"""

from __future__ import annotations

import argparse
import http.client
import json
import logging
import os
import shlex
import socket
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zhongjing.backends.kubernetes.api import connect
from zhongjing.backends.kubernetes.explain import S3, Explainer
from zhongjing.backends.kubernetes.findings import Finding
from zhongjing.backends.kubernetes.workloads import HEAD
from zhongjing.codes import Code
from zhongjing.codes import ray as ray_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.release import ReleaseConfig, load_release
from zhongjing.errors import BackendError, BackendUnavailableError, StorageError, ZhongjingError
from zhongjing.storage.artifacts import require_conditional_writes
from zhongjing.storage.objects import open_store

TOKEN_FILE = Path("/etc/zhongjing/ray/auth_token")
PATIENCE = 120.0  # seconds for a head that is still starting
REQUEST_SECONDS = 30.0
POLL_SECONDS = 1.0
PROBE_SECONDS = 3.0  # a policy drops packets: nobody says that a port is closed
GCS_PORT = 6379
LOG_LINES = 40
_ACTIVE = ("PENDING", "RUNNING")

# Keys of the job's metadata: whose cluster it tries, and what its worker needs. The controller starts a pod.
VERIFIES, CPUS, GPUS = "verifies", "cpus", "gpus"


@dataclass(frozen=True, slots=True)
class Resources:
    """What the cluster's worker nodes have, in all."""

    cpus: float
    gpus: float


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
        self._address = address.rstrip("/")
        self._token = token
        self._deadline = time.monotonic() + seconds
        self._tell = tell
        self._findings = findings
        self._closed = closed
        self._python = python
        # Services of the cluster are never behind a proxy.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

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
            self._tell(f"           remedy: {error.remedy}")
            return False
        not_tried = said.startswith("not tried")
        self._tell(f"{'not tried' if not_tried else 'fine':<10} {name}: {said.removeprefix('not tried: ')}")
        return True

    # Ray

    def ray(self) -> str:
        """The Jobs API answers with the token, and to nobody without it."""
        end = min(self._deadline, time.monotonic() + PATIENCE)
        while True:
            try:
                status, body = self._call("GET", "/api/jobs/")
                if status < 500 or time.monotonic() > end:
                    break
            except BackendUnavailableError:
                if time.monotonic() > end:
                    raise
            time.sleep(POLL_SECONDS)
        if status != 200:
            raise self._error(status, body)
        status, _ = self._call("GET", "/api/jobs/", token="")
        if status not in (401, 403):
            raise BackendError(
                f"Ray answers without a token (HTTP {status}): whoever reaches it may run code",
                code=ray_codes.RAY_REFUSED,
                where=self._address,
                remedy="start Ray with RAY_AUTH_MODE=token, as the chart does: see ray.env of its values",
            )
        return f"{self._address} answers with the token, and refuses without"

    def policies(self) -> str:
        """Whether the cluster's network enforces policies; this pod is a probe: Ray's GCS is closed to it."""
        assert self._closed is not None
        host, port = self._closed
        try:
            with socket.create_connection((host, port), timeout=PROBE_SECONDS):
                return (
                    f"not tried: this network does not enforce policies, {host}:{port} should be closed here"
                )
        except OSError:
            return f"enforced: {host}:{port} is closed to this pod"

    def resources(self) -> Resources:
        """What the nodes that live have in all."""
        status, body = self._call("GET", "/api/v0/nodes?detail=1")
        if status != 200:
            raise self._error(status, body)
        nodes = json.loads(body)["data"]["result"]["result"]
        totals = [node.get("resources_total") or {} for node in nodes if node.get("state") == "ALIVE"]
        return Resources(
            cpus=max((float(each.get("CPU", 0.0)) for each in totals), default=0.0),
            gpus=sum(float(each.get("GPU", 0.0)) for each in totals),
        )

    def busy(self) -> str | None:
        """A job that is not over, if there is one."""
        status, body = self._call("GET", "/api/jobs/")
        if status != 200:
            raise self._error(status, body)
        for job in json.loads(body):
            if job.get("status") in _ACTIVE:
                return str(job.get("submission_id") or job.get("job_id"))
        return None

    def step(self, must: bool) -> str:
        """One optimizer step under ZeRO-2 by a job, on a GPU where the release has any.

        Args:
            must: also where no worker is up, which the controller then starts, and while something else runs.
        """
        there = self.resources()
        if not must:
            if there.gpus < 1:
                return "not tried: no worker with a GPU is up (--zero2=true tries it on a CPU)"
            running = self.busy()
            if running is not None:
                return f"not tried: {running} has the cluster"
        grouped = any(group.gpus for group in self._release.ray.groups)
        asked = {CPUS: "1", GPUS: "1" if there.gpus >= 1 or grouped else "0"}
        name = f"verify-{uuid.uuid4().hex[:8]}"
        entry = [self._python, "-m", "jobs.verify", "--gpus", asked[GPUS], "--cpus", asked[CPUS]]
        self._submit(name, shlex.join(entry), asked)
        began = time.monotonic()
        state, message = "PENDING", ""
        while state in _ACTIVE and time.monotonic() < self._deadline:
            time.sleep(POLL_SECONDS)
            status, body = self._call("GET", f"/api/jobs/{name}")
            if status >= 500:
                continue
            if status != 200:
                raise self._error(status, body)
            details: dict[str, Any] = json.loads(body)
            state, message = str(details.get("status")), str(details.get("message") or "")
        seconds = time.monotonic() - began
        if state == "SUCCEEDED":
            last = self._log(name)[-1:] or [""]
            self._forget(name)
            return f"{last[0].split('zhongjing.verify ')[-1]}, {seconds:.0f} s"
        for line in self._log(name)[-LOG_LINES:]:
            self._tell(f"           | {line}")
        if state in _ACTIVE:
            self._forget(name)
            raise BackendError(
                f"the job {name} was {state.lower()} for {seconds:.0f} s",
                code=ray_codes.RAY_REFUSED,
                where=self._address,
                remedy=f"see that worker pods are up and free ({there.cpus:g} CPUs and {there.gpus:g} GPUs "
                "were seen), or give more time with --timeout",
            )
        first = (message.strip().splitlines() or [state])[0]
        raise BackendError(
            f"the job {name} {state.lower()}: {first}",
            code=ray_codes.RAY_REFUSED,
            where=self._address,
            remedy="the end of its log stands above",
        )

    def _submit(self, name: str, entrypoint: str, asked: Mapping[str, str]) -> None:
        metadata = {"namespace": self._release.namespace, VERIFIES: self._release.release, **asked}
        body = {
            "entrypoint": entrypoint,
            "submission_id": name,
            "entrypoint_num_cpus": 0,
            "metadata": metadata,
        }
        status, answer = self._call("POST", "/api/jobs/", body)
        while status >= 500 and "No available agent" in answer and time.monotonic() < self._deadline:
            time.sleep(POLL_SECONDS)
            status, answer = self._call("POST", "/api/jobs/", body)
        if status != 200:
            raise self._error(status, answer)

    def _log(self, name: str) -> list[str]:
        status, body = self._call("GET", f"/api/jobs/{name}/logs")
        return str(json.loads(body).get("logs") or "").splitlines() if status == 200 else []

    def _forget(self, name: str) -> None:
        """Ends a job, and removes it from Ray's list where it is over."""
        self._call("POST", f"/api/jobs/{name}/stop", {})
        self._call("DELETE", f"/api/jobs/{name}")

    def _call(self, method: str, path: str, body: object = None, token: str | None = None) -> tuple[int, str]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._address + path, data=data, method=method)  # noqa: S310
        request.add_header("Content-Type", "application/json")
        token = self._token if token is None else token
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            try:
                answer = self._opener.open(request, timeout=REQUEST_SECONDS)
            except urllib.error.HTTPError as error:
                answer = error  # an answer like any other
            with answer:
                return int(answer.status), answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise BackendUnavailableError(
                f"Ray does not answer: {getattr(error, 'reason', error)}",
                code=ray_codes.RAY_UNREACHABLE,
                where=self._address,
                remedy="see that the head's pod is ready, and that a NetworkPolicy lets this pod reach it",
            ) from None  # the request, and with it the token, would stand in the trace

    def _error(self, status: int, body: str) -> BackendError:
        if status in (401, 403):
            return BackendError(
                "Ray refuses the token",
                code=ray_codes.RAY_REFUSED,
                where=self._address,
                remedy=f"the Secret {self._release.ray.token_secret} is not what Ray was started with: "
                "restart the Ray pods",
            )
        lines = body.strip().splitlines() or [""]
        return BackendError(
            f"Ray answers {status}: {lines[-1][:300]}", code=ray_codes.RAY_REFUSED, where=self._address
        )

    # The object store

    def objects(self) -> str:
        """An object is written, read, listed and deleted."""
        store, folder = self._folder()
        uri, data = f"{folder}/object", os.urandom(1024)
        began = time.monotonic()
        store.put(uri, data)
        try:
            if store.get(uri) != data:
                raise _wrong("other bytes are read than were written", storage_codes.DAMAGED_OBJECT, uri)
            if [info.uri for info in store.list(folder)] != [uri]:
                raise _wrong("an object that was written is not listed", storage_codes.STORAGE_REFUSED, uri)
        finally:
            store.delete(uri)
        if store.exists(uri):
            raise _wrong("a deleted object is still there", storage_codes.STORAGE_REFUSED, uri)
        milliseconds = (time.monotonic() - began) / 6 * 1000
        at = f"{self._release.storage.uri} at {store.connection.name}"
        return f"{at}: write, read, list and delete, {milliseconds:.0f} ms a request"

    def conditions(self) -> str:
        """A second writer is refused: what decides who completed a stage."""
        store, folder = self._folder()
        require_conditional_writes(store, folder)
        return "a second write with If-None-Match is refused, a stale one with If-Match too"

    def _folder(self) -> tuple[Any, str]:
        storage = self._release.storage.storage()
        left = max(min(storage.deadline_seconds, self._deadline - time.monotonic()), 1.0)
        store = open_store(storage.model_copy(update={"deadline_seconds": left}))
        root = f"{storage.uri.rstrip('/')}/{self._release.namespace}"
        return store, f"{root}/.verify-{uuid.uuid4().hex[:12]}"


def _wrong(message: str, code: Code, uri: str) -> StorageError:
    return StorageError(message, code=code, where=uri)


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
            code=ray_codes.RAY_REFUSED,
            where=str(file),
            remedy="the controller makes the Secret at its start: see its log",
        ) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Checks an installed release from inside the cluster.")
    parser.add_argument(
        "--config", "--release", type=Path, required=True, help="the mounted release.yaml", dest="config"
    )
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
