"""The object store: of the workdir, of the document or the options, or a server of our own.

Tried in a process of its own: its environment may name another store than the command's, and S3 clients take
time to import.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, graded, of_error, skew
from zhongjing.cli.diagnosis.probes import clean_up_with, remove
from zhongjing.codes import machine
from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import ZhongjingError

if TYPE_CHECKING:
    from zhongjing.cli.diagnosis.checks import Situation
    from zhongjing.storage.connection import Connection
    from zhongjing.storage.credentials import Access
    from zhongjing.storage.objects import ObjectStore

SECONDS = 60.0  # a server of our own takes 4 s, an unreachable store its deadline
DEADLINE = 5.0  # seconds that an outage is borne, of each request
SPEED_BYTES = 8 * 2**20
SLOW = 2.0  # MB/s


def store(situation: Situation) -> list[Finding]:
    """Tries the store that was named; else the workdir's, or with none running a server of our own."""
    if situation.storage is not None:
        return _try(situation, situation.storage, situation.environment)
    if not situation.local:
        said = "not checked: no store was named (--storage s3://bucket/prefix, or -f document.yaml)"
        return [fine("s3", said)]
    from zhongjing.backends.local.workdir import LOCAL_ROOT, Workdir

    workdir = Workdir(situation.workdir)
    record, own = workdir.live_record(), workdir.environment()
    if record is not None and record.ready and own:
        kept = {name: value for name, value in situation.environment.items() if not name.startswith("AWS_")}
        return _try(situation, Storage(uri=LOCAL_ROOT), {**kept, **own})
    folder = str(situation.probes.folder() / "s3")
    return _try(situation, Storage(uri=LOCAL_ROOT), situation.environment, serve=folder)


def _try(
    situation: Situation, storage: Storage, environment: Mapping[str, str], serve: str | None = None
) -> list[Finding]:
    hasty = storage.model_copy(update={"deadline_seconds": min(DEADLINE, storage.deadline_seconds)})
    return situation.probes.run(
        f"{__name__}:probe",
        {"s3": machine.CHECK_BROKE},
        seconds=SECONDS,
        environment=environment,
        storage=hasty.model_dump_json(),
        serve=serve,
    )


def probe(storage: str, serve: str | None = None) -> Iterator[Finding]:
    """Tries a store: clock, access, conditional writes, speed. Leaves nothing in it.

    Args:
        storage: its settings as JSON.
        serve: folder to start a server of our own in, which is then the store.
    """
    from zhongjing.storage.connection import Connection
    from zhongjing.storage.objects import open_store
    from zhongjing.storage.probe import try_object

    settings, given = Storage.model_validate_json(storage), None
    step = "s3 server"
    try:
        if serve is not None:
            started, given = _serve(Path(serve), settings)
            yield started
        step = "s3 access"
        connection = Connection.of(settings, given)
        ahead = clock_skew(connection)
        if ahead is not None:
            yield skew("s3 clock", ahead, connection.name, "signatures are refused")
        opened = open_store(settings, given)
        folder = f"{settings.uri.rstrip('/')}/.zhongjing-doctor-{uuid.uuid4().hex[:12]}"
        yield fine("s3 access", try_object(opened, folder))
    except ZhongjingError as error:
        yield of_error(step, error)
        return
    for step, attempt in (("s3 conditions", conditions), ("s3 speed", speed)):
        try:
            yield attempt(opened, folder)
        except ZhongjingError as error:
            yield of_error(step, error)


def _serve(folder: Path, storage: Storage) -> tuple[Finding, Access]:
    """Starts a server of our own; how it is reached."""
    from zhongjing.storage.admin import BucketAdmin
    from zhongjing.storage.embedded import EmbeddedS3

    server = EmbeddedS3(folder)
    clean_up_with(server.stop)
    clean_up_with(lambda: remove(folder))
    began = time.monotonic()
    server.start()
    BucketAdmin(storage, server.access).ensure_bucket(storage.uri)
    said = f"a server of its own started in {time.monotonic() - began:.1f} s"
    return fine("s3 server", said), server.access


def conditions(store: ObjectStore, folder: str) -> Finding:
    """Whether a second writer is refused: what decides who completed a stage."""
    store.require_conditional_writes(folder)
    said = "a second write with If-None-Match is refused, a changed one with If-Match too"
    return fine("s3 conditions", said)


def speed(store: ObjectStore, folder: str) -> Finding:
    """Megabytes a second of one object, up and down: fast enough for checkpoints?"""
    uri, data = f"{folder}/speed", os.urandom(SPEED_BYTES)
    began = time.monotonic()
    store.put(uri, data)
    try:
        half = time.monotonic()
        same = store.get(uri) == data
        up, down = (SPEED_BYTES / 1e6 / each for each in (half - began, time.monotonic() - half))
    finally:
        store.delete(uri)
    if not same:
        return fails("s3 speed", "other bytes are read than were written", codes.DAMAGED_OBJECT)
    about = f"{up:.1f} MB/s up, {down:.1f} MB/s down (one object of {SPEED_BYTES // 2**20} MiB)"
    return graded("s3 speed", about, machine.SLOW_STORE, poor=min(up, down) < SLOW)


def clock_skew(connection: Connection) -> float | None:
    """Seconds that this machine's clock is ahead of the store's; None where the store does not tell."""
    address = connection.endpoint or f"https://s3.{connection.region}.amazonaws.com"
    request = urllib.request.Request(f"{address}/", method="HEAD")  # noqa: S310 - checked to be http(s)
    before = time.time()
    try:
        context = ssl.create_default_context(cafile=connection.ca_bundle)
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        with opener.open(request, timeout=connection.silence) as answer:
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
