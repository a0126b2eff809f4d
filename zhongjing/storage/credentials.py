"""Keys of the object store, taken up anew when their file changes: a rotated Secret needs no restart.

Keys are given (:class:`Access`), else found by the AWS tools' own chain: shared credentials file, web
identity, container or instance role. Given ones cannot change. All others are looked up again when a file of
the chain changes; what is lent for a time is renewed by botocore.

During a rotation the store may refuse the old keys before the new ones are here (a kubelet brings a changed
Secret within a minute or two), or not know the new ones yet. So a process whose keys were good bears a
refusal for some minutes.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """Keys of one moment. Their text form hides the secret."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Access:
    """How a process reaches the store where a document does not say it. Read once, then passed on.

    Attributes:
        endpoint: URL of the store.
        region: of the buckets.
        ca_bundle: PEM file of certificates.
        keys: given ones; None: those that the AWS tools find.
        credentials_files: where the AWS tools look for shared credentials; the first that exists counts.
        config_file: of the AWS tools.
        secret: name of the Secret that the keys come from, for messages.
    """

    endpoint: str | None = None
    region: str | None = None
    ca_bundle: str | None = None
    keys: Keys | None = None
    credentials_files: tuple[str, ...] = ("~/.aws/credentials",)
    config_file: str = "~/.aws/config"
    secret: str | None = None

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Access:
        """What an environment says, in the AWS tools' variables."""

        def first(*names: str) -> str | None:
            return next((environment[name] for name in names if environment.get(name)), None)

        access_key, secret_key = first("AWS_ACCESS_KEY_ID"), first("AWS_SECRET_ACCESS_KEY")
        given = (
            Keys(access_key, secret_key, first("AWS_SESSION_TOKEN")) if access_key and secret_key else None
        )
        return cls(
            endpoint=first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            region=first("AWS_REGION", "AWS_DEFAULT_REGION"),
            ca_bundle=first("AWS_CA_BUNDLE"),
            keys=given,
            credentials_files=(first("AWS_SHARED_CREDENTIALS_FILE") or "~/.aws/credentials",),
            config_file=first("AWS_CONFIG_FILE") or "~/.aws/config",
            secret=first(SECRET_VARIABLE),
        )

    def using(self, keys: Keys | None) -> Access:
        """The same store with these keys; without any: as it is."""
        return self if keys is None else replace(self, keys=keys)

    @property
    def keys_remedy(self) -> str:
        """What to do where the store does not take the keys, or there are none."""
        if self.secret is None:
            return NO_CREDENTIALS_REMEDY
        return (
            f"put keys that the store takes into the Secret {self.secret}, key credentials (an AWS shared "
            "credentials file): they are taken up within two minutes, without a restart"
        )


class KeySource:
    """The keys of an access as they are now. Safe to use from several threads.

    Args:
        access: has the keys, or says where they are.
        store: what messages call the object store.
    """

    def __init__(self, access: Access, store: str) -> None:
        self._access = access
        self._store = store
        self._lock = threading.Lock()
        self._found: Any = None  # botocore's credentials
        self._files: _Fingerprint = ()
        self._newest: Keys | None = None
        self._version = 0
        self._good = False  # whether the store has ever taken this process's keys

    @property
    def version(self) -> int:
        """Rises whenever other keys are found. Raises ConfigError where there are none."""
        self.keys()
        return self._version

    def keys(self) -> Keys:
        """The keys as they are now.

        Raises:
            ConfigError: there are none.
        """
        if self._access.keys is not None:
            return self._access.keys
        with self._lock:
            keys = self._look()
            if self._newest is not None and keys != self._newest:
                self._version += 1
                logger.info("%s: the keys of the object store have changed", self._store)
            self._newest = keys
            return keys

    def provide(self) -> S3Credential:
        """The keys in obstore's form; it asks for those that may change again every ten seconds."""
        keys = self.keys()
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": None if self._access.keys is not None else datetime.now(UTC) + LIFETIME,
        }

    def accepted(self) -> None:
        """Notes that the store has taken the keys."""
        self._good = True

    def may_recover(self, version: int) -> bool:
        """Whether a refusal of keys of this version may pass: there are others, or this process's were good.

        The store may know new keys before this process does, or after.
        """
        return self._access.keys is None and (self._good or self.version != version)

    def _look(self) -> Keys:
        file = self._credentials_file()
        files = (_fingerprint(file), _fingerprint(self._access.config_file))
        if self._found is None or files != self._files:
            # Only a process without given keys pays for this import.
            import botocore.session
            from botocore.exceptions import BotoCoreError

            reason = ""
            session = botocore.session.Session()
            session.set_config_variable("credentials_file", file)
            try:
                found = session.get_credentials()
            except BotoCoreError as error:
                found = None
                reason = f": {type(error).__name__}"  # its text may quote the file
            if found is not None:
                self._found, self._files = found, files
            elif self._found is None:
                raise ConfigError(
                    f"there are no credentials for the object store {self._store}{reason}",
                    code=storage_codes.INVALID_STORAGE,
                    where="environment",
                    remedy=self._access.keys_remedy,
                )
            # Else a file is being written just now: the keys of before, and another look next time.
        frozen = self._found.get_frozen_credentials()
        return Keys(str(frozen.access_key), str(frozen.secret_key), frozen.token)

    def _credentials_file(self) -> str:
        names = self._access.credentials_files
        # Not asked by exists(): a home folder that is not ours to look into would be an error of it.
        return next((name for name in names if _fingerprint(name) is not None), names[0])


def _fingerprint(name: str) -> tuple[int, int, int] | None:
    """Changes with a file that keys may come from. A mounted Secret is replaced behind a link."""
    try:
        status = Path(name).expanduser().stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
