"""Files of this machine on their way into the store, where they are addressed by their content."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zhongjing.codes.data import UNREADABLE_SOURCE
from zhongjing.errors import DataError
from zhongjing.storage.files import sha256_of
from zhongjing.storage.objects import ObjectStore

# Called with the file's name, the bytes of it that are done, and its size.
OnUpload = Callable[[str, int, int], None]

_PARALLEL = 4


@dataclass(frozen=True)
class LocalFile:
    """A file of this machine, and where it goes. ``size`` in bytes."""

    path: Path
    uri: str
    size: int


def hash_files(paths: Sequence[Path]) -> list[tuple[int, str]]:
    """Size in bytes and SHA-256 of files.

    Raises:
        DataError: one cannot be read.
    """
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="hash") as pool:
        return list(pool.map(_hash, paths))


def _hash(path: Path) -> tuple[int, str]:
    try:
        return path.stat().st_size, sha256_of(path)
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}", code=UNREADABLE_SOURCE, where=str(path)
        ) from error


def upload_files(store: ObjectStore, files: Sequence[LocalFile], on_upload: OnUpload | None = None) -> int:
    """Sends what is not there yet; returns how many files that were.

    Args:
        store: where they go.
        files: which.
        on_upload: is told when a file begins, if it has to be sent, and when it is there.
    """

    def send(file: LocalFile) -> bool:
        there = store.head(file.uri)
        missing = there is None or there.size != file.size
        if missing:
            tell(file.path.name, 0, file.size)
            store.put_file(file.uri, file.path)
        tell(file.path.name, file.size, file.size)
        return missing

    tell: OnUpload = on_upload or (lambda name, done, size: None)
    with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="upload") as pool:
        try:
            return sum(pool.map(send, files))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)  # Ctrl-C does not wait for what has not begun
            raise
