"""The object store: bytes in and out of S3, addressed by full ``s3://`` URIs.

The only door to stored bytes for the rest of the project. It is made from the document's storage settings
and an access. It may be pickled into any process, which uses its own access: no secret travels with it.
Do not use one store on both sides of a fork; its client's threads stay behind.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import datetime
from io import BufferedReader, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import obstore

from zhongjing.codes import storage as codes
from zhongjing.config.sources import Storage
from zhongjing.errors import ConflictError, NotFoundError, StorageError
from zhongjing.storage import failures, globs
from zhongjing.storage.client import PART_BYTES, TRANSFERS, Clients, in_parallel, part_size
from zhongjing.storage.connection import Connection, split_uri
from zhongjing.storage.credentials import Access
from zhongjing.storage.documents import damaged, parse_json, parse_record, record_bytes
from zhongjing.storage.files import describe_folder, disk_error, is_intact, path_inside, write_at
from zhongjing.storage.heartbeat import beat
from zhongjing.storage.manifest import ModelFile, Record
from zhongjing.storage.refusals import lacks_conditions

if TYPE_CHECKING:
    from obstore import ObjectMeta, PutMode
    from obstore.store import S3Store

T = TypeVar("T")
R = TypeVar("R", bound=Record)

# ObjectStore has a method called list, which hides the type inside the class.
ModelFiles: TypeAlias = list[ModelFile]
Paths: TypeAlias = list[Path]


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What a listing tells of an object; ``size`` in bytes."""

    uri: str
    size: int
    etag: str
    last_modified: datetime


ObjectInfos: TypeAlias = list[ObjectInfo]


