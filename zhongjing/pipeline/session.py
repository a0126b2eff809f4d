"""What commands need from a place that pipelines run in: this machine, or a Kubernetes namespace.

A session writes the desired state and reads the status. It never runs a stage itself, so a command may be
killed at any time without harm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import DesiredState, PipelineStatus
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.progress import Progress

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore


class Session(Protocol):
    """A place that pipelines run in. Methods raise StorageError or BackendError when it is unreachable."""

    @property
    def store(self) -> ObjectStore:
        """Artifacts, manifests, progress."""

    @property
    def storage(self) -> Storage:
        """The storage section that documents run here must have."""

    @property
    def namespace(self) -> str:
        """``local``, or the Kubernetes namespace."""

    @property
    def flags(self) -> str:
        """The options by which a command line reaches this place: ``--local``, ``-n train``, or nothing."""

    @property
    def stops_on_interrupt(self) -> bool:
        """Whether Ctrl-C of the command that follows a run stops the run, too."""

    @property
    def dashboard_url(self) -> str | None:
        """Address of the Ray dashboard; None while no Ray runs, or where it takes a port-forward."""

    @property
    def dashboard_login(self) -> str | None:
        """One sentence that says how to log in to the dashboard; never the secret itself."""

    def layout(self, pipeline: str) -> Layout:
        """Where the pipeline's objects are."""

    def pipelines(self) -> list[str]:
        """Names of all pipelines that were ever applied here, sorted."""

    def desired(self, pipeline: str) -> DesiredState | None:
        """The desired state, or None if there is no such pipeline."""

    def status(self, pipeline: str) -> PipelineStatus | None:
        """The status, or None before the first pass."""

    def progress(self, pipeline: str, stage: Stage) -> Progress | None:
        """Live progress of the stage's current attempt."""

    def manifest(self, pipeline: str, stage: Stage) -> StageManifest | None:
        """The result in use of a stage, or None if there is none."""

    def apply(self, desired: DesiredState) -> DesiredState:
        """Writes the desired state and wakes the reconciler; returns what was stored.

        Raises:
            ConfigError: another document runs here (exit 2).
            ConflictError: another writer changed the pipeline; prepare it again.
        """

    def suspend(self, pipeline: str) -> DesiredState:
        """Wants the pipeline stopped with a checkpoint; returns at once."""

    def kill(self, pipeline: str) -> DesiredState:
        """Suspends the pipeline and ends its running attempt now; steps since the last checkpoint are lost.

        Returns within seconds. Where what runs the job does not answer, the reconciler goes on stopping it.
        """

    def resume(self, pipeline: str) -> DesiredState:
        """Wants a suspended or failed pipeline to go on."""

    def logs(
        self, pipeline: str, stage: Stage, *, follow: bool = False, attempt: int | None = None
    ) -> Iterator[str]:
        """Lines of the driver's log of an attempt (the latest), live or from the store.

        Raises:
            ConfigError: the stage has not been run, or there was no such attempt.
            NotFoundError: no log of that attempt was kept.
            BackendError: Ray refuses the token, or cannot be reached and no log was kept either.
        """

    def heartbeat(self) -> AbstractContextManager[None]:
        """While entered, the reconciler knows that a client watches and does not end itself."""

    def warm(self) -> None:
        """Says that a run is about to be applied: what its jobs need and takes a while may start already."""

    def obstacles(self, *, ignored: bool = False) -> list[str]:
        """What keeps runs here from going on, each with its remedy, the gravest first; empty: nothing known.

        Args:
            ignored: whether a run has waited for its first status for longer than it should.

        Raises:
            BackendError: the place cannot be asked.
        """

    def snapshot(self) -> AbstractContextManager[None]:
        """While entered, pipelines may be seen as they were at its beginning: one request shows all."""

    def close(self) -> None:
        """Ends the session; pipelines go on."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
