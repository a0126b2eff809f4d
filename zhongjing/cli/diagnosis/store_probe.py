"""Run as a child by :mod:`zhongjing.cli.diagnosis.store`: writes to an object store, reads back, cleans up.

A process of its own: its environment may name another store than the command's, S3 clients take time to
import, and one that hangs can be ended. Every finding is sent as soon as it is made.
"""

from __future__ import annotations

import argparse
import http.client
import logging
import os
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from pathlib import Path

from zhongjing.cli.diagnosis.children import end_with_parent, remove, tell
from zhongjing.cli.diagnosis.clock import judge_skew
from zhongjing.cli.diagnosis.finding import Finding, fails, fine, of_error, warn
from zhongjing.codes import machine
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import ZhongjingError
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.connection import Connection
from zhongjing.storage.credentials import Access
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.probe import try_object

SPEED_BYTES = 8 * 2**20
SLOW = 2.0  # MB/s


def main() -> None:
    """Makes the findings that the arguments ask for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--storage", required=True, help="settings as JSON")
    parser.add_argument("--serve", type=Path, help="folder to start a server of our own in")
    options = parser.parse_args()
    logging.getLogger("zhongjing").setLevel(logging.ERROR)  # each retry would be a warning
    end_with_parent(lambda: _clean_up(options.serve))
    storage = Storage.model_validate_json(options.storage)
    if options.serve is None:
        try_store(storage, _send)
        return
    with served(options.serve, storage, _send) as started:
        if started is not None:
            try_store(storage, _send, started)


def _clean_up(folder: Path | None) -> None:
    if folder is not None:
        EmbeddedS3(folder).stop()
        remove(folder)


def _send(finding: Finding) -> None:
    tell(**finding.as_dict())


@contextmanager
def served(folder: Path, storage: Storage, send: Callable[[Finding], None]) -> Iterator[Access | None]:
    """The access to a server of our own while the block runs; None if it does not start."""
    server = EmbeddedS3(folder)
    began = time.monotonic()
    try:
        server.start()
    except ZhongjingError as error:
        send(of_error("s3 server", error))
        yield None
        return
    try:
        BucketAdmin(storage, server.access).ensure_bucket(storage.uri)
        send(fine("s3 server", f"a server of its own started in {time.monotonic() - began:.1f} s"))
        yield server.access
    finally:
        server.stop()


def try_store(storage: Storage, send: Callable[[Finding], None], given: Access | None = None) -> None:
    """Sends findings about a store: clock, access, conditional writes, speed. Leaves nothing in it."""
    try:
        connection = Connection.of(storage, given)
        clock = skew(connection)
        if clock is not None:
            send(judge_skew("s3 clock", clock, connection.name, "signatures are refused"))
        store = open_store(storage, given)
        folder = f"{storage.uri.rstrip('/')}/.zhongjing-doctor-{uuid.uuid4().hex[:12]}"
        send(fine("s3 access", try_object(store, folder)))
        send(conditions(store, folder))
        send(speed(store, folder))
    except ZhongjingError as error:
        send(of_error("s3 access", error))


def conditions(store: ObjectStore, folder: str) -> Finding:
    """Whether a second writer is refused: what decides who completed a stage."""
    try:
        store.require_conditional_writes(folder)
    except ZhongjingError as error:
        return of_error("s3 conditions", error)
    return fine(
        "s3 conditions", "a second write with If-None-Match is refused, a changed one with If-Match too"
    )


def speed(store: ObjectStore, folder: str) -> Finding:
    """Megabytes a second of one object, up and down."""
    uri, data = f"{folder}/speed", os.urandom(SPEED_BYTES)
    try:
        began = time.monotonic()
        store.put(uri, data)
        up = SPEED_BYTES / 1e6 / (time.monotonic() - began)
        began = time.monotonic()
        same = store.get(uri) == data
        down = SPEED_BYTES / 1e6 / (time.monotonic() - began)
    except ZhongjingError as error:
        return of_error("s3 speed", error)
    finally:
        store.delete(uri)
    if not same:
        return fails("s3 speed", "other bytes are read than were written", codes.DAMAGED_OBJECT)
    return judge_speed(up, down)


def judge_speed(up: float, down: float) -> Finding:
    """Fast enough for checkpoints, in MB/s."""
    about = f"{up:.1f} MB/s up, {down:.1f} MB/s down (one object of {SPEED_BYTES // 2**20} MiB)"
    if min(up, down) < SLOW:
        return warn("s3 speed", about, machine.SLOW_STORE)
    return fine("s3 speed", about)


def skew(connection: Connection) -> float | None:
    """Seconds that this machine's clock is ahead of the store's; None where the store does not tell."""
    address = connection.endpoint or f"https://s3.{connection.region}.amazonaws.com"
    request = urllib.request.Request(f"{address}/", method="HEAD")  # noqa: S310 - checked to be http(s)
    context = ssl.create_default_context(cafile=connection.ca_bundle) if address.startswith("https") else None
    handlers: list[urllib.request.BaseHandler] = []
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    before = time.time()
    try:
        with urllib.request.build_opener(*handlers).open(request, timeout=connection.silence) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:  # without a signature most stores refuse, and tell the time
        with error:
            date = error.headers.get("Date")
    except (OSError, http.client.HTTPException, ValueError):
        return None  # the access check says why
    middle = (before + time.time()) / 2
    try:
        # A date has whole seconds.
        return middle - parsedate_to_datetime(date).timestamp() - 0.5 if date else None
    except ValueError:
        return None


if __name__ == "__main__":
    main()
