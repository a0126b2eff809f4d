"""What can go wrong with the store, and how long it is borne.

Every S3 client gives up within seconds of an outage, and a training job outlives many. So each call runs in
a loop of our own: failures that pass by themselves are retried until the deadline, all others are
translated at once into an error that names the object and the remedy.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from obstore import exceptions as foreign

from zhongjing.codes import data as data_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.errors import (
    ConfigError,
    ConflictError,
    CredentialsError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    ZhongjingError,
)
from zhongjing.storage.connection import Connection, split_uri
from zhongjing.storage.credentials import SECRET_VARIABLE, keys_remedy

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE = 0.1  # seconds
LONGEST_PAUSE = 2.0  # seconds: a store that is back is noticed within this time
# How long a refusal of keys that were good is borne: until a kubelet has brought the new ones, and more.
ROTATION_SECONDS = 180.0
_STATUS = re.compile(r"(?:status code: |^HTTP )(\d{3})")  # the clients', our own
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>")
# Client errors that pass by themselves: request timeout, too early, too many requests.
_PASSING_STATUS = frozenset({408, 425, 429})
_KEY_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "InvalidClientTokenId"}
)
# Other keys may be taken where these were answered.
ROTATION_CODES = _KEY_CODES | {"ExpiredToken"}
# AWS answers some of these with 400.
REFUSAL_CODES = _KEY_CODES | {"AccessDenied", "ExpiredToken", "RequestTimeTooSkewed"}
_REDIRECT_CODES = frozenset({"PermanentRedirect", "AuthorizationHeaderMalformed", "TemporaryRedirect"})


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
        StorageError: any other refusal, translated.
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
        refusal = error.refusal
        return StorageUnavailableError(
            refusal.message, code=refusal.code, where=refusal.where, remedy=refusal.remedy
        )
    answered = status_of(error) is not None
    did = "fails" if answered else "does not answer"
    if connection.waits:
        did = f"{'kept failing' if answered else 'did not answer'} for {connection.deadline:g} seconds"
    return StorageUnavailableError(
        f"the object store {connection.name} {did} ({summary(error)})",
        code=storage_codes.STORAGE_FAILING if answered else storage_codes.STORAGE_UNREACHABLE,
        where=uri,
    )


def is_passing(error: Exception) -> bool:
    """Whether the same call may succeed later: no answer, a 5xx, a throttle, or a body cut short."""
    if isinstance(error, PassingError):
        return True
    if isinstance(error, foreign.GenericError):
        status = status_of(error)
        return status is None or status >= 500 or status in _PASSING_STATUS
    # obstore raises the built-in one where a request ran out of time.
    return isinstance(error, TimeoutError)


def status_of(error: Exception) -> int | None:
    """The HTTP status that stands in a client's error, if the server answered at all."""
    found = _STATUS.search(_head(error))
    return int(found.group(1)) if found else None


def code_of(error: Exception) -> str | None:
    """S3's own error code, where the answer had a body."""
    found = _CODE.search(_head(error))
    return found.group(1) if found else None


def summary(error: Exception) -> str:
    """One short line without the client's debug output, which repeats itself and whole answers."""
    status, code = status_of(error), code_of(error)
    if status is not None:
        return f"HTTP {status}" + (f" {code}" if code else "")
    first = _head(error).strip().splitlines()[0] if _head(error).strip() else type(error).__name__
    _, separator, reason = first.rpartition(" - ")
    return (reason if separator else first)[:200]


def refuses(error: Exception) -> bool:
    """Whether a client's error is a refusal: of the keys, or for lack of a permission."""
    return (
        code_of(error) in REFUSAL_CODES
        or isinstance(error, foreign.PermissionDeniedError | foreign.UnauthenticatedError)
        or status_of(error) in (401, 403)  # a refused listing comes as a generic error
    )


def translate(error: Exception, uri: str, connection: Connection) -> ZhongjingError:
    """The error of ours that a client's lasting error stands for."""
    code = code_of(error)
    status = status_of(error)
    if code == "NoSuchBucket":
        return missing_bucket(uri, connection)
    if isinstance(error, FileNotFoundError) or status == 404:
        return NotFoundError("there is no such object", code=storage_codes.OBJECT_NOT_FOUND, where=uri)
    if isinstance(error, foreign.AlreadyExistsError):
        return ConflictError("the object exists already", code=storage_codes.CONFLICT, where=uri)
    if isinstance(error, foreign.PreconditionError) or status == 412:
        return ConflictError(
            "the object was changed by somebody else", code=storage_codes.CONFLICT, where=uri
        )
    if refuses(error):
        return refused(code, uri, connection)
    if code in _REDIRECT_CODES or (status is not None and 300 <= status < 400):
        return ConfigError(
            f"the bucket is not in region {connection.region} of the object store {connection.name}",
            code=storage_codes.WRONG_REGION,
            where=uri,
        )
    if isinstance(error, ValueError):
        return ConfigError(
            f"this key cannot be used ({summary(error)})", code=data_codes.INVALID_URI, where=uri
        )
    return StorageError(
        f"the object store {connection.name} refused ({summary(error)})",
        code=storage_codes.STORAGE_REFUSED,
        where=uri,
    )


def missing_bucket(uri: str, connection: Connection) -> StorageError:
    """The error for a bucket that does not exist."""
    bucket, _ = split_uri(uri)
    return StorageError(
        f"the bucket {bucket!r} does not exist at {connection.name}",
        code=storage_codes.BUCKET_NOT_FOUND,
        where=uri,
    )


def refused(code: str | None, uri: str, connection: Connection) -> StorageError:
    """The error for a refusal: unknown key, wrong secret, clock, or a lack of permission."""
    if code in _KEY_CODES:
        return CredentialsError(
            f"the object store {connection.name} does not accept these credentials ({code})",
            code=storage_codes.ACCESS_DENIED,
            where=uri,
            remedy=keys_remedy(),
        )
    if code == "ExpiredToken":
        return CredentialsError(
            f"the object store {connection.name} says that the session token has expired",
            code=storage_codes.ACCESS_DENIED,
            where=uri,
            remedy=keys_remedy() if os.environ.get(SECRET_VARIABLE) else "renew AWS_SESSION_TOKEN",
        )
    if code == "RequestTimeTooSkewed":
        return StorageError(
            f"this machine's clock differs too much from that of the object store {connection.name}",
            code=storage_codes.CLOCK_SKEWED,
            where=uri,
        )
    secret = os.environ.get(SECRET_VARIABLE)
    place = f"in the Secret {secret}" if secret else "in the environment"
    return StorageError(
        f"the object store {connection.name} refused access ({code or 'HTTP 403'})",
        code=storage_codes.ACCESS_DENIED,
        where=uri,
        remedy=f"see that the credentials {place} are this store's and may read and write here",
    )


def _head(error: Exception) -> str:
    return str(error).partition("\n\nDebug source:")[0]


def _cause(error: Exception) -> Exception:
    # The client's text holds whole answers of the server; the chain keeps a short form of it.
    return type(error)(summary(error)) if isinstance(error, foreign.BaseError) else error
