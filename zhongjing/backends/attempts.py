"""Attempts as commands reach them in every place: the log of one, and its end by force."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from zhongjing.backends.ray_jobs import RayJobsBackend
from zhongjing.codes.command import INVALID_OPTION, NO_LOG, NOT_RUN_YET
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendError, ConfigError, NotFoundError, TransientError
from zhongjing.pipeline.attempt_logs import driver_log
from zhongjing.pipeline.backend import JobState
from zhongjing.pipeline.context import submission_id
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import DesiredState, StageStatus

_KILL_SECONDS = 2.0  # so long Ray may take to hear that a job shall end

Jobs = Callable[[float], RayJobsBackend | None]
"""The Jobs API with a timeout of requests, in seconds; None while no Ray runs."""


def kill(session: Session, pipeline: str, jobs: Jobs) -> DesiredState:
    """What :meth:`Session.kill` does; where Ray does not answer, the reconciler goes on stopping."""
    desired = session.suspend(pipeline)
    status = session.status(pipeline)
    for entry in status.stages.values() if status is not None else ():
        if entry.state.is_active and entry.submission_id is not None:
            with contextlib.suppress(BackendError):
                if (ray := jobs(_KILL_SECONDS)) is not None:
                    ray.stop(entry.submission_id)
    return desired


def live_log(jobs: RayJobsBackend | None, identity: str, *, follow: bool) -> Iterator[str] | None:
    """Lines of a job's log; None if no Ray runs that knows the job."""
    if jobs is None or jobs.describe(identity).state is JobState.UNKNOWN:
        return None
    return jobs.tail_logs(identity) if follow else jobs.read_log(identity)


def read_log(
    session: Session,
    pipeline: str,
    stage: Stage,
    attempt: int | None,
    live: Callable[[str], Iterator[str] | None],
    *,
    past: bool,
) -> Iterator[str]:
    """What :meth:`Session.logs` does.

    Args:
        session: where.
        pipeline: its name.
        stage: whose attempt.
        attempt: its number; None: the latest.
        live: the log of a job from Ray, by its id.
        past: whether Ray is asked for attempts that are over, too.
    """
    desired, status = session.desired(pipeline), session.status(pipeline)
    entry = status.stage(stage) if status is not None else None
    if desired is None or entry is None or entry.attempt == 0:
        raise ConfigError(
            f"{stage} of {pipeline} has not been run",
            code=NOT_RUN_YET,
            remedy=f"`zhongjing status {pipeline}` shows what was",
        )
    number = attempt or entry.attempt
    if number > entry.attempt:
        raise ConfigError(
            f"{stage} has had {entry.attempt} attempts",
            code=INVALID_OPTION,
            where=f"--attempt {number}",
            remedy="leave --attempt out for the latest one",
        )
    silent: TransientError | None = None
    told = False
    if past or (entry.state.is_active and number == entry.attempt):
        try:
            lines = live(submission_id(desired, stage, number))
            for line in lines or ():
                told = True
                yield line
            if lines is not None:
                return
        except TransientError as error:
            if told:
                raise  # the kept log has the same lines again
            silent = error
    try:
        yield from _kept_log(session, pipeline, stage, number, entry)
    except NotFoundError:
        if silent is not None:
            raise silent from None
        raise


def _kept_log(
    session: Session, pipeline: str, stage: Stage, attempt: int, entry: StageStatus
) -> Iterator[str]:
    """Lines of the log of an attempt that is over; where the latest one's would be is looked at first."""
    store, layout = session.store, session.layout(pipeline)
    uris = [driver_log(layout, stage, entry.key, attempt)] if entry.key is not None else []
    name = f"driver-a{attempt}.log"
    uris += [item.uri for item in store.list(f"{layout.home}/{stage}") if item.uri.endswith(name)]
    for uri in uris:
        with contextlib.suppress(NotFoundError):
            yield from store.get(uri).decode(errors="replace").splitlines()
            return
    raise NotFoundError(f"no log of attempt {attempt} of {stage} was kept", code=NO_LOG, where=layout.home)
