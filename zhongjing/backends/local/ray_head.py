"""A Ray head of one's own on this machine: loopback, free ports, token authentication, dashboard on.

It lives beside any other Ray of the host: it has its own ports, temporary folder, home and token, it is never
found by ``address="auto"`` of other programs, and ``ray stop``, which ends every Ray of the user, is never
called. Its processes carry a mark in their environment, and are ended by it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import psutil

from zhongjing.backends.local import fork_client
from zhongjing.backends.local.fork_server import padding
from zhongjing.backends.local.machine import gpus
from zhongjing.backends.local.processes import (
    MARK_VARIABLE,
    ProcessRecord,
    end_marked,
    free_ports,
    is_listening,
    is_uploading,
    marked,
    python_path,
    record,
)
from zhongjing.backends.local.temporary import TemporaryFolders
from zhongjing.backends.ray_jobs import ATTEMPT_VARIABLE, RayJobsBackend
from zhongjing.codes.ray import RAY_FAILED
from zhongjing.errors import BackendError
from zhongjing.storage.files import write_private
from zhongjing.storage.manifest import Record

logger = logging.getLogger(__name__)

READY_SECONDS = 120.0  # a healthy start takes 6 to 10 seconds on two cores
OBJECT_STORE_BYTES = 200 * 2**20  # stages pass no data through it


class RayRecord(Record):
    """A running head, as the supervisor's record holds it. No secrets."""

    process: ProcessRecord
    gcs_port: int
    dashboard_port: int
    agent_port: int
    cpus: int
    temporary: str

    @property
    def dashboard_url(self) -> str:
        """Address of the dashboard."""
        return f"http://127.0.0.1:{self.dashboard_port}"

    @property
    def address(self) -> str:
        """Address for ``ray.init``."""
        return f"127.0.0.1:{self.gcs_port}"


