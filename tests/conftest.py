"""Fixtures that every test may use: a real S3 server for the session, a folder in it for each test."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from zhongjing.config.sources import Storage
from zhongjing.storage.embedded import EmbeddedS3
from zhongjing.storage.objects import ObjectStore, open_store

_numbers = itertools.count()
_shared: list[str] = []  # the one bucket of the session, once it is made

# Before torch is imported: a tiny model is no faster on many threads, and xdist's workers share the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_LONGEST = (
    *("test_sudden_death.py", "test_published_base.py", "test_tutorial.py", "test_data_cache.py"),
    *("test_pipeline.py", "test_backend_local.py", "test_bad_input.py", "test_storage_server.py"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: no worker ends with one of them while the others have nothing to do."""
    rank = {name: at for at, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    """A SeaweedFS server on loopback, started once (3 to 5 s) and shared."""
    with EmbeddedS3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3_environment(s3_server: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The server's endpoint and credentials, set in this process and for its children."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = s3_server.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return environment


def _bucket(name: str) -> str:
    from zhongjing.storage.admin import BucketAdmin

    uri = f"s3://test-{os.getpid()}-{name}"
    BucketAdmin(Storage(uri=uri)).ensure_bucket(uri)
    return uri


@pytest.fixture
def bucket_uri(s3_environment: dict[str, str]) -> str:
    """A folder of the test's own, empty as a new bucket is: ``s3://test-.../...``."""
    if not _shared:
        _shared.append(_bucket("all"))
    return f"{_shared[0]}/{next(_numbers)}"


@pytest.fixture
def new_bucket(s3_environment: dict[str, str]) -> str:
    """A new bucket, for what looks at all of one: ``s3://test-...``. Takes up to a second to make."""
    return _bucket(str(next(_numbers)))


@pytest.fixture
def storage(bucket_uri: str) -> Storage:
    """Settings of the test's bucket; a short deadline keeps failing tests short."""
    return Storage(uri=bucket_uri, deadline_seconds=20)


@pytest.fixture
def store(storage: Storage) -> ObjectStore:
    """A store on the test's bucket."""
    return open_store(storage)


FULL_DISK_BYTES = 8 << 20


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own that is full after 8 MiB. Needs the right to mount; skipped where there is none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = f"size={FULL_DISK_BYTES},mode=700"
    mount = ["mount", "-t", "tmpfs", "-o", options, "zhongjing-test", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount(8) on this machine")
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazy: what still has a file open there must not keep the mount.
        subprocess.run(["umount", "-l", str(folder)], check=True)
