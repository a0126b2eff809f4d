"""The controller as a process: settings, services, signals, and the two states of leading and waiting."""

from __future__ import annotations

import argparse
import logging
import secrets
import signal
import socket
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from zhongjing import __version__
from zhongjing.backends.kubernetes.api import connect
from zhongjing.backends.kubernetes.events import Recorder
from zhongjing.backends.kubernetes.lease import DURATION, Election
from zhongjing.backends.kubernetes.ray_backend import ClusterBackend
from zhongjing.backends.kubernetes.secrets import Rollout, prepare_secrets
from zhongjing.backends.kubernetes.trainingpipeline import Pipelines
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.config.commands import Commands
from zhongjing.config.release import ReleaseConfig, load_release
from zhongjing.controller.fencing import RayCluster
from zhongjing.controller.loop import CADENCE, RESYNC_SECONDS, Controller
from zhongjing.controller.metrics import Metrics
from zhongjing.controller.server import HealthServer
from zhongjing.controller.signals import handle_signals
from zhongjing.controller.store import ReleaseStore
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Cadence
from zhongjing.pipeline.repeats import Repeats

logger = logging.getLogger("zhongjing.controller")

STUCK_SECONDS = 300.0  # a pass that takes so long is stuck: listing ten thousand objects takes seconds
_LEASE_SECONDS = 4.0  # of one request for the lease
_PREPARE_SECONDS = 3.0  # between attempts to make the Secrets


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a controller; returns its exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(
        level=options.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        release = load_release(options.config)
        process = ControllerProcess(release, options)
        handle_signals([signal.SIGTERM, signal.SIGINT], process.terminate)
        process.run()
    except ZhongjingError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m zhongjing.controller",
        description="Drives the TrainingPipelines of a namespace on the Ray cluster of its release.",
    )
    parser.add_argument("--config", type=Path, required=True, help="release.yaml of the release")
    parser.add_argument("--port", type=int, default=8080, help="of /healthz, /readyz and /metrics; 0: any")
    parser.add_argument("--context", help="of the kubeconfig, outside the cluster")
    parser.add_argument("--ray-address", help="URL of the Jobs API, outside the cluster")
    parser.add_argument(
        "--ray-token",
        type=Path,
        help="file with the token of a Ray that is not the release's: pods are not looked after then",
    )
    parser.add_argument("--ray-package", default="jobs", help=argparse.SUPPRESS)
    parser.add_argument("--cadence", type=float, default=CADENCE.active, help=argparse.SUPPRESS)
    parser.add_argument("--lease", type=float, default=DURATION, help=argparse.SUPPRESS)
    parser.add_argument("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    return parser


class ControllerProcess:
    """One controller: stands for election, and drives pipelines while it leads."""

    def __init__(self, release: ReleaseConfig, options: argparse.Namespace) -> None:
        self._release = release
        self._options = options
        self._ending = threading.Event()
        self._api = connect(options.context, release.namespace)
        self._identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
        self._election = Election(
            connect(options.context, release.namespace, seconds=_LEASE_SECONDS),
            f"{release.fullname}-controller",
            self._identity,
            duration=options.lease,
        )
        self._metrics = Metrics()
        self._metrics.observe(lambda: self._election.is_leader, lambda: self._api.requests)
        self._loop: Controller | None = None
        self._store: ReleaseStore | None = None
        self._server = HealthServer(
            options.port, healthy=self._unhealthy, ready=self._unready, metrics=self._metrics.registry
        )

    def run(self) -> None:
        """Runs until a signal ends it.

        Raises:
            ZhongjingError: the configuration is wrong.
        """
        logger.info(
            "zhongjing %s, release %s in %s, %s, health on port %d",
            __version__,
            self._release.release,
            self._release.namespace,
            self._identity,
            self._server.port,
        )
        self._server.start()
        try:
            self._prepare()
            self._election.start()
            while not self._ending.is_set():
                if self._election.wait(1.0):
                    self._lead()
        finally:
            self._election.close()
            self._server.close()
            logger.info("stopped")

    def terminate(self) -> None:
        """Ends after the current pass. For any thread."""
        self._ending.set()
        loop = self._loop
        if loop is not None:
            loop.inventory.expire()

    def _prepare(self) -> None:
        """Makes the Secrets that the release's pods wait for, and says what is wrong with those there are."""
        repeats = Repeats(logger)
        while not self._ending.is_set():
            try:
                findings = prepare_secrets(self._api, self._release)
            except ZhongjingError as error:
                repeats.say("the release's Secrets cannot be read", str(error))
                self._metrics.fail()
                self._ending.wait(_PREPARE_SECONDS)
                continue
            for finding in findings:
                logger.error("%s", finding)
                self._metrics.fail()
            return

    def _lead(self) -> None:
        cadence = self._options.cadence
        place = ("-n", self._release.namespace, "--release", self._release.release)
        self._store = ReleaseStore(self._api, self._release)
        controller = Controller(
            Pipelines(self._api),
            self._release,
            self._store,
            self._cluster(),
            may_act=lambda: self._election.is_leader,
            recorder=Recorder(self._api, self._identity),
            metrics=self._metrics,
            policy=Policy(commands=Commands(place, name="zhongjing")),
            cadence=Cadence(active=cadence, waiting=cadence * CADENCE.waiting / CADENCE.active),
            resync_seconds=cadence * RESYNC_SECONDS / CADENCE.active,
        )
        self._loop = controller
        try:
            controller.run(self._ending)
        finally:
            self._loop = None

    def _cluster(self) -> RayCluster:
        options = self._options
        if options.ray_token is not None:
            token = options.ray_token.read_text().strip()
            address = options.ray_address or self._release.ray_address
            return RayCluster(RayJobsBackend(address, token, package=options.ray_package))
        backend = ClusterBackend(
            self._api, self._release, address=options.ray_address, package=options.ray_package
        )
        return RayCluster(backend, backend.capacity, Rollout(self._api, self._release))

    def _unhealthy(self) -> str | None:
        loop = self._loop
        if loop is None or time.monotonic() - loop.beat < STUCK_SECONDS:
            return None
        return f"no pass for {time.monotonic() - loop.beat:.0f} s"

    def _unready(self) -> str | None:
        if self._ending.is_set():
            return "ending"
        if self._store is not None and not self._store.is_ready:
            return "the object store cannot be used yet"
        return None
