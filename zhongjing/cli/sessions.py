"""Opens sessions and finds pipelines in them: what status, logs, stop, resume and pull have in common."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.places import ClusterPlace, LocalPlace, Place
from zhongjing.codes.command import INVALID_OPTION, UNKNOWN_PIPELINE
from zhongjing.codes.document import UNKNOWN_STAGE
from zhongjing.codes.local import UNUSABLE_WORKDIR
from zhongjing.codes.ray import NOTHING_RUNS
from zhongjing.errors import BackendError, ConfigError

if TYPE_CHECKING:
    from zhongjing.backends.kubernetes.session import KubernetesSession
    from zhongjing.config.stages import Stage
    from zhongjing.pipeline.session import Session
    from zhongjing.pipeline.state import DesiredState

Opener = Callable[[Path, bool], "Session"]
"""Opens the session of a workdir; the flag says whether its services may be started."""

ClusterOpener = Callable[[ClusterPlace], "KubernetesSession"]
"""Opens the session of a release."""


def _open_local(workdir: Path, start: bool) -> Session:
    from zhongjing.backends.local.session import LocalSession

    return LocalSession.open(workdir, start=start, flags=LocalPlace(workdir).flags)


def _open_cluster(place: ClusterPlace) -> KubernetesSession:
    from zhongjing.backends.kubernetes.session import KubernetesSession

    return KubernetesSession.open(namespace=place.namespace, context=place.context, release=place.release)


OPENER: ContextVar[Opener] = ContextVar("OPENER", default=_open_local)
"""What opens local sessions. Tests put a session in memory here."""

CLUSTER_OPENER: ContextVar[ClusterOpener] = ContextVar("CLUSTER_OPENER", default=_open_cluster)
"""What opens sessions on clusters. Tests put a session in memory here."""


def open_runs(place: Place) -> Session:
    """The session of a place that exists already.

    Raises:
        BackendError: nothing was ever run in the workdir; the cluster cannot be reached, or has no release.
    """
    if isinstance(place, ClusterPlace):
        return open_cluster(place)
    if not place.workdir.is_dir():
        raise BackendError(
            "nothing was run here yet",
            code=NOTHING_RUNS,
            where=str(place.workdir),
            remedy="start a run with: `zhongjing submit --local`, or give its folder with --workdir",
        )
    return OPENER.get()(place.workdir, True)


def open_cluster(place: ClusterPlace) -> KubernetesSession:
    """The session of a release.

    Raises:
        BackendError: the cluster cannot be reached, or has no release there.
    """
    return CLUSTER_OPENER.get()(place)


def open_or_create(place: LocalPlace) -> Session:
    """The session of a workdir, made if it does not exist.

    Raises:
        ConfigError: the workdir cannot be written.
        BackendError: its services do not start.
    """
    workdir = place.workdir
    try:
        workdir.mkdir(parents=True, exist_ok=True, mode=0o700)  # it holds corpora and keys from the start
    except OSError as error:
        raise ConfigError(
            f"cannot be made: {error.strerror or error}", code=UNUSABLE_WORKDIR, where=f"--workdir {workdir}"
        ) from error
    return OPENER.get()(workdir, True)


def find(session: Session, name: str | None) -> DesiredState:
    """A pipeline by name, or the only one there is.

    Raises:
        ConfigError: there is none of that name, or several and no name.
    """
    names = session.pipelines()
    if name is None:
        if len(names) == 1:
            name = names[0]
        elif not names:
            raise ConfigError(
                "there are no pipelines here yet",
                code=UNKNOWN_PIPELINE,
                remedy="start one with: `zhongjing submit`",
            )
        else:
            raise ConfigError(
                "there are several pipelines here",
                code=UNKNOWN_PIPELINE,
                remedy=f"name one of: {', '.join(sorted(names))}",
            )
    desired = session.desired(name) if name in names else None
    if desired is None:
        known = ", ".join(sorted(names)) or "none"
        raise ConfigError(
            f"there is no pipeline {name!r}", code=UNKNOWN_PIPELINE, remedy=f"there is: {known}"
        )
    return desired


def split_target(target: str) -> tuple[str, Stage]:
    """Splits ``tiny/ppo`` into the pipeline's name and the stage.

    Raises:
        ConfigError: it is not of that form, or the stage is unknown.
    """
    from zhongjing.config.stages import Stage

    name, slash, stage = target.partition("/")
    if not slash or not name or not stage:
        raise ConfigError(
            "a result is named PIPELINE/STAGE", code=INVALID_OPTION, where=target, remedy="e.g. tiny/ppo"
        )
    if stage not in {known.value for known in Stage}:
        stages = ", ".join(known.value for known in Stage)
        raise ConfigError(
            f"there is no stage {stage!r}",
            code=UNKNOWN_STAGE,
            where=target,
            remedy=f"the stages are: {stages}",
        )
    return name, Stage(stage)
