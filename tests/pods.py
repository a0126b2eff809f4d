"""A Ray cluster of two nodes on this machine, each in a mount namespace of its own, as pods are.

The same paths mean different disks on each: home, temporary and scratch folder. All else is read-only. A path
that one process hands to another on the other node leads nowhere there.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

import pytest

from zhongjing.backends.local.processes import MARK_VARIABLE, end_marked, free_ports
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.cli.example import with_examples
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import parse_document, resolve
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError
from zhongjing.pipeline.backend import JobDescription, JobRequest
from zhongjing.pipeline.freeze import freeze
from zhongjing.pipeline.plan import make_plan, make_request
from zhongjing.pipeline.state import DesiredState
from zhongjing.storage.documents import record_bytes
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import StageRequest
from zhongjing.storage.objects import ObjectStore

READY_SECONDS = 120.0
_UNSHARE = ("unshare", "--mount", "--propagation=private", "sh", "-c")
REPOSITORY = Path(__file__).resolve().parents[1]
# One disk for each node under the same path, then everything else is read-only.
_NAMESPACE = """
set -e
mount -t tmpfs -o size=2g,mode=700 pod "$1"
mkdir "$1/home" "$1/tmp" "$1/scratch"
mount --bind / /
mount -o remount,ro,bind /
cd "$1/home"
shift
exec "$@"
"""


def can_isolate() -> bool:
    """Whether this user may make mount namespaces."""
    try:
        tried = subprocess.run(
            [*_UNSHARE, "mount --bind / / && mount -o remount,ro,bind /"],
            capture_output=True,
            check=False,
        )
    except FileNotFoundError:
        return False
    return tried.returncode == 0


class Pods:
    """A head and one worker node.

    Args:
        logs: folder for what the nodes say.
        environment: what jobs need: endpoint and credentials of the store.
        cpus: CPUs of the head and of the worker node.
    """

    def __init__(self, logs: Path, environment: Mapping[str, str], cpus: tuple[int, int] = (1, 1)) -> None:
        if not can_isolate():
            pytest.skip("mount namespaces cannot be made here")
        self.logs = logs
        self.disk = Path(tempfile.mkdtemp(prefix="zj"))  # short: Ray's sockets are below it
        self.mark = secrets.token_hex(8)
        self.token = secrets.token_hex(32)
        self._extra = dict(environment)
        self.processes: list[subprocess.Popen[bytes]] = []
        (self.gcs, self.dashboard, self.client) = free_ports(3)
        self.metrics_ports: dict[str, int] = {}
        self._worker_cpus = cpus[1]
        self._start("head", ["--head", f"--port={self.gcs}", "--include-dashboard=true"], cpus[0])
        self.jobs = RayJobsBackend(f"http://127.0.0.1:{self.dashboard}", self.token, python=sys.executable)
        try:
            self._wait("the head", self._answers)
            self.start_worker()
        except BaseException:
            self.end()
            raise

    def start_worker(self) -> None:
        """Starts the worker node, and waits until it is one; anew, after it has ended."""
        del self.processes[1:]
        self._start("worker", [f"--address=127.0.0.1:{self.gcs}"], self._worker_cpus)
        self._wait("the worker node", lambda: self.nodes() == 2)

    def drain_worker(self) -> subprocess.Popen[bytes]:
        """Ends the worker node as a kubelet does: SIGTERM to its first process, and patience."""
        process = self.processes[1]
        process.send_signal(signal.SIGTERM)
        return process

    def disk_of(self, node: int) -> Path:
        """A node's own disk (0: head), seen from outside."""
        return Path(f"/proc/{self.processes[node].pid}/root{self.disk}")

    def nodes(self) -> int:
        """How many nodes the dashboard counts as alive."""
        status, body = self.jobs._call("GET", "/nodes?view=summary")
        if status != 200:
            return 0
        found = json.loads(body)["data"]["summary"]
        return sum(node["raylet"].get("state") == "ALIVE" for node in found)

    def metrics(self) -> str:
        """What the metrics ports of both nodes serve."""
        served = []
        for port in self.metrics_ports.values():
            with (
                contextlib.suppress(OSError),
                urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer,
            ):
                served.append(answer.read().decode())
        return "\n".join(served)

    def submit(self, request: StageRequest, uri: str) -> None:
        """Submits a stage's job."""
        self.jobs.submit(
            JobRequest(submission_id=request.submission_id, stage=request.stage, request_uri=uri, metadata={})
        )

    def wait_for(self, submission_id: str, seconds: float = 180.0) -> JobDescription:
        """Waits until a job is over."""
        deadline = time.monotonic() + seconds
        while not (job := self.jobs.describe(submission_id)).state.is_terminal:
            assert time.monotonic() < deadline, "\n".join(self.jobs.read_log(submission_id))[-6000:]
            time.sleep(0.2)
        return job

    def log(self, submission_id: str) -> str:
        """A driver's log."""
        return "\n".join(self.jobs.read_log(submission_id))

    def end(self) -> None:
        """Ends both nodes; their disks go with them."""
        end_marked(self.mark, grace=2.0)
        for process in self.processes:
            process.wait()
        shutil.rmtree(self.disk, ignore_errors=True)

    def _answers(self) -> bool:
        try:
            return self.nodes() == 1
        except BackendError:
            return False

    def _wait(self, what: str, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        while not condition():
            ended = [process.args for process in self.processes if process.poll() is not None]
            assert not ended, f"{what} ended: {self._said()}"
            assert time.monotonic() < deadline, f"{what} is not ready: {self._said()}"
            time.sleep(0.1)

    def _said(self) -> str:
        return "\n".join(path.read_text(errors="replace")[-3000:] for path in self.logs.glob("*.log"))

    def _start(self, name: str, arguments: list[str], cpus: int) -> None:
        agent, agent_grpc, metrics = free_ports(3)
        self.metrics_ports[name] = metrics
        command = [
            *(sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--block"),
            *("--disable-usage-stats", "--log-style=record", "--log-color=false", f"--num-cpus={cpus}"),
            *("--node-ip-address=127.0.0.1", "--object-store-memory=100000000"),
            *(f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}"),
            *(f"--metrics-export-port={metrics}", *arguments),
        ]
        if "--head" in arguments:
            command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard}", "--no-monitor"]
            command += [f"--ray-client-server-port={self.client}", f"--temp-dir={self.disk}/tmp/ray"]
        with (self.logs / f"{name}.log").open("wb") as log:
            self.processes.append(self._spawn(command, log))

    def _spawn(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*_UNSHARE, _NAMESPACE, "sh", str(self.disk), *command],
            env=self._environment(),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _environment(self) -> dict[str, str]:
        foreign = ("RAY_", "AWS_", "ZHONGJING_", "XDG_", "HF_")
        environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        return {
            **environment,
            "HOME": f"{self.disk}/home",
            "TMPDIR": f"{self.disk}/tmp",
            "ZHONGJING_SCRATCH": f"{self.disk}/scratch",
            MARK_VARIABLE: self.mark,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
            "RAY_metrics_report_interval_ms": "500",
            "RAY_prestart_worker_first_driver": "0",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
            **self._extra,
        }


class Run:
    """A pipeline's stages as single jobs, asked for by hand.

    Args:
        store: the object store.
        storage: its settings, written into the document.
        document: YAML text.
        folder: for the files of its ``example://`` sources.
    """

    def __init__(self, store: ObjectStore, storage: Storage, document: str, folder: Path) -> None:
        self.store = store
        resolved: TrainingPipeline = resolve(with_examples(parse_document(document, "test"), folder))
        spec = resolved.spec.model_copy(update={"storage": storage})
        self.document = resolved.model_copy(update={"spec": spec})
        self.layout = Layout(storage.uri, self.document.namespace, self.document.name)
        frozen = freeze(store, self.layout, self.document)
        self.desired = DesiredState(
            namespace=self.document.namespace,
            pipeline=self.document.name,
            uid=secrets.token_hex(4),
            generation=1,
            user={},
            document=self.document,
            sources=frozen.sources,
            targets=[stage for stage in Stage if self.document.spec.stages.get(stage) is not None],
            created_at="",
            updated_at="",
        )
        self.plan = make_plan(self.desired)

    def request(self, stage: Stage, attempt: int) -> tuple[StageRequest, str]:
        """A stored request and its URI."""
        identifier = f"{self.desired.submission_prefix}-{stage}-a{attempt}"
        request = make_request(
            self.desired, [], self.plan[stage], self.layout, attempt=attempt, submission_id=identifier
        )
        uri = self.stage_layout(stage).request(attempt)
        self.store.put_once(uri, record_bytes(request))
        return request, uri

    def stage_layout(self, stage: Stage) -> StageLayout:
        """Where a stage's objects are."""
        key = self.plan[stage].key
        assert key is not None
        return self.layout.stage(stage, key)
