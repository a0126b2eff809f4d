"""Runs on this machine, as commands see them: the desired state goes in, the observed status comes out.

Opening a session starts the workdir's supervisor unless one runs. Commands talk to the S3 server directly;
the supervisor is told by touched files that there is something to do.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Self

from zhongjing.backends.attempts import kill, live_log, read_log
from zhongjing.backends.local.attach import attach
from zhongjing.backends.local.machine import DiskWatch
from zhongjing.backends.local.workdir import LOCAL_NAMESPACE, LOCAL_ROOT, Workdir
from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.codes.command import UNKNOWN_PIPELINE
from zhongjing.codes.local import WORKDIR_IN_USE
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError, ConflictError
from zhongjing.pipeline.prepare import changed_under_way, in_progress
from zhongjing.pipeline.records import manifest_in_use, read_desired, read_status, write
from zhongjing.pipeline.state import DesiredState, PipelineStatus, stamp
from zhongjing.storage.credentials import Access
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.objects import open_store
from zhongjing.storage.progress import Progress

logger = logging.getLogger(__name__)

BEAT_SECONDS = 3.0
# Reads of documents are repeated, and must hear soon that the server had to move.
READ_SECONDS = 10.0
_TRIES = 5


class LocalSession:
    """The runs of one workdir. Implements :class:`zhongjing.pipeline.session.Session`."""

    stops_on_interrupt = True

    def __init__(self, workdir: Workdir, *, flags: str, idle_seconds: float | None, package: str) -> None:
        self.workdir = workdir
        self.flags = flags
        self._idle_seconds = idle_seconds
        self._package = package
        self.storage = Storage(uri=LOCAL_ROOT)
        self.namespace = LOCAL_NAMESPACE
        self._disk = DiskWatch(workdir.path)
        self._environment: dict[str, str] | None = None

    @classmethod
    def open(
        cls,
        workdir: Path,
        *,
        start: bool,
        flags: str = "--local",
        idle_seconds: float | None = None,
        package: str = "jobs",
    ) -> LocalSession:
        """Attaches to the supervisor of a workdir.

        Raises:
            BackendError: none runs and ``start`` is False, or it does not start; names its log.
        """
        session = cls(Workdir(workdir), flags=flags, idle_seconds=idle_seconds, package=package)
        session._attach(start=start)
        return session

    # What there is

    @property
    def dashboard_url(self) -> str | None:
        """Address of the Ray dashboard, None while no Ray runs."""
        record = self.workdir.live_record()
        return record.dashboard_url if record is not None else None

    @property
    def dashboard_login(self) -> str | None:
        """How to log in to the dashboard; names the file with the token, never the token."""
        return f"paste the token that is in {self.workdir.token_file}" if self.dashboard_url else None

    def layout(self, pipeline: str) -> Layout:
        """Where the pipeline's objects are."""
        return Layout(LOCAL_ROOT, LOCAL_NAMESPACE, pipeline)

    def pipelines(self) -> list[str]:
        """Names of all pipelines of the workdir, sorted."""
        return [name for name in self.workdir.pipelines() if self.store.exists(self.layout(name).desired)]

    def desired(self, pipeline: str) -> DesiredState | None:
        """The desired state, or None if there is no such pipeline."""
        self.workdir.touch("heartbeat")
        found = read_desired(self._reads, self.layout(pipeline))
        return found.value if found is not None else None

    def status(self, pipeline: str) -> PipelineStatus | None:
        """The observed status, or None if the supervisor has not seen the pipeline yet."""
        self.workdir.touch("heartbeat")
        self._disk.check()
        found = read_status(self._reads, self.layout(pipeline))
        return found.value if found is not None else None

    def progress(self, pipeline: str, stage: Stage) -> Progress | None:
        """Live progress of the stage's current attempt."""
        status = self.status(pipeline)
        key = status.stage(stage).key if status is not None else None
        if key is None:
            return None
        return self._reads.find_record(self.layout(pipeline).stage(stage, key).progress, Progress)

    def manifest(self, pipeline: str, stage: Stage) -> StageManifest | None:
        """The result of a stage that is in use, or None if there is none."""
        return manifest_in_use(self.store, self.layout(pipeline), stage)

    # The desired state

    def apply(self, desired: DesiredState) -> DesiredState:
        """Writes the desired state and wakes the supervisor; returns what was stored."""
        layout = self.layout(desired.pipeline)
        self._refuse_others(desired.pipeline)
        stored = read_desired(self.store, layout)
        if stored is not None:
            there = stored.value
            if there == desired:
                self._wake(desired.pipeline)
                return there
            if there.uid != desired.uid or desired.generation != there.generation + 1:
                raise ConflictError(
                    f"the pipeline {desired.pipeline} was changed by another command",
                    code=CONFLICT,
                    where=layout.desired,
                )
            self._refuse_change(there, desired)
        elif desired.generation != 1:
            raise ConflictError(
                f"the pipeline {desired.pipeline} was removed", code=CONFLICT, where=layout.desired
            )
        # First the sign, then the document: a command that is killed in between leaves a sign of nothing.
        self._wake(desired.pipeline)
        write(self.store, layout.desired, desired, stored.etag if stored is not None else None)
        self._wake(desired.pipeline)
        return desired

    def suspend(self, pipeline: str) -> DesiredState:
        """Has the pipeline stop with a checkpoint; returns at once."""
        return self._set_suspend(pipeline, suspend=True)

    def kill(self, pipeline: str) -> DesiredState:
        """Suspends the pipeline and ends its running attempt now, without another checkpoint."""
        return kill(self, pipeline, self._jobs)

    def resume(self, pipeline: str) -> DesiredState:
        """Has a suspended or failed pipeline go on."""
        self._refuse_others(pipeline)
        return self._set_suspend(pipeline, suspend=False)

    def warm(self) -> None:
        """Lets Ray start already: a run is about to be applied."""
        self.workdir.touch("heartbeat")
        self.workdir.touch("warm")

    def obstacles(self, *, ignored: bool = False) -> list[str]:
        """None: what keeps the supervisor is said by the command that attaches to it."""
        return []

    def snapshot(self) -> contextlib.AbstractContextManager[None]:
        """Every look is a fresh one: the store is on this machine."""
        return contextlib.nullcontext()

    # Logs

    def logs(
        self, pipeline: str, stage: Stage, *, follow: bool = False, attempt: int | None = None
    ) -> Iterator[str]:
        """Lines of the driver's log of an attempt (the latest), live or from the store."""
        jobs = self._jobs()
        return read_log(self, pipeline, stage, attempt, partial(live_log, jobs, follow=follow), past=True)

    # Being there

    @contextlib.contextmanager
    def heartbeat(self) -> Iterator[None]:
        """While entered, the supervisor lives, and is started again should it die."""
        ended = threading.Event()

        def beat() -> None:
            while True:
                self.workdir.touch("heartbeat")
                try:
                    self._attach(start=True)
                except (BackendError, OSError) as error:
                    logger.warning("%s", error)
                if ended.wait(BEAT_SECONDS):
                    return

        thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()

    def close(self) -> None:
        """Ends the session; pipelines go on."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    # The supervisor

    def _attach(self, *, start: bool) -> None:
        attach(self.workdir, start=start, idle_seconds=self._idle_seconds, package=self._package)
        environment = self.workdir.environment()
        if environment != self._environment:
            self._environment = environment
            access = Access.from_environment(environment)
            hasty = self.storage.model_copy(update={"deadline_seconds": READ_SECONDS})
            self._reads = open_store(hasty, access)
            self.store = open_store(self.storage, access)

    def _wake(self, pipeline: str) -> None:
        self.workdir.touch("heartbeat")
        self.workdir.touch(f"pipelines/{pipeline}")

    # One document at a time

    def _refuse_others(self, pipeline: str) -> None:
        for name in self.workdir.pipelines():
            other = self.desired(name) if name != pipeline else None
            if other is not None and in_progress(other, self.status(name)):
                remedy = f"wait for it, stop it (`zhongjing stop {name} --local`), or give another --workdir"
                raise self._in_use(f"the pipeline {name} runs in this workdir", remedy)

    def _refuse_change(self, old: DesiredState, new: DesiredState) -> None:
        status = self.status(old.pipeline)
        changes = changed_under_way(old, new, status) if in_progress(old, status) else []
        if changes:
            name = old.pipeline
            remedy = f"wait for it, or stop it first: `zhongjing stop {name} --local`"
            raise self._in_use(
                f"the pipeline {name} runs with another document ({'; '.join(changes)})", remedy
            )

    def _in_use(self, message: str, remedy: str) -> ConfigError:
        return ConfigError(message, code=WORKDIR_IN_USE, where=str(self.workdir.path), remedy=remedy)

    def _set_suspend(self, pipeline: str, *, suspend: bool) -> DesiredState:
        layout = self.layout(pipeline)
        for _ in range(_TRIES):
            stored = read_desired(self.store, layout)
            if stored is None:
                raise ConfigError(f"there is no pipeline {pipeline!r}", code=UNKNOWN_PIPELINE)
            there = stored.value
            going = in_progress(there, self.status(pipeline))
            if there.suspend == suspend and (suspend or going):
                self._wake(pipeline)
                return there
            now = stamp(time.time())
            update = {"suspend": suspend, "generation": there.generation + 1, "updated_at": now}
            try:
                written = write(self.store, layout.desired, there.model_copy(update=update), stored.etag)
            except ConflictError:
                continue
            self._wake(pipeline)
            return written.value
        raise ConflictError(
            f"the pipeline {pipeline} is being changed by others", code=CONFLICT, where=layout.desired
        )

    def _jobs(self, timeout: float = 30.0) -> RayJobsBackend | None:
        """The Jobs API of the Ray that runs, if one runs. The timeout is that of a request, in seconds."""
        record = self.workdir.live_record()
        if record is None or record.ray is None or record.token_file is None:
            return None
        try:
            token = Path(record.token_file).read_text().strip()
        except OSError:
            return None
        return RayJobsBackend(record.ray.dashboard_url, token, timeout=timeout)
