"""obstore clients: how the settings of a connection become those of the library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import obstore
from obstore.store import S3Store

from zhongjing.storage import failures
from zhongjing.storage.connection import Connection, split_uri
from zhongjing.storage.credentials import KeySource
from zhongjing.storage.refusals import ROTATION_CODES, Answer

if TYPE_CHECKING:
    from obstore.store import BackoffConfig, ClientConfig, RetryConfig, S3Config

T = TypeVar("T")

PART_BYTES = 16 * 2**20  # of a multipart upload and of a ranged download
TRANSFERS = 4  # parts in flight: at most PART_BYTES * TRANSFERS of memory
MAX_PARTS = 9_000  # S3 allows 10,000


class Clients:
    """The clients of one store, by bucket; replaced when other keys are found. Several threads may use them.

    Args:
        connection: where and how.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._source = KeySource(connection.access, connection.name)
        self._made: dict[tuple[str, bool], S3Store] = {}
        self._version = 0  # of the keys that they were made with
        self._lock = threading.Lock()

    def call(self, uri: str, action: Callable[[S3Store, str], T], *, patient: bool) -> T:
        """Runs ``action`` with a client and the key of ``uri``, as :func:`failures.call` does.

        Args:
            uri: of the object.
            action: given a client of the bucket, and the object's key.
            patient: whether the client itself retries (see :func:`make_client`).
        """
        bucket, key = split_uri(uri)

        def attempt() -> T:
            client, version = self._client(bucket, patient)
            try:
                result = action(client, key)
            except Exception as error:
                said = (_ask_why(client) or error) if failures.is_mute(error) else error
                try:
                    if failures.refuses(said):
                        self._check_rotation(said, version, uri)
                    if said is error:
                        raise
                    raise said from None
                finally:
                    del said  # an error that its own frame holds keeps all its callers' variables alive
            self._source.accepted()
            return result

        return failures.call(self._connection, uri, attempt)

    def _client(self, bucket: str, patient: bool) -> tuple[S3Store, int]:
        version = self._source.version
        with self._lock:
            if version != self._version:
                self._made.clear()
                self._version = version
            client = self._made.get((bucket, patient))
            if client is None:
                client = make_client(self._connection, self._source, bucket, patient)
                self._made[bucket, patient] = client
            return client, version

    def _check_rotation(self, error: Exception, version: int, uri: str) -> None:
        """Makes a refusal one that may pass, if it is due to keys that are being replaced.

        Raises:
            KeysRefusedError: it is.
        """
        if not self._source.may_recover(version):
            return
        code = Answer.of(error).code
        if code in ROTATION_CODES:
            with self._lock:
                self._made.clear()
            refusal = failures.translate(error, uri, self._connection)
            raise failures.KeysRefusedError(code or "", refusal) from None


def _ask_why(client: S3Store) -> Exception | None:
    """What the store says to a listing, where its answer to a HEAD had no body for words."""
    try:
        obstore.list_with_delimiter(client, "-")
    except Exception as error:
        return error
    return None


def make_client(connection: Connection, source: KeySource, bucket: str, patient: bool) -> S3Store:
    """An obstore client of one bucket.

    Args:
        connection: where and how.
        source: where the keys come from; those that may change are asked for again and again.
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
        "skip_signature": False,  # or the environment's would win, here as with the address
    }
    if endpoint is not None:
        config["endpoint"] = endpoint
        config["aws_endpoint_url_s3"] = endpoint
    if connection.checksums == "whenSupported":
        config["checksum_algorithm"] = "SHA256"
    options: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=connection.connect_seconds),
        "read_timeout": timedelta(seconds=connection.silence),
        # Of a whole request: only a bound, since one that still moves is not given up.
        "timeout": timedelta(minutes=15),
    }
    if endpoint is not None and connection.is_local:
        options |= {"proxy_url": endpoint, "proxy_excludes": "127.0.0.1,localhost"}  # none at all
    if connection.ca_bundle is not None:
        options["root_certificate"] = Path(connection.ca_bundle).read_bytes()
    backoff: BackoffConfig = {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=2),
        "base": 2,
    }
    patience = connection.deadline if patient else min(connection.deadline, 5.0 if connection.waits else 0.5)
    retry: RetryConfig = {
        "max_retries": 10_000 if patient else 2,
        "retry_timeout": timedelta(seconds=patience),
        "backoff": backoff,
    }
    return S3Store(
        bucket,
        config=config,
        client_options=options,
        retry_config=retry,
        credential_provider=source.provide,
    )


def in_parallel(fetch: Callable[[int], T], items: Sequence[int]) -> Iterator[T]:
    """Results in order, :data:`TRANSFERS` at a time; after an error nothing new is begun."""
    if len(items) <= 1:
        yield from map(fetch, items)
        return
    with ThreadPoolExecutor(TRANSFERS, thread_name_prefix="download") as pool:
        try:
            yield from pool.map(fetch, items)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def part_size(size: int) -> int:
    """Size of an upload's parts: 16 MiB, or more where that would make too many of them."""
    return max(PART_BYTES, -(-size // MAX_PARTS))
