"""How to reach the object store: the document's settings, completed by an access."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from zhongjing.codes import data as data_codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.sources import Storage
from zhongjing.errors import ConfigError
from zhongjing.storage.credentials import Access


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
class Connection:
    """Everything that a client needs."""

    endpoint: str | None
    region: str
    addressing_style: Literal["path", "virtual"]
    ca_bundle: str | None
    checksums: Literal["whenRequired", "whenSupported"]
    deadline: float  # seconds
    access: Access  # has the keys
    waits: bool = True  # whether a call goes on trying until the deadline

    @classmethod
    def of(cls, storage: Storage, access: Access | None = None, *, waits: bool = True) -> Connection:
        """Completes the settings of a document, which win. Its default region gives way to the access's.

        Args:
            storage: the document's settings.
            access: address and keys; None: those of this process's environment.
            waits: whether a call bears an outage until the deadline. A thread that others wait for must not.

        Raises:
            ConfigError: the endpoint is not a URL or holds credentials, or the CA bundle does not exist.
        """
        if access is None:
            access = Access.from_environment(os.environ)
        endpoint = storage.endpoint or access.endpoint
        if endpoint is not None:
            endpoint = _checked_endpoint(endpoint, access)
        region = storage.region
        if region == Storage.model_fields["region"].default:
            region = access.region or region
        ca_bundle = storage.ca_bundle or access.ca_bundle
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
            access=access,
            waits=waits,
        )

    @property
    def name(self) -> str:
        """What messages call the store."""
        return self.endpoint or f"AWS S3 ({self.region})"

    @property
    def is_local(self) -> bool:
        """Whether the store is on this machine: proxies of the environment are for the world outside."""
        return self.endpoint is not None and urlsplit(self.endpoint).hostname in ("127.0.0.1", "localhost")

    @property
    def silence(self) -> float:
        """Seconds without a byte after which a request is given up: a part of the deadline, at most 20.

        A connection whose other end has vanished is then replaced while there is still time.
        """
        return min(max(self.deadline / 3, 1.0), 20.0)

    @property
    def connect_seconds(self) -> float:
        """Seconds after which a connection that does not come about is given up."""
        return min(5.0 if self.waits else 2.0, self.deadline)


def _checked_endpoint(endpoint: str, access: Access) -> str:
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
            remedy=access.keys_remedy,
        )
    return endpoint.rstrip("/")