class RayHead:
    """Starts, watches and ends a head.

    Args:
        folder: for its token, logs and, where paths are short enough, its sockets.
        environment: what jobs need on top of this process's environment (S3 endpoint and credentials).
        preload: module whose imports processes of jobs are forked with; None starts each from nothing.
    """

    def __init__(
        self, folder: Path, environment: Mapping[str, str] | None = None, *, preload: str | None = None
    ) -> None:
        self.folder = folder.resolve()
        self.token_file = self.folder / "ray-token"  # mode 0600
        self.log = self.folder / "ray.log"  # what `ray start` said
        # A fork cannot use a CUDA device that its parent has looked at, and torch's imports may.
        self._preload = preload if gpus() == 0 else None
        self._environment = dict(environment or {})
        # The same for every supervisor of this folder: what one left behind, the next one finds.
        self.mark = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:16]
        self.record: RayRecord | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._fork_server: subprocess.Popen[bytes] | None = None
        self._temporary = TemporaryFolders(self.folder)

    def set_environment(self, environment: Mapping[str, str]) -> None:
        """What jobs of the next start get: S3 endpoint and credentials."""
        self._environment = dict(environment)

    @property
    def is_running(self) -> bool:
        """Whether the head's process lives."""
        if self._process is not None:
            return self._process.poll() is None
        return self.record is not None and self.record.process.is_alive

    def backend(self, package: str) -> RayJobsBackend:
        """The Jobs API of the running head."""
        assert self.record is not None
        return RayJobsBackend(
            self.record.dashboard_url,
            self._token(),
            python=sys.executable,
            launcher=fork_client.__file__ if self._preload else None,
            cluster=self.record.address,
            package=package,
        )

    def start(self, cpus: int) -> None:
        """Starts the head (anew, if one runs) and waits until jobs can be submitted.

        Raises:
            BackendError: it did not become ready; names its log.
        """
        self.stop(spare_uploads=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(3):
            if self._launch(cpus):
                return
            self.stop(spare_uploads=True)
        raise BackendError(
            f"Ray did not start:\n{self._tail()}",
            code=RAY_FAILED,
            where=str(self.log),
            remedy="see the log; a starved machine or a full disk are the usual reasons",
        )

    def adopt(self, known: RayRecord) -> bool:
        """Takes over a head that an earlier supervisor left behind; False (and it is ended) if it is dead."""
        self.record = known
        if known.process.is_alive and self._is_ready():
            return True
        self.stop()
        return False

    def stop(self, *, spare_uploads: bool = False) -> None:
        """Ends the head with every job and worker on it, and removes its temporary folder.

        Finds also what an earlier supervisor of this folder left behind. Nothing that Ray holds is worth
        waiting for: results and checkpoints are in the object store.

        Args:
            spare_uploads: let a checkpoint that is on its way get there: the next attempt goes on from it.
        """
        ended = end_marked(self.mark, grace=1.0, spare=is_uploading if spare_uploads else None)
        for process in (self._process, self._fork_server):
            if process is not None:
                process.wait()
        if ended:
            logger.info("ended Ray (%d processes)", ended)
        self._temporary.remove()
        self.record = None
        self._process = self._fork_server = None

    @property
    def is_gone(self) -> bool:
        """Whether no process is left of any head of this folder; uploads of checkpoints do not count."""
        return not any(not is_uploading(process) for process in marked(self.mark))

    def attempt_processes(self, belongs: Callable[[str], bool]) -> list[psutil.Process]:
        """Processes of attempts, by their submission ids: the job, its workers and what these started."""
        return marked(self.mark, lambda names: ATTEMPT_VARIABLE in names and belongs(names[ATTEMPT_VARIABLE]))

    def _is_ready(self) -> bool:
        """The Jobs API answers, and the agent that runs what is submitted listens."""
        assert self.record is not None
        if not is_listening(self.record.agent_port):
            return False
        try:
            return self.backend("jobs").is_ready()
        except BackendError:
            return False

    def _token(self) -> str:
        if not self.token_file.exists():
            write_private(self.token_file, secrets.token_hex(32))
        return self.token_file.read_text().strip()

    def _launch(self, cpus: int) -> bool:
        self._token()
        self._temporary.make()
        temporary = self._temporary.ray
        gcs, dashboard, client, agent, agent_grpc = free_ports(5)
        command = [
            *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head"),
            *("--block", "--disable-usage-stats", "--no-monitor", "--log-style=record", "--log-color=false"),
            *("--node-ip-address=127.0.0.1", f"--port={gcs}", "--include-dashboard=true"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"),
            *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *(f"--ray-client-server-port={client}", f"--temp-dir={temporary}"),
            *(f"--num-cpus={cpus}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
        ]
        started = time.monotonic()
        if self._preload is not None:
            self._start_fork_server(self._preload)
        self._process = self._spawn(command, self.log)
        self.record = RayRecord(
            process=record(self._process.pid),
            gcs_port=gcs,
            dashboard_port=dashboard,
            agent_port=agent,
            cpus=cpus,
            temporary=str(temporary),
        )
        deadline = started + READY_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._is_ready():
                logger.info("Ray is ready after %.1f s", time.monotonic() - started)
                return True
            time.sleep(0.1)
        return False

    def _start_fork_server(self, preload: str) -> None:
        """Starts it beside Ray: it is ready when the first job is, and ends with Ray by the mark."""
        module = "zhongjing.backends.local.fork_server"
        command = [sys.executable, "-m", module, str(self._fork_socket), preload]
        self._fork_server = self._spawn(command, self.folder / "fork-server.log", padding())

    def _spawn(
        self, command: list[str], log: Path, before: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a process in the folder of jobs; ``before`` begins its environment."""
        folder = self.folder / "jobs"
        folder.mkdir(exist_ok=True)
        with log.open("wb") as file:
            return subprocess.Popen(
                command,
                env={**(before or {}), **self._ray_environment()},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def _fork_socket(self) -> Path:
        return self._temporary.temporary / "fork-server"

    def _ray_environment(self) -> dict[str, str]:
        home = self.folder / "home"
        home.mkdir(exist_ok=True)
        cache = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        foreign = ("RAY_", "AWS_")  # another cluster's, another store's
        own = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        workers = {fork_client.SERVER_VARIABLE: str(self._fork_socket)} if self._preload is not None else {}
        return {
            **own,
            **self._environment,
            MARK_VARIABLE: self.mark,
            # Ray and others write into the home folder. Models that were downloaded there stay in use.
            "HOME": str(home),
            "HF_HOME": os.environ.get("HF_HOME") or f"{cache}/huggingface",
            **self._temporary.environment(),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            # One machine needs neither the client server nor workers kept in stock.
            "RAY_START_HOOK": "zhongjing.backends.local.fork_client.prepare",
            "RAY_prestart_worker_first_driver": "0",
            "ZHONGJING_SCRATCH": str(self.folder / "scratch"),
            "PYTHONPATH": python_path(),
            **workers,
        }

    def _tail(self, lines: int = 12) -> str:
        with contextlib.suppress(OSError):
            return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
        return ""
