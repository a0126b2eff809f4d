"""Local files on their way to and from the store: digests, safe paths, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import re
from pathlib import Path

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.manifest import ModelFile

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# The last is torch.save's, whose archive writer finds less written than it gave.
_FULL_WORDS = re.compile(
    rf"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}|inline_container\.cc.*unexpected pos"
)


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def block_digests(path: Path, block_bytes: int) -> list[str]:
    """Hex sha256 of each block of a file; the last may be shorter.

    Raises:
        StorageError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return [hashlib.sha256(block).hexdigest() for block in iter(lambda: file.read(block_bytes), b"")]
    except OSError as error:
        raise disk_error(error, path) from error


def describe_folder(folder: Path) -> list[ModelFile]:
    """Name (relative, with ``/``), size and sha256 of every file below ``folder``, by name.

    Raises:
        StorageError: the folder does not exist or cannot be read.
    """
    if not folder.is_dir():
        raise StorageError("there is no such folder", code=codes.UNUSABLE_FILE, where=str(folder))
    try:
        return [
            ModelFile(
                name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=sha256_of(path)
            )
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        ]
    except OSError as error:
        raise disk_error(error, folder) from error


def is_intact(path: Path, file: ModelFile) -> bool:
    """Whether a local file is what ``file`` says. The size is compared first; it costs nothing."""
    return path.stat().st_size == file.size and sha256_of(path) == file.sha256


def path_inside(folder: Path, name: str, where: str) -> Path:
    """The local path of a stored file.

    Raises:
        StorageError: the name, which comes from the store, would lead out of ``folder``.
    """
    path = folder / name
    if not name or not path.resolve().is_relative_to(folder.resolve()):
        raise StorageError(
            f"the file name {name!r} leads out of its folder", code=codes.DAMAGED_OBJECT, where=where
        )
    return path


def write_at(descriptor: int, data: bytes, offset: int) -> None:
    """Writes all of ``data``. A disk that fills up takes a part first and refuses only the next write."""
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def write_private(path: Path, content: str | bytes) -> None:
    """Replaces a file at once; only its owner may read it. One process at a time may write it."""
    partial = path.with_name(f".{path.name}.partial")
    partial.unlink(missing_ok=True)  # of a writer that was killed
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def is_disk_full(error: BaseException) -> bool:
    """Whether an error means that a disk or a quota is full.

    safetensors and torch have classes and words of their own for it, without an error number.
    """
    if isinstance(error, OSError):
        return error.errno in _FULL
    told = isinstance(error, RuntimeError) or type(error).__name__ == "SafetensorError"
    return told and _FULL_WORDS.search(str(error)) is not None


def disk_error(error: OSError, path: Path) -> StorageError:
    """The error for a local file that cannot be written or read."""
    if is_disk_full(error):
        return StorageError(
            "the disk is full",
            code=codes.DISK_FULL,
            where=str(path),
        )
    return StorageError(
        f"the file cannot be used ({error.strerror or error})", code=codes.UNUSABLE_FILE, where=str(path)
    )
