"""The object store against a real SeaweedFS."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest

from zhongjing.config.sources import Storage
from zhongjing.errors import ConflictError, CredentialsError, NotFoundError, StorageError
from zhongjing.storage.admin import BucketAdmin
from zhongjing.storage.client import PART_BYTES
from zhongjing.storage.files import sha256_of
from zhongjing.storage.manifest import ModelFile
from zhongjing.storage.objects import ObjectStore, open_store

pytestmark = pytest.mark.integration


@pytest.mark.parametrize("key", ["a", "a b/中文 #1%20*.json", "x/y+z&?=;.bin", "deep/er/est/é"])
def test_any_key_round_trips(key: str, store: ObjectStore, bucket_uri: str) -> None:
    uri = f"{bucket_uri}/{key}"
    etag = store.put(uri, b"content")
    assert store.get(uri) == b"content"
    info = store.head(uri)
    assert info is not None
    assert (info.uri, info.size, info.etag) == (uri, 7, etag)
    assert [found.uri for found in store.list(bucket_uri)] == [uri]
    store.delete(uri)
    assert not store.exists(uri)
    store.delete(uri)  # what does not exist is deleted already


def test_empty_object(store: ObjectStore, bucket_uri: str, tmp_path: Path) -> None:
    store.put(f"{bucket_uri}/empty", b"")
    assert store.get(f"{bucket_uri}/empty") == b""
    store.get_file(f"{bucket_uri}/empty", tmp_path / "empty")
    assert (tmp_path / "empty").read_bytes() == b""


def test_range_is_exact_or_an_error(store: ObjectStore, bucket_uri: str) -> None:
    uri = f"{bucket_uri}/range"
    store.put(uri, bytes(range(100)))
    assert store.get_range(uri, 10, 5) == bytes(range(10, 15))
    assert store.get_range(uri, 95, 5) == bytes(range(95, 100))
    assert store.get_range(uri, 10, 0) == b""
    for start, length in ((95, 6), (100, 1), (500, 10)):
        with pytest.raises(StorageError, match="shorter than expected"):
            store.get_range(uri, start, length)
    with pytest.raises(NotFoundError):
        store.get_range(f"{bucket_uri}/none", 0, 1)


def test_large_file_goes_in_parts_and_comes_back_equal(
    store: ObjectStore, bucket_uri: str, tmp_path: Path
) -> None:
    source, copy = tmp_path / "source", tmp_path / "folder" / "copy"
    block = os.urandom(1 << 20)
    with source.open("wb") as file:
        for number in range(3 * PART_BYTES // (1 << 20)):
            file.write(number.to_bytes(4, "little") + block)
    info = store.put_file(f"{bucket_uri}/large", source)
    assert info.size == source.stat().st_size
    assert "-" in info.etag, "S3 marks multipart uploads so"
    store.get_file(f"{bucket_uri}/large", copy)
    assert sha256_of(copy) == sha256_of(source)
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


def test_a_download_tells_its_bytes_and_can_be_ended(
    store: ObjectStore, bucket_uri: str, tmp_path: Path
) -> None:
    store.put(f"{bucket_uri}/m/large", bytes(2 * PART_BYTES + 5))
    store.put(f"{bucket_uri}/m/small", bytes(100))
    fractions: list[float] = []
    store.download_folder(f"{bucket_uri}/m", tmp_path / "all", watch=fractions.append)
    total = 2 * PART_BYTES + 105
    assert fractions == [
        PART_BYTES / total,
        2 * PART_BYTES / total,
        (2 * PART_BYTES + 5) / total,
        1.0,
    ]

    class StopError(Exception):
        pass

    def stop(fraction: float) -> None:
        raise StopError

    with pytest.raises(StopError):
        store.download_folder(f"{bucket_uri}/m", tmp_path / "none", watch=stop)
    assert list((tmp_path / "none").iterdir()) == []


def test_failed_download_leaves_the_old_file(store: ObjectStore, bucket_uri: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(NotFoundError):
        store.get_file(f"{bucket_uri}/none", path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_list_is_by_folder_not_by_letters(store: ObjectStore, new_bucket: str) -> None:
    for key in ("a/1", "a/b/2", "ab/3", "a.txt"):
        store.put(f"{new_bucket}/{key}", b"x")
    assert [info.uri for info in store.list(f"{new_bucket}/a")] == [
        f"{new_bucket}/a/1",
        f"{new_bucket}/a/b/2",
    ]
    assert [info.uri for info in store.list(f"{new_bucket}/a/")] == [
        f"{new_bucket}/a/1",
        f"{new_bucket}/a/b/2",
    ]
    assert len(list(store.list(new_bucket))) == 4
    assert list(store.list(f"{new_bucket}/none")) == []


def test_list_beyond_one_page(store: ObjectStore, bucket_uri: str) -> None:
    uris = [f"{bucket_uri}/many/{number:05d}" for number in range(1203)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda uri: store.put(uri, b"x"), uris))
    assert [info.uri for info in store.list(f"{bucket_uri}/many")] == uris
    assert store.delete_folder(f"{bucket_uri}/many") == 1203
    assert list(store.list(bucket_uri)) == []


def test_glob(store: ObjectStore, new_bucket: str) -> None:
    for key in ("data/a.json", "data/b.json", "data/sub/c.json", "data/d.txt"):
        store.put(f"{new_bucket}/{key}", b"x")

    def names(pattern: str) -> list[str]:
        return [
            info.uri.removeprefix(f"{new_bucket}/data/") for info in store.glob(f"{new_bucket}/{pattern}")
        ]

    assert names("data/*.json") == ["a.json", "b.json"]
    assert names("data/**/*.json") == ["a.json", "b.json", "sub/c.json"]
    assert names("data/") == ["a.json", "b.json", "d.txt", "sub/c.json"]
    assert names("data/*/") == ["sub/c.json"]
    assert names("data/d.txt") == ["d.txt"]
    assert names("data/none.txt") == []
    assert names("none/*.json") == []


def test_sixteen_racers_have_one_winner(store: ObjectStore, bucket_uri: str) -> None:
    uri, barrier = f"{bucket_uri}/race", Barrier(16)

    def race(number: int) -> bool:
        barrier.wait()
        try:
            store.put(uri, f"racer {number}".encode(), if_none_match=True)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(16) as pool:
        won = list(pool.map(race, range(16)))
    assert won.count(True) == 1
    assert store.get(uri) == f"racer {won.index(True)}".encode()


def test_if_match(store: ObjectStore, bucket_uri: str) -> None:
    uri = f"{bucket_uri}/current.json"
    with pytest.raises(ConflictError):
        store.put(uri, b"0", if_match='"0123456789abcdef0123456789abcdef"')
    first = store.put(uri, b"1")
    second = store.put(uri, b"2", if_match=first)
    with pytest.raises(ConflictError):
        store.put(uri, b"3", if_match=first)
    assert store.get(uri) == b"2"
    store.put(uri, b"4", if_match=second)
    assert store.get(uri) == b"4"


def test_put_once(store: ObjectStore, bucket_uri: str) -> None:
    uri = f"{bucket_uri}/once"
    etag = store.put_once(uri, b"by attempt 1")
    assert store.put_once(uri, b"by attempt 1") == etag
    with pytest.raises(ConflictError):
        store.put_once(uri, b"by attempt 2")


def test_this_server_has_conditional_writes(store: ObjectStore, bucket_uri: str) -> None:
    store.require_conditional_writes(f"{bucket_uri}/prefix")
    assert list(store.list(bucket_uri)) == []


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch: The request signature"),
        ("AWS_ACCESS_KEY_ID", "AKIDWRONG", "InvalidAccessKeyId: The access key ID"),
    ],
)
def test_wrong_credentials_are_told_in_the_stores_own_words(
    name: str, value: str, words: str, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    store = open_store(storage)
    for act in (
        lambda: store.get(f"{storage.uri}/a"),
        lambda: store.put(f"{storage.uri}/a", b"1"),
        lambda: list(store.list(storage.uri)),
        lambda: store.exists(f"{storage.uri}/a"),  # the answer to a HEAD has no reason: it is asked for
        lambda: BucketAdmin(storage).bucket_exists(storage.uri),
    ):
        with pytest.raises(CredentialsError, match=f"does not accept these credentials .*{words}") as caught:
            act()
        assert "AWS_ACCESS_KEY_ID" in caught.value.remedy


def test_missing_bucket(store: ObjectStore, tmp_path: Path) -> None:
    uri = "s3://no-such-bucket/a"
    (tmp_path / "file").write_bytes(b"1")
    for action in (
        lambda: store.get(uri),
        lambda: store.put(uri, b"1"),
        lambda: store.put(uri, b"1", if_none_match=True),
        lambda: store.exists(uri),
        lambda: list(store.list(uri)),
        lambda: store.put_file(uri, tmp_path / "file"),
        lambda: store.get_file(uri, tmp_path / "other"),
    ):
        with pytest.raises(StorageError, match="bucket 'no-such-bucket' does not exist") as caught:
            action()
        assert not isinstance(caught.value, NotFoundError)


def test_folder_round_trip_and_damage(store: ObjectStore, bucket_uri: str, tmp_path: Path) -> None:
    source, uri = tmp_path / "source", f"{bucket_uri}/model"
    (source / "sub").mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "sub" / "weights.bin").write_bytes(os.urandom(100_000))
    files = store.upload_folder(source, uri)
    assert [file.name for file in files] == ["config.json", "sub/weights.bin"]
    paths = store.download_folder(uri, tmp_path / "copy", files)
    assert [path.read_bytes() for path in paths] == [(source / file.name).read_bytes() for file in files]
    assert len(store.download_folder(uri, tmp_path / "all")) == 2

    content = (source / "sub" / "weights.bin").read_bytes()
    for damaged in (content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        store.put(f"{uri}/sub/weights.bin", damaged)
        with pytest.raises(StorageError, match="damaged") as caught:
            store.download_folder(uri, tmp_path / "damaged", files)
        assert caught.value.where == f"{uri}/sub/weights.bin"
        assert not (tmp_path / "damaged" / "sub" / "weights.bin").exists()
    # What is whole already is not fetched again: the copy is good although the store's is not.
    store.download_folder(uri, tmp_path / "copy", files)
    store.delete(f"{uri}/sub/weights.bin")
    with pytest.raises(NotFoundError):
        store.download_folder(uri, tmp_path / "damaged", files)
    with pytest.raises(NotFoundError):
        store.download_folder(f"{bucket_uri}/none", tmp_path / "none")


def test_hostile_file_name(store: ObjectStore, bucket_uri: str, tmp_path: Path) -> None:
    file = ModelFile(name="../../escape", size=1, sha256="")
    with pytest.raises(StorageError, match="leads out"):
        store.download_folder(f"{bucket_uri}/model", tmp_path / "folder", [file])


def test_disk_that_takes_no_more(store: ObjectStore, bucket_uri: str, tmp_path: Path) -> None:
    store.put(f"{bucket_uri}/large", bytes(4 << 20))
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from zhongjing.config.sources import Storage\n"
        "from zhongjing.errors import StorageError\n"
        "from zhongjing.storage.objects import open_store\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try:\n"
        "    open_store(Storage()).get_file(sys.argv[1], Path(sys.argv[2]))\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    arguments = [sys.executable, "-c", script, f"{bucket_uri}/large", str(tmp_path / "file")]
    told = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    assert f"{tmp_path / 'file'}: the disk is full" in told
    assert list(tmp_path.iterdir()) == []


def test_store_in_another_process(store: ObjectStore, bucket_uri: str) -> None:
    store.put(f"{bucket_uri}/a", b"from the first")
    script = (
        "import pickle, sys; store = pickle.loads(sys.stdin.buffer.read()); "
        f"print(store.get('{bucket_uri}/a').decode())"
    )
    told = subprocess.run(
        [sys.executable, "-c", script], input=pickle.dumps(store), capture_output=True, check=True
    )
    assert told.stdout.decode().strip() == "from the first"
