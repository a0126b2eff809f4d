"""The supervisor of a workdir: owns its S3 server and its Ray, and drives its pipelines.

``python -m zhongjing.backends.local.supervisor --workdir W``: commands start it. There is
one a workdir (flock). It outlives the command that started it, adopts what a killed predecessor left behind,
and ends itself, Ray and S3 when nothing is active and no command has watched for a while.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import zhongjing
from zhongjing.backends.local.heartbeat import Heartbeat
from zhongjing.backends.local.local_backend import LocalBackend
from zhongjing.backends.local.processes import StartLimit, record
from zhongjing.backends.local.ray_head import RayHead, RayRecord
from zhongjing.backends.local.temporary import clear_scratch
from zhongjing.backends.local.workdir import (
    LOCAL_NAMESPACE,
    LOCAL_ROOT,
    SupervisorRecord,
    Workdir,
)
from zhongjing.codes.storage import S3_SERVER_FAILED
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Storage
from zhongjing.errors import BackendError, ConflictError, StorageError, TransientError, ZhongjingError
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Cadence, Reconciler
from zhongjing.pipeline.repeats import Repeats
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.credentials import Access
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.files import disk_error
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import Failure

logger = logging.getLogger("zhongjing.supervisor")

IDLE_SECONDS = 60.0
TICK = 0.25
S3_RESTARTS = 5  # within S3_WINDOW seconds
S3_WINDOW = 600.0
# How long the loop may be away before clients may take it for hanging, in seconds: between two rounds, in one
# pass over a pipeline (it may start Ray), and while the services start or end.
ROUND_SECONDS = 15.0
PASS_SECONDS = 600.0
SERVICE_SECONDS = 600.0
STORE_SECONDS = 10.0  # how long one request of a pass bears an outage of the store

# On one machine everything is near: jobs start and end in seconds.
POLICY = Policy(
    stop_seconds=180.0,
    hung_stop_seconds=15.0,
    finish_seconds=30.0,
    unknown_seconds=2.0,
    quiet_seconds=8.0,  # progress is written every 5 s at most
    backoff_seconds=2.0,
    max_backoff_seconds=60.0,
)
CADENCE = Cadence(active=0.5, waiting=5.0)


class Supervisor:
    """The services of a workdir and the loop that drives its pipelines."""

    def __init__(self, workdir: Workdir, *, idle_seconds: float, package: str) -> None:
        self.workdir = workdir
        self._idle_seconds = idle_seconds
        self._s3 = EmbeddedS3(workdir.s3)
        imports = f"{package}.preload"  # the module with the imports of a package's jobs, if it has one
        known = importlib.util.find_spec(imports) is not None
        self._head = RayHead(workdir.path, preload=imports if known else None)
        self._backend = LocalBackend(
            self._head, cpus=self._cpus, package=package, on_change=self._write_record
        )
        self._me = record(os.getpid())
        self._ready = False
        self._signal: int | None = None  # that ended this process
        self._error: ZhongjingError | None = None
        self._driven: dict[str, _Driven] = {}
        self._repeats = Repeats(logger)
        self._active: list[str] = []
        self._earlier_ray: RayRecord | None = None
        self._heartbeat = Heartbeat(lambda: workdir.touch("alive"))
        self._store: ObjectStore | None = None
        self._admin: BucketAdmin | None = None
        self._record_lock = threading.Lock()
        self._ending = threading.Event()
        self._moved = threading.Event()
        self._watcher = threading.Thread(target=self._watch_store, name="s3", daemon=True)

    def run(self) -> None:
        """Starts the services, drives pipelines until idle, ends the services.

        Raises:
            ZhongjingError: a service does not start.
        """
        self._heartbeat.start(SERVICE_SECONDS)
        earlier = self.workdir.record()
        self._earlier_ray = earlier.ray if earlier is not None else None
        try:
            self._write_record()
            environment = self.workdir.environment()
            self._s3.start()
            self._use_store()
            self._remove_stale_uploads()
            self._take_over(environment)
            self._ready = True
            self._write_record()
            self._watcher.start()
            self._loop()
        except (ZhongjingError, OSError) as error:
            if isinstance(error, ZhongjingError):
                self._error = error
            else:
                # A disk that is full or read-only, a file where a folder should be: no defect of ours.
                self._error = disk_error(error, Path(os.fsdecode(error.filename or self.workdir.path)))
            with contextlib.suppress(OSError):  # the clients read it, if the disk takes it
                self._write_record()
            if self._error is error:
                raise
            raise self._error from error
        finally:
            # From here nothing may interrupt the clean-up.
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            if self._signal is not None:
                logger.info("ended by signal %d", self._signal)
            self._heartbeat.allow(SERVICE_SECONDS)
            self._ending.set()
            if self._error is None:
                self.workdir.remove_record()  # first: no client shall attach any more
            if self._watcher.is_alive():
                self._watcher.join(10.0)
            self._head.stop()
            clear_scratch(self.workdir.path)
            self._s3.stop()
            self._heartbeat.close()

    # The loop

    def _loop(self) -> None:
        last_active = time.time()
        while not self._ending.is_set():
            self._heartbeat.allow(ROUND_SECONDS)
            self._follow_store()
            self._drive()
            now = time.time()
            self._note_active()
            if self._active:
                last_active = now
            watched = self.workdir.touched("heartbeat")
            if now - max(last_active, watched) > self._idle_seconds and self._leave(watched):
                logger.info("nothing is active and no command watches: ending")
                return
            asked = self.workdir.touched("warm") > now - self._idle_seconds
            # What is active needs Ray soon: it starts while a retry waits for its time.
            if (asked or self._active) and not self._head.is_running:
                self._warm()
            self._ending.wait(TICK)
        if self._error is not None:
            raise self._error

    def _leave(self, watched: float) -> bool:
        """Takes the record away, unless a client came at the last moment.

        A client touches the heartbeat before it reads the record: one that still read it is seen here.
        """
        self.workdir.remove_record()
        if self.workdir.touched("heartbeat") == watched:
            return True
        self._write_record()
        return False

    def _drive(self) -> None:
        """Gives every pipeline whose time has come one pass."""
        for name in self.workdir.pipelines():
            driven = self._driven.get(name)
            if driven is None:
                assert self._store is not None
                layout = Layout(LOCAL_ROOT, LOCAL_NAMESPACE, name)
                reconciler = Reconciler(self._store, layout, self._backend, policy=POLICY, cadence=CADENCE)
                driven = self._driven[name] = _Driven(reconciler)
            touched = self.workdir.touched(f"pipelines/{name}")
            if touched != driven.touched or (driven.due is not None and time.time() >= driven.due):
                driven.touched = touched
                with self._heartbeat.busy(PASS_SECONDS):
                    driven.due = self._pass(name, driven)

    def _note_active(self) -> None:
        """Says in the record which pipelines this process must live for."""
        active = sorted(name for name, driven in self._driven.items() if driven.is_active)
        if active != self._active:
            self._active = active
            self._write_record()

    def _pass(self, name: str, driven: _Driven) -> float | None:
        try:
            wait = driven.reconciler.once(time.time())
            self._repeats.forget(name)
        except ConflictError:
            wait = TICK
        except TransientError as error:
            self._repeats.say(name, str(error))
            wait = 2.0
        except ZhongjingError as error:
            self._repeats.say(name, str(error), logging.ERROR)
            wait = 10.0
        except Exception:
            # One pipeline's surprise must not end the others, nor the services.
            logger.exception("%s: a pass failed", name)
            wait = 10.0
        return None if wait is None else time.time() + wait

    def _warm(self) -> None:
        (self.workdir.path / "warm").unlink(missing_ok=True)
        try:
            with self._heartbeat.busy(PASS_SECONDS):
                self._backend.warm()
        except BackendError as error:
            logger.error("%s", error)  # a submission is told

    def _cpus(self) -> int:
        """Logical CPUs that every wanted stage finds room in, one at a time."""
        documents = [driven.reconciler.document for driven in self._driven.values()]
        return max([os.cpu_count() or 1, *(_needed_cpus(each) for each in documents if each is not None)])

    # The services

    def _use_store(self) -> None:
        environment = self._s3.environment()
        self._head.set_environment(environment)
        access = self._s3.access
        # Passes are repeated anyway, and one that waits long hears late that the server had to move.
        storage = Storage(uri=LOCAL_ROOT, deadline_seconds=STORE_SECONDS)
        self._admin = BucketAdmin(Storage(uri=LOCAL_ROOT), access)
        self._admin.ensure_bucket(LOCAL_ROOT)
        self._store = open_store(storage, access)
        self.workdir.write_environment(environment)

    def _remove_stale_uploads(self) -> None:
        """Parts of uploads that were never ended take space and show in no listing."""
        assert self._admin is not None
        try:
            removed = self._admin.abort_stale_uploads(LOCAL_ROOT)
        except StorageError as error:
            logger.warning("unfinished uploads could not be removed: %s", error)
        else:
            if removed:
                logger.info("removed %d unfinished uploads", removed)

    def _take_over(self, environment: Mapping[str, str]) -> None:
        """Adopts a predecessor's Ray, if its jobs can go on; ends what is left of it otherwise."""
        # Jobs hold the address of the S3 server that they were started with.
        same_store = Access.from_environment(environment) == self._s3.access
        ray = self._earlier_ray
        if ray is not None and same_store and self._head.adopt(ray):
            logger.info("adopted the Ray of process %d", ray.process.pid)
        else:
            self._head.stop(spare_uploads=same_store)
        self._earlier_ray = None

    def _watch_store(self) -> None:
        """Starts the S3 server again when it dies: on its old ports, so that jobs and clients find it."""
        limit = StartLimit("the S3 server", S3_RESTARTS, S3_WINDOW)
        while not self._ending.wait(TICK):
            if self._s3.is_running:
                continue
            if limit.is_reached():
                place = str(self._s3.log)
                self._error = StorageError(limit.message, code=S3_SERVER_FAILED, where=place)
                self._ending.set()
                return
            logger.warning("the S3 server died; it is started again")
            # The threads of a killed process may hold its ports a little longer than the process is there.
            self._ending.wait(1.0)
            try:
                self._s3.start()
            except ZhongjingError as error:
                logger.error("%s", error)
                continue
            if self._s3.access != Access.from_environment(self.workdir.environment()):
                self._moved.set()

    def _follow_store(self) -> None:
        """When the S3 server had to move: jobs hold its old address, so they end with their Ray."""
        if not self._moved.is_set():
            return
        self._moved.clear()
        logger.warning("the S3 server has another address now; Ray is started again")
        with self._heartbeat.busy(SERVICE_SECONDS):
            self._use_store()
            self._driven.clear()
            self._head.stop()
            self._write_record()

    def _write_record(self) -> None:
        with self._record_lock:
            self.workdir.write_record(
                SupervisorRecord(
                    process=self._me,
                    version=zhongjing.__version__,
                    active=self._active,
                    ready=self._ready,
                    failure=Failure.of(self._error) if self._error is not None else None,
                    s3_endpoint=self._s3.endpoint if self._ready else None,
                    token_file=str(self._head.token_file),
                    ray=self._head.record or self._earlier_ray,
                )
            )

    def terminate(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: ends whatever goes on, also the start of a service. A log would take locks."""
        self._signal = number
        raise SystemExit(0)


@dataclass
class _Driven:
    """A pipeline and when its next pass is due (None: when something else is wanted)."""

    reconciler: Reconciler
    touched: float = -1.0
    due: float | None = None

    @property
    def is_active(self) -> bool:
        """Whether the supervisor must live for this pipeline."""
        reconciler = self.reconciler
        return self.due is not None and reconciler.status is not None and not reconciler.is_waiting


def _needed_cpus(document: TrainingPipeline) -> int:
    stages = [document.spec.stages.get(stage) for stage in document.spec.stages.present()]
    needed = [math.ceil(each.workers * each.resources.cpus) for each in stages if each is not None]
    return max(needed, default=1)


def main(arguments: list[str] | None = None) -> int:
    """Runs the supervisor; 0 also when another one is there already."""
    parser = argparse.ArgumentParser(description="Runs the services and pipelines of a workdir.")
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--idle-seconds", type=float, default=IDLE_SECONDS)
    parser.add_argument("--jobs-package", default="jobs")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger("zhongjing").setLevel(logging.INFO)
    workdir = Workdir(options.workdir)
    workdir.prepare()
    lock = workdir.lock()
    if lock is None:
        logger.info("another supervisor is here")
        return 0
    with lock:
        supervisor = Supervisor(workdir, idle_seconds=options.idle_seconds, package=options.jobs_package)
        signal.signal(signal.SIGTERM, supervisor.terminate)
        signal.signal(signal.SIGINT, supervisor.terminate)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            supervisor.run()
        except ZhongjingError as error:
            logger.error("%s", error)
            return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