class ObjectStore:
    """Objects of any bucket that the credentials reach. Safe to use from several threads.

    Every method may raise:
        StorageUnavailableError: no answer within ``storage.deadline_seconds``; may be tried again.
        StorageError: wrong credentials, missing bucket, or another refusal, with its remedy.
        ConfigError: no credentials, or a URI that is not s3://.
    """

    def __init__(self, storage: Storage, access: Access | None = None, waits: bool = True) -> None:
        self.storage = storage
        self.connection = Connection.of(storage, access, waits=waits)
        self._clients = Clients(self.connection)
        self._known_buckets: set[str] = set()

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[Storage, None, bool]]:
        return (ObjectStore, (self.storage, None, self.connection.waits))

    # Reading

    def get(self, uri: str) -> bytes:
        """The whole object.

        Raises:
            NotFoundError: there is no such object.
        """

        def read(client: S3Store, key: str) -> bytes:
            answer = obstore.get(client, key)
            data = answer.bytes().to_bytes()
            if len(data) != answer.meta["size"]:
                raise failures.PassingError(f"got {len(data)} of {answer.meta['size']} bytes")
            return data

        return self._run(uri, read)

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from byte ``start`` on.

        Raises:
            NotFoundError: there is no such object.
            StorageError: the object ends before ``start + length``.
        """
        if length == 0:
            return b""

        def read(client: S3Store, key: str) -> bytes:
            return obstore.get_range(client, key, start=start, length=length).to_bytes()

        data = b""
        try:
            data = self._run(uri, read)
        except StorageError as error:
            if "HTTP 416" not in error.message:
                raise
        beat()
        if len(data) != length:
            raise StorageError(
                f"the object is shorter than expected: bytes {start} to {start + length} were asked for, "
                f"{len(data)} of them exist",
                code=codes.DAMAGED_OBJECT,
                where=uri,
                remedy="the object is damaged or was replaced; make it anew",
            )
        return data

    def get_file(self, uri: str, path: Path, told: Callable[[int], None] | None = None) -> ObjectInfo:
        """Downloads into ``path``, which appears whole or not at all.

        Reads ranges of 16 MiB, four at a time, each retried by itself: an outage costs one range.

        Args:
            uri: the object.
            path: the file.
            told: is called in this thread with the bytes of each range that arrived; what it raises ends the
                download.

        Raises:
            NotFoundError: there is no such object.
            ConflictError: the object was replaced while it was read.
            StorageError: the disk is full.
        """
        info = self.stat(uri)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        try:
            with partial.open("wb") as file, closing(self._read_ranges(info, file.fileno())) as ranges:
                for length in ranges:
                    if told is not None:
                        told(length)
            if partial.stat().st_size != info.size:
                raise StorageError(
                    f"{partial.stat().st_size} bytes arrived of {info.size}",
                    code=codes.OBJECT_CHANGED,
                    where=uri,
                )
            partial.replace(path)
        except OSError as error:
            raise disk_error(error, path) from error
        finally:
            partial.unlink(missing_ok=True)
        return info

    def _read_ranges(self, info: ObjectInfo, descriptor: int) -> Generator[int]:
        """Writes the object into a file; yields the bytes of each range."""

        def fetch(start: int) -> int:
            end = min(start + PART_BYTES, info.size)

            def read(client: S3Store, key: str) -> bytes:
                answer = obstore.get(client, key, options={"range": (start, end), "if_match": info.etag})
                data = answer.bytes().to_bytes()
                if len(data) != end - start:
                    raise failures.PassingError(f"got {len(data)} of {end - start} bytes")
                return data

            write_at(descriptor, self._run(info.uri, read), start)
            beat()
            return end - start

        yield from in_parallel(fetch, range(0, info.size, PART_BYTES))

    def head(self, uri: str) -> ObjectInfo | None:
        """Size, ETag and time of an object, or None if there is none."""
        try:
            return self.stat(uri)
        except NotFoundError:
            return None

    def stat(self, uri: str) -> ObjectInfo:
        """Like :meth:`head`.

        Raises:
            NotFoundError: there is no such object.
        """
        bucket, _ = split_uri(uri)
        try:
            return _info(bucket, self._run(uri, obstore.head))
        except NotFoundError:
            # A HEAD has no body, so it cannot tell a missing object from a missing bucket: ask once.
            if bucket not in self._known_buckets:
                self._run(uri, lambda client, _: obstore.list_with_delimiter(client, "-"))
            raise

    def exists(self, uri: str) -> bool:
        """Whether the object is there."""
        return self.head(uri) is not None

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        """All objects below a folder, at any depth, by key. ``s3://b/a`` does not list ``s3://b/ab``."""
        bucket, _ = split_uri(prefix_uri)
        last: str | None = None
        found: list[ObjectInfo] = []

        def read(client: S3Store, key: str) -> None:
            # After a failure the listing goes on behind the last key that arrived.
            nonlocal last
            for chunk in obstore.list(client, key.rstrip("/") or None, offset=last, chunk_size=1000):
                found.extend(_info(bucket, meta) for meta in chunk)
                if chunk:
                    last = max(meta["path"] for meta in chunk)

        self._run(prefix_uri, read)
        return iter(sorted(found, key=lambda info: info.uri))

    def glob(self, uri: str) -> ObjectInfos:
        """Objects that ``uri`` stands for, by key: a pattern, a folder (trailing ``/``) or one object.

        ``*`` and ``?`` stay inside a segment, ``**`` crosses segments. Nothing found is an empty list.
        """
        bucket, key = split_uri(uri)
        if uri.endswith("/") and not globs.is_glob(key):
            return list(self.list(uri))
        if not globs.is_glob(key):
            info = self.head(uri)
            return [] if info is None else [info]
        pattern = globs.pattern_of(key + "**" if key.endswith("/") else key)
        base = f"s3://{bucket}/"
        return [
            info
            for info in self.list(base + globs.fixed_folder(key))
            if pattern.fullmatch(info.uri.removeprefix(base))
        ]

    # Writing

    def put(self, uri: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Writes an object and returns its ETag; readers see the old bytes or the new, never a mixture.

        Args:
            uri: where.
            data: the object's bytes.
            if_none_match: only when there is no such object yet.
            if_match: only when the object still has this ETag.

        Raises:
            StorageError: the store has no conditional writes (``NoConditionalWrites``).
            ConflictError: the condition did not hold. After an answer that was lost this may be due to
                one's own write: use :meth:`put_once` where the bytes tell whose they are.
        """
        mode: PutMode = "overwrite"
        if if_none_match:
            mode = "create"
        elif if_match is not None:
            mode = {"e_tag": if_match}
        conditional = mode != "overwrite"
        multipart = not conditional and len(data) > 2 * PART_BYTES

        def write(client: S3Store, key: str) -> str:
            result = obstore.put(
                client,
                key,
                data,
                mode=mode,
                use_multipart=multipart,
                chunk_size=part_size(len(data)),
                max_concurrency=TRANSFERS,
            )
            return result["e_tag"] or ""

        try:
            return self._run(uri, write, patient=multipart)
        except StorageError as error:
            if conditional and "HTTP 501" in error.message:
                raise lacks_conditions(uri, error.message) from None
            raise

    def put_once(self, uri: str, data: bytes) -> str:
        """Writes an object that must not exist yet; identical bytes that are there already are one's own.

        So a write whose answer was lost is recognised, provided that ``data`` names its writer.

        Raises:
            ConflictError: another writer's bytes are there.
        """
        try:
            return self.put(uri, data, if_none_match=True)
        except ConflictError:
            if self.get(uri) != data:
                raise
            return self.stat(uri).etag

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        """Uploads a file, in parts when it is large, and checks the size that arrived.

        Raises:
            StorageError: the file cannot be read, or changed while it was read.
        """
        try:
            size = path.stat().st_size
        except OSError as error:
            raise disk_error(error, path) from error
        multipart = size > PART_BYTES

        def write(client: S3Store, key: str) -> None:
            with _Counted(FileIO(path)) as file:
                obstore.put(
                    client,
                    key,
                    file,
                    use_multipart=multipart,
                    chunk_size=part_size(size),
                    max_concurrency=TRANSFERS,
                )

        self._run(uri, write, patient=multipart)
        info = self.stat(uri)
        if info.size != size:
            raise StorageError(
                f"{info.size} bytes are stored of the {size} of {path}",
                code=codes.INCOMPLETE_UPLOAD,
                where=uri,
            )
        return info

    def delete(self, uris: str | Iterable[str]) -> None:
        """Deletes objects; those that do not exist are none."""
        by_bucket: dict[str, list[str]] = {}
        for uri in [uris] if isinstance(uris, str) else uris:
            bucket, key = split_uri(uri)
            by_bucket.setdefault(bucket, []).append(key)
        for bucket, keys in by_bucket.items():
            for start in range(0, len(keys), 1000):
                batch = keys[start : start + 1000]
                self._run(
                    f"s3://{bucket}/{batch[0]}",
                    lambda client, _, batch=batch: obstore.delete(client, batch),  # type: ignore[misc]
                )

    def delete_folder(self, uri: str, keep: Iterable[str] = ()) -> int:
        """Deletes everything below a folder but the names to keep; returns how many objects that were."""
        kept = {f"{uri}/{name}" for name in keep}
        found = [info.uri for info in self.list(uri) if info.uri not in kept]
        self.delete(found)
        return len(found)

    # Folders

    def upload_folder(self, folder: Path, uri: str) -> ModelFiles:
        """Uploads every file below ``folder`` and returns name, size and sha256 of each, by name."""
        files = describe_folder(folder)
        for file in files:
            self.put_file(f"{uri}/{file.name}", folder / file.name)
        return files

    def download_folder(
        self,
        uri: str,
        folder: Path,
        files: Sequence[ModelFile] | None = None,
        watch: Callable[[float], None] = beat,
    ) -> Paths:
        """Downloads a folder; with ``files``, exactly those, each checked by size and sha256.

        A file that is there already with the right digest is kept, so a broken download goes on.

        Args:
            uri: the stored folder.
            folder: the local one.
            files: what is to be in it.
            watch: is told how much of the bytes is there, 0 to 1, range by range; what it raises ends the
                download.

        Raises:
            NotFoundError: one of ``files`` is missing, or without ``files`` the folder is empty.
            StorageError: a file's content is not what ``files`` says.
        """
        if files is None:
            infos = list(self.list(uri))
            if not infos:
                raise NotFoundError("there is no such folder", code=codes.OBJECT_NOT_FOUND, where=uri)
            sizes = {info.uri.removeprefix(f"{uri.rstrip('/')}/"): info.size for info in infos}
            expected: dict[str, ModelFile] = {}
        else:
            sizes = {file.name: file.size for file in files}
            expected = {file.name: file for file in files}
        paths: list[Path] = []
        total, done = max(1, sum(sizes.values())), 0

        def told(length: int) -> None:
            nonlocal done
            done += length
            watch(min(1.0, done / total))

        for name, size in sizes.items():
            path = path_inside(folder, name, uri)
            paths.append(path)
            file = expected.get(name)
            if file is not None and path.is_file() and is_intact(path, file):
                told(size)
                continue
            self.get_file(f"{uri}/{name}", path, told)
            if file is not None and not is_intact(path, file):
                path.unlink()
                raise damaged(
                    "the object's content is not what its manifest says: it is damaged or was replaced",
                    f"{uri}/{name}",
                )
        return paths

    # Documents

    def get_json(self, uri: str) -> Any:
        """A JSON document.

        Raises:
            NotFoundError: there is no such object.
            StorageError: it is not JSON.
        """
        return parse_json(self.get(uri), uri)

    def put_json(
        self, uri: str, value: Any, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Writes a JSON document, UTF-8; conditions and errors as in :meth:`put`."""
        data = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True).encode()
        return self.put(uri, data, if_none_match=if_none_match, if_match=if_match)

    def get_record(self, uri: str, kind: type[R]) -> R:
        """A stored record.

        Raises:
            NotFoundError: there is no such object.
            StorageError: it is damaged, or of a newer version than this program knows.
        """
        return parse_record(self.get_json(uri), kind, uri)

    def find_record(self, uri: str, kind: type[R]) -> R | None:
        """A stored record, or None if there is none. Raises as :meth:`get_record` does."""
        try:
            return self.get_record(uri, kind)
        except NotFoundError:
            return None

    def put_record(
        self, uri: str, record: Record, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        """Writes a record; conditions and errors as in :meth:`put`."""
        return self.put(uri, record_bytes(record), if_none_match=if_none_match, if_match=if_match)

    # The server

    def require_conditional_writes(self, folder: str) -> None:
        """Tries If-None-Match and If-Match on an object of its own.

        Some servers ignore the headers, and then two attempts could both believe that they finished.

        Raises:
            StorageError: the server ignores them, or does not know them.
        """
        uri = f"{folder.rstrip('/')}/.probe-{uuid.uuid4().hex}"
        try:
            etag = self.put(uri, b"1", if_none_match=True)
            refused = [
                self._conflicts(uri, b"2", if_none_match=True),
                self._conflicts(uri, b"3", if_match='"0123456789abcdef0123456789abcdef"'),
                not self._conflicts(uri, b"4", if_match=etag),
                self._conflicts(uri, b"5", if_match=etag),
            ]
            if not all(refused):
                raise lacks_conditions(folder)
        finally:
            self.delete(uri)

    def _conflicts(
        self, uri: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> bool:
        try:
            self.put(uri, data, if_none_match=if_none_match, if_match=if_match)
        except ConflictError:
            return True
        return False

    def _run(self, uri: str, action: Callable[[S3Store, str], T], *, patient: bool = False) -> T:
        result = self._clients.call(uri, action, patient=patient)
        self._known_buckets.add(split_uri(uri)[0])
        return result


def open_store(storage: Storage, access: Access | None = None, *, waits: bool = True) -> ObjectStore:
    """The store of a document's settings; nothing is sent before its first use.

    Args:
        storage: the settings.
        access: address and keys; None: those of this process's environment.
        waits: whether a call bears an outage until the deadline; if not, it fails at once (and may be tried
            again by whom it concerns).

    Raises:
        ConfigError: the endpoint or the CA bundle cannot be used.
    """
    return ObjectStore(storage, access, waits)


class _Counted(BufferedReader):
    """A file whose reading is work: it is read no further ahead than the parts under way."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads, and beats."""
        beat()
        return super().read(size)


def _info(bucket: str, meta: ObjectMeta) -> ObjectInfo:
    return ObjectInfo(
        uri=f"s3://{bucket}/{meta['path']}",
        size=meta["size"],
        etag=meta["e_tag"] or "",
        last_modified=meta["last_modified"],
    )
