"""Keys of the object store, taken up anew when their file changes: a rotated Secret needs no restart.

Keys come from the environment of the process, else by the AWS tools' own chain: shared credentials file,
web identity, container or instance role. Keys in the environment cannot change. All others are looked up
again when a file of the chain changes; what is lent for a time is renewed by botocore.

During a rotation the store may refuse the old keys before the new ones are here (a kubelet brings a changed
Secret within a minute or two), or not know the new ones yet. So a process whose keys were good bears a
refusal for some minutes.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhongjing.codes import storage as storage_codes
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Credential

logger = logging.getLogger(__name__)

NO_CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN if you have one), or give the "
    "process a role or a profile that the AWS tools can find (AWS_SHARED_CREDENTIALS_FILE names its file)"
)
SECRET_VARIABLE = "ZHONGJING_S3_SECRET"  # noqa: S105 - a name
"""Names the Secret that a pod has its keys from; the chart sets it."""
# obstore asks again for what ends within five minutes: so ten seconds after it asked.
LIFETIME = timedelta(minutes=5, seconds=10)

_Fingerprint = tuple[tuple[int, int, int] | None, ...]


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys of one moment. Their text form hides the secret.

    Attributes:
        version: rises whenever other keys are found.
    """

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)
    version: int = 0


def keys_remedy() -> str:
    """What to do where the store does not take the keys of this process, or has none."""
    secret = os.environ.get(SECRET_VARIABLE)
    if not secret:
        return NO_CREDENTIALS_REMEDY
    return (
        f"put keys that the store takes into the Secret {secret}, key credentials (an AWS shared credentials "
        "file): they are taken up within two minutes, without a restart"
    )


class KeySource:
    """Where a process has its keys from. Safe to use from several threads.

    Args:
        store: what messages call the object store.
    """

    def __init__(self, store: str) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._found: Any = None  # botocore's credentials
        self._files: _Fingerprint = ()
        self._newest: Keys | None = None
        self._good = False  # whether the store has ever taken this process's keys

    @property
    def is_fixed(self) -> bool:
        """Whether the keys stand in the environment, where nothing can change them."""
        return _of_environment() is not None

    def keys(self) -> Keys:
        """The keys as they are now.

        Raises:
            ConfigError: there are none.
        """
        with self._lock:
            keys = self._look()
            newest = self._newest
            if newest is not None and (keys.access_key, keys.secret_key, keys.token) == (
                newest.access_key,
                newest.secret_key,
                newest.token,
            ):
                return newest
            version = 0 if newest is None else newest.version + 1
            if newest is not None:
                logger.info("%s: the keys of the object store have changed", self._store)
            self._newest = Keys(keys.access_key, keys.secret_key, keys.token, version)
            return self._newest

    def provide(self) -> S3Credential:
        """The keys in obstore's form, which asks for them again every ten seconds."""
        keys = self.keys()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": datetime.now(UTC) + LIFETIME,
        }

    def accepted(self) -> None:
        """Notes that the store has taken the keys."""
        self._good = True

    def may_recover(self, version: int) -> bool:
        """Whether a refusal of keys of this version may pass: there are others, or this process's were good.

        The store may know new keys before this process does, or after.
        """
        if self.is_fixed:
            return False
        return self._good or self.keys().version != version

    def _look(self) -> Keys:
        fixed = _of_environment()
        if fixed is not None:
            return fixed
        files = _fingerprint()
        if self._found is None or files != self._files:
            # Only a process without keys in its environment pays for this import.
            import botocore.session
            from botocore.exceptions import BotoCoreError

            try:
                found = botocore.session.Session().get_credentials()
            except BotoCoreError as error:
                found = None
                reason = f": {type(error).__name__}"  # its text may quote the file
            else:
                reason = ""
            if found is not None:
                self._found, self._files = found, files
            elif self._found is None:
                raise ConfigError(
                    f"there are no credentials for the object store {self._store}{reason}",
                    code=storage_codes.INVALID_STORAGE,
                    where="environment",
                    remedy=keys_remedy(),
                )
            # Else a file is being written just now: the keys of before, and another look next time.
        frozen = self._found.get_frozen_credentials()
        return Keys(str(frozen.access_key), str(frozen.secret_key), frozen.token)


def _of_environment() -> Keys | None:
    access_key = os.environ.get("AWS_ACCESS_KEY_ID")
    secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not access_key or not secret_key:
        return None
    return Keys(access_key, secret_key, os.environ.get("AWS_SESSION_TOKEN") or None)


def _fingerprint() -> _Fingerprint:
    """Changes with the files that keys may come from. A mounted Secret is replaced behind a link."""
    named = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",
        os.environ.get("AWS_CONFIG_FILE") or "~/.aws/config",
    )
    found: list[tuple[int, int, int] | None] = []
    for name in named:
        try:
            status = Path(name).expanduser().stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)
