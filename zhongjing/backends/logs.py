"""Logs of attempts, as far as all places keep them alike: which one is meant, and its log in the store."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from zhongjing.codes.command import INVALID_OPTION, NO_LOG, NOT_RUN_YET
from zhongjing.config.stages import Stage
from zhongjing.errors import ConfigError, NotFoundError
from zhongjing.pipeline.attempt_logs import driver_log
from zhongjing.pipeline.state import PipelineStatus, StageStatus
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore


def chosen_attempt(
    pipeline: str,
    status: PipelineStatus | None,
    stage: Stage,
    attempt: int | None,
) -> tuple[int, StageStatus]:
    """The number of the attempt that is asked for (None: the latest), and the stage's status.

    Args:
        pipeline: its name.
        status: as observed.
        stage: whose attempt.
        attempt: as the user gave it.

    Raises:
        ConfigError: the stage has not been run, or there was no such attempt.
    """
    entry = status.stage(stage) if status is not None else None
    if entry is None or entry.attempt == 0:
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
    return number, entry


def kept_log(
    store: ObjectStore, layout: Layout, stage: Stage, attempt: int, key: str | None
) -> Iterator[str]:
    """Lines of the log of an attempt that is over.

    Args:
        store: where it is.
        layout: the pipeline.
        stage: whose attempt.
        attempt: its number.
        key: of the stage's latest attempt, where the log is looked for first.

    Raises:
        NotFoundError: no log of that attempt was kept.
    """
    uris = [driver_log(layout, stage, key, attempt)] if key is not None else []
    name = f"driver-a{attempt}.log"
    uris += [item.uri for item in store.list(f"{layout.home}/{stage}") if item.uri.endswith(name)]
    for uri in uris:
        with contextlib.suppress(NotFoundError):
            yield from store.get(uri).decode(errors="replace").splitlines()
            return
    raise NotFoundError(f"no log of attempt {attempt} of {stage} was kept", code=NO_LOG, where=layout.home)
