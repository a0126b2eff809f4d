"""Whose fault an error is: the document's, which only another document mends, or that of what it runs on."""

from __future__ import annotations

from zhongjing.codes.pods import POD_STARTING, WORKERS_STARTING
from zhongjing.codes.storage import DAMAGED_OBJECT, NEWER_VERSION, SETTINGS
from zhongjing.errors import (
    BackendError,
    BackendUnavailableError,
    ConfigError,
    DataError,
    TransientError,
    ZhongjingError,
)
from zhongjing.pipeline.actions import Conclude
from zhongjing.pipeline.state import CLUSTER_NOT_READY, CLUSTER_STARTING, ConditionType

UNREADABLE = (DAMAGED_OBJECT, NEWER_VERSION)
"""An object is there and cannot be read."""


def is_documents(error: ZhongjingError) -> bool:
    """Whether what the document says is wrong, so that its pipeline has failed.

    A refusal of the store, its settings (which on a cluster are the release's) and an object that cannot be
    read say nothing about the document: all of that may be mended behind its back, and is tried again.
    """
    if isinstance(error, TransientError) or error.code in SETTINGS.codes:
        return False
    return isinstance(error, ConfigError | DataError)


def unready_reason(error: BackendError) -> str:
    """Reason of a condition while what runs jobs is not there: a start, or something that is wrong."""
    return CLUSTER_STARTING if error.code in (POD_STARTING, WORKERS_STARTING) else CLUSTER_NOT_READY


def held_up(error: ZhongjingError) -> Conclude:
    """The condition of a pipeline that cannot go on for now."""
    reason = unready_reason(error) if isinstance(error, BackendError) else error.code.name
    return Conclude(ConditionType.PROGRESSING, reason, sentence(error), error.remedy)


def failed(error: ZhongjingError) -> Conclude:
    """The condition of a pipeline whose document is wrong."""
    return Conclude(ConditionType.FAILED, error.code.name, sentence(error), error.remedy)


def unavailable(error: BackendError) -> BackendUnavailableError:
    """The same error, as one that may pass."""
    return BackendUnavailableError(error.message, code=error.code, where=error.where, remedy=error.remedy)


def sentence(error: ZhongjingError) -> str:
    """Place and message in one line, as conditions have them."""
    return f"{error.where}: {error.message}" if error.where else error.message
