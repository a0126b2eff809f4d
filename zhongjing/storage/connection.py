"""How to reach the object store: the document's settings, completed by the environment.

Credentials come from the environment and from nowhere else. Nothing here is ever stored or pickled: a process
that needs the store makes its own connection from :class:`zhongjing.config.sources.Storage`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from zhongjing.codes import data as data_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.sources import Storage
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Credential

NO_CREDENTIALS_REMEDY = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN if you have one), or give the "
    "process a role or a profile that the AWS tools can find"
)
# How long a credential of the AWS tools' own chain is used before it is asked for again.
CREDENTIAL_LIFETIME = timedelta(minutes=15)


def split_uri(uri: str) -> tuple[str, str]:
    """Splits ``s3://bucket/some/key`` into ``("bucket", "some/key")``.

    Raises:
        ConfigError: ``uri`` is not an s3:// URI.
    """
    scheme, _, rest = uri.partition("://")
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise ConfigError(
            "this is not an s3:// URI",
            code=data_codes.INVALID_URI,
            where=uri,
            remedy="write s3://<bucket>/<key>",
        )
    return bucket, key


@dataclass(frozen=True, slots=True)
class Credentials:
    """Keys of one moment. Their text form hides the secret."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class Connection:
    """Everything a client needs, secrets excepted: those are asked for through ``credentials``."""

    endpoint: str | None
    region: str
    addressing_style: Literal["path", "virtual"]
    ca_bundle: str | None
    checksums: Literal["whenRequired", "whenSupported"]
    deadline: float  # seconds

    @classmethod
    def of(cls, storage: Storage) -> Connection:
        """Completes the settings from ``AWS_ENDPOINT_URL(_S3)``, ``AWS_REGION`` and ``AWS_CA_BUNDLE``.

        The document wins. Its default region gives way to the environment's.

        Raises:
            ConfigError: the endpoint is not a URL or holds credentials, or the CA bundle does not exist.
        """
        environment = os.environ
        endpoint = (
            storage.endpoint
            or environment.get("AWS_ENDPOINT_URL_S3")
            or environment.get("AWS_ENDPOINT_URL")
            or None
        )
        if endpoint is not None:
            endpoint = _checked_endpoint(endpoint)
        region = storage.region
        if region == Storage.model_fields["region"].default:
            region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION") or region
        ca_bundle = storage.ca_bundle or environment.get("AWS_CA_BUNDLE") or None
        if ca_bundle is not None and not Path(ca_bundle).is_file():
            raise ConfigError(
                f"the CA bundle {ca_bundle} does not exist",
                code=storage_codes.INVALID_STORAGE,
                where="spec.storage.caBundle",
                remedy="name a PEM file that exists on every machine that runs jobs",
            )
        return cls(
            endpoint=endpoint,
            region=region,
            addressing_style=storage.addressing_style,
            ca_bundle=ca_bundle,
            checksums=storage.checksums,
            deadline=storage.deadline_seconds,
        )

    @property
    def name(self) -> str:
        """What messages call the store."""
        return self.endpoint or f"AWS S3 ({self.region})"

    @property
    def silence(self) -> float:
        """Seconds without a byte after which a request is given up: a part of the deadline, at most 20.

        A connection whose other end has vanished is then replaced while there is still time.
        """
        return min(max(self.deadline / 3, 1.0), 20.0)

    def static_credentials(self) -> Credentials | None:
        """The keys that stand in the environment, if any."""
        access_key = os.environ.get("AWS_ACCESS_KEY_ID")
        secret_key = os.environ.get("AWS_SECRET_ACCESS_KEY")
        if not access_key or not secret_key:
            return None
        return Credentials(access_key, secret_key, os.environ.get("AWS_SESSION_TOKEN") or None)

    def credential_provider(self) -> Callable[[], S3Credential]:
        """Credentials by the AWS tools' own chain: profile, web identity, container or instance role.

        Both clients, obstore and boto3, then use the very same identity.

        Raises:
            ConfigError: the chain finds nothing.
        """
        # Only a process without keys in its environment pays for this import.
        import botocore.session

        found = botocore.session.Session().get_credentials()
        if found is None:
            raise ConfigError(
                f"there are no credentials for the object store {self.name}",
                code=storage_codes.INVALID_STORAGE,
                where="environment",
                remedy=NO_CREDENTIALS_REMEDY,
            )

        def provide() -> S3Credential:
            keys = found.get_frozen_credentials()
            assert keys.access_key is not None
            assert keys.secret_key is not None
            return {
                "access_key_id": keys.access_key,
                "secret_access_key": keys.secret_key,
                "token": keys.token,
                "expires_at": datetime.now(UTC) + CREDENTIAL_LIFETIME,
            }

        return provide


def _checked_endpoint(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            # What might be a secret is not repeated.
            f"{'the endpoint' if '@' in endpoint else repr(endpoint)} is not the URL of an object store",
            code=storage_codes.INVALID_STORAGE,
            where="spec.storage.endpoint",
            remedy="write http(s)://host[:port]",
        )
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "an endpoint must not hold credentials: it is stored and shown",
            code=storage_codes.INVALID_STORAGE,
            where="spec.storage.endpoint",
            remedy=NO_CREDENTIALS_REMEDY,
        )
    return endpoint.rstrip("/")
