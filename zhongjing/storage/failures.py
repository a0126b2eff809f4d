"""What can go wrong with the store, and how long it is borne.

Every S3 client gives up within seconds of an outage, and a training job outlives many. So each call runs in
a loop of our own: failures that pass by themselves are retried until the deadline, all others are
translated at once into an error that names the object and the remedy.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from obstore import exceptions as foreign

from zhongjing.codes import data as data_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    ZhongjingError,
)
from zhongjing.storage.connection import Connection
from zhongjing.storage.refusals import REFUSAL_CODES, Answer, Obstacle
from zhongjing.storage.refusals import translate as translate_answer

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 2.0  # seconds: a store that is back is noticed within this time
# How long a refusal of keys that were good is borne: until a kubelet has brought the new ones, and more.
ROTATION_SECONDS = 180.0


class PassingError(Exception):
    """An answer that was received but is not whole; the call is worth repeating."""


class KeysRefusedError(PassingError):
    """Keys are refused where they were good; ``refusal`` is what it comes to if that does not change."""

    def __init__(self, code: str, refusal: ZhongjingError) -> None:
        self.refusal = refusal
        super().__init__(f"{code}: the keys are refused, they may be being replaced")


class ExpectedError(Exception):
    """A refusal that the caller asked to see; its text is S3's code."""


def call(connection: Connection, uri: str, action: Callable[[], T]) -> T:
    """Runs ``action`` until it succeeds, fails for good, or has failed for the deadline.

    Where the connection does not wait, it is run once: what may pass by itself is an outage at once.

    The clock starts with the first attempt, which is the first that failed if there is another.

    Raises:
        StorageUnavailableError: the store did not recover within the deadline.
        StorageError, ConfigError: any other refusal, translated.
        ExpectedError: as raised by ``action``.
    """
    started = time.monotonic()
    failed = False
    pause = FIRST_PAUSE
    while True:
        try:
            result = action()
        except (ZhongjingError, ExpectedError):
            raise
        except Exception as error:
            if not is_passing(error):
                raise translate(error, uri, connection) from _cause(error)
            if not connection.waits:
                raise _gave_up(error, uri, connection) from _cause(error)
            if not failed:
                logger.warning("%s: the object store failed (%s); trying again", uri, summary(error))
            failed = True
            refused_keys = isinstance(error, KeysRefusedError)
            limit = max(connection.deadline, ROTATION_SECONDS) if refused_keys else connection.deadline
            if time.monotonic() - started + pause >= limit:
                if isinstance(error, KeysRefusedError):
                    raise error.refusal from None
                raise _gave_up(error, uri, connection) from _cause(error)
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if failed:
                logger.warning("%s: the object store is back after %.1f s", uri, time.monotonic() - started)
            return result


def _gave_up(error: Exception, uri: str, connection: Connection) -> StorageUnavailableError:
    """The error for an outage that outlasted the deadline; a store that answers is told from a silent one."""
    if isinstance(error, KeysRefusedError):
        of = error.refusal
        return StorageUnavailableError(of.message, code=of.code, where=of.where, remedy=of.remedy)
    answered = Answer.of(error).status is not None
    did = "fails" if answered else "does not answer"
    if connection.waits:
        did = f"{'kept failing' if answered else 'did not answer'} for {connection.deadline:g} seconds"
    code = storage_codes.STORAGE_FAILING if answered else storage_codes.STORAGE_UNREACHABLE
    message = f"the object store {connection.name} {did} ({summary(error)})"
    return StorageUnavailableError(message, code=code, where=uri)


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: no answer, a 5xx, a throttle, or a body cut short."""
    if isinstance(error, PassingError):
        return True
    if isinstance(error, foreign.GenericError):
        answer = Answer.of(error)
        return Obstacle.of(error) is None if answer.status is None else answer.is_passing
    # obstore raises the built-in one where a request ran out of time.
    return isinstance(error, TimeoutError)


def summary(error: Exception) -> str:
    """One short line without the client's debug output, which repeats itself and whole answers."""
    answer = Answer.of(error)
    if answer.status is not None:
        return str(answer)
    first = _head(error).strip().splitlines()[0] if _head(error).strip() else type(error).__name__
    _, separator, reason = first.rpartition(" - ")
    return (reason if separator else first)[:200]


def refuses(error: Exception) -> bool:
    """Whether a client's error is a refusal: of the keys, or for lack of a permission."""
    answer = Answer.of(error)
    return (
        answer.code in REFUSAL_CODES
        or isinstance(error, foreign.PermissionDeniedError | foreign.UnauthenticatedError)
        or answer.status in (401, 403)  # a refused listing comes as a generic error
    )


def is_mute(error: Exception) -> bool:
    """Whether the store refuses without a word: an answer to HEAD has no body."""
    answer = Answer.of(error)
    return answer.status in (400, 401, 403) and not answer.code and not answer.words


def translate(error: Exception, uri: str, connection: Connection) -> ZhongjingError:
    """The error of ours that a client's lasting error stands for."""
    obstacle = Obstacle.of(error)
    if obstacle is not None:
        return obstacle.error(uri, connection)
    answer = Answer.of(error)
    if isinstance(error, FileNotFoundError) and answer.code != "NoSuchBucket":
        return NotFoundError("there is no such object", code=storage_codes.OBJECT_NOT_FOUND, where=uri)
    if isinstance(error, foreign.AlreadyExistsError):
        return ConflictError("the object exists already", code=storage_codes.CONFLICT, where=uri)
    if isinstance(error, foreign.PreconditionError):
        message = "the object was changed by another writer"
        return ConflictError(message, code=storage_codes.CONFLICT, where=uri)
    if isinstance(error, ValueError):
        message = f"this key cannot be used ({summary(error)})"
        return ConfigError(message, code=data_codes.INVALID_URI, where=uri)
    if answer.status is None:
        message = f"the object store {connection.name} refused ({summary(error)})"
        return StorageError(message, code=storage_codes.STORAGE_REFUSED, where=uri)
    return translate_answer(answer, uri, connection)


def _head(error: Exception) -> str:
    return str(error).partition("\n\nDebug source:")[0]


def _cause(error: Exception) -> Exception:
    # The client's text holds whole answers of the server; the chain keeps a short form of it.
    return type(error)(summary(error)) if isinstance(error, foreign.BaseError) else error
