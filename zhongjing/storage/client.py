"""obstore clients: how the settings of a connection become those of the library."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.store import S3Store

from zhongjing.storage.connection import Connection

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, RetryConfig, S3Config

PART_BYTES = 16 * 2**20  # of a multipart upload and of a ranged download
TRANSFERS = 4  # parts in flight: at most PART_BYTES * TRANSFERS of memory
MAX_PARTS = 9_000  # S3 allows 10,000


def make_client(connection: Connection, bucket: str, patient: bool) -> S3Store:
    """An obstore client of one bucket.

    Args:
        connection: where and how.
        bucket: its name.
        patient: for multipart uploads, which cannot be resumed from outside: then the client itself retries
            each part until the deadline. All others leave waiting to our own loop.
    """
    endpoint = connection.endpoint
    if endpoint is not None and connection.addressing_style == "virtual":
        scheme, _, host = endpoint.partition("://")
        endpoint = f"{scheme}://{bucket}.{host}"
    config: S3Config = {
        "region": connection.region,
        "virtual_hosted_style_request": connection.addressing_style == "virtual",
        "conditional_put": "etag",
    }
    if endpoint is not None:
        config["endpoint"] = endpoint
        config["aws_endpoint_url_s3"] = endpoint  # or the environment's would win over the document's
    if connection.checksums == "whenSupported":
        config["checksum_algorithm"] = "SHA256"
    options: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(5.0, connection.deadline)),
        "read_timeout": timedelta(seconds=connection.silence),
        # Of a whole request: only a bound, since one that still moves is not given up.
        "timeout": timedelta(minutes=15),
    }
    if connection.ca_bundle is not None:
        options["root_certificate"] = Path(connection.ca_bundle).read_bytes()
    backoff: BackoffConfig = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    }
    retry: RetryConfig = {
        "max_retries": 10_000 if patient else 2,
        "retry_timeout": timedelta(seconds=connection.deadline if patient else min(connection.deadline, 5.0)),
        "backoff": backoff,
    }
    keys = connection.static_credentials()
    if keys is None:
        return S3Store(
            bucket,
            config=config,
            client_options=options,
            retry_config=retry,
            credential_provider=connection.credential_provider(),
        )
    config["access_key_id"] = keys.access_key
    config["secret_access_key"] = keys.secret_key
    if keys.token is not None:
        config["session_token"] = keys.token
    return S3Store(bucket, config=config, client_options=options, retry_config=retry)


def part_size(size: int) -> int:
    """Size of an upload's parts: 16 MiB, or more where that would make too many of them."""
    return max(PART_BYTES, -(-size // MAX_PARTS))
