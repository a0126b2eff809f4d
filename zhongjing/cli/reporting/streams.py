"""Large files in pieces: what lies in a folder or in the store is read without ever being held whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from zhongjing.storage.objects import ObjectInfo, ObjectStore

PIECE = 2**20
LONGEST_LINE = 256 * 2**10
# Before the tail is cut out, so much is read only to know whether it begins within a block of a key.
LOOKBACK = 16 * 2**10


@dataclass(frozen=True, slots=True)
class Readable:
    """Bytes that can be read from anywhere.

    Attributes:
        size: in bytes, when it was looked at; what is written later is not read.
        read: bytes from an offset on, at most so many; fewer only at the end.
    """

    size: int
    read: Callable[[int, int], bytes]


def local_file(path: Path) -> Readable:
    """A file of this machine. Reading raises OSError."""

    def read(start: int, length: int) -> bytes:
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)

    return Readable(path.stat().st_size, read)


def stored_object(store: ObjectStore, info: ObjectInfo) -> Readable:
    """An object. Reading raises StorageError."""

    def read(start: int, length: int) -> bytes:
        return store.get_range(info.uri, start, min(length, info.size - start))

    return Readable(info.size, read)


def joined(parts: list[Readable]) -> Readable:
    """Several one after another, as if they were one."""

    def read(start: int, length: int) -> bytes:
        found = bytearray()
        offset = 0
        for part in parts:
            begin = max(start - offset, 0)
            if begin < part.size and length > len(found):
                found += part.read(begin, min(length - len(found), part.size - begin))
                start = offset + part.size
            offset += part.size
        return bytes(found)

    return Readable(sum(part.size for part in parts), read)


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines; or the beginning of a line that is too long (``cut``), whose rest is left out."""

    text: str
    cut: bool = False


def pieces(readable: Readable, start: int = 0) -> Iterator[Piece]:
    """Lines from byte ``start`` on, many at a time. The last one gets its line break."""
    pending = b""
    skipping = False
    position = start
    while position < readable.size:
        chunk = readable.read(position, min(PIECE, readable.size - position))
        if not chunk:
            break  # it was cut off meanwhile
        position += len(chunk)
        if skipping:
            _, found, chunk = chunk.partition(b"\n")
            skipping = not found
            if skipping:
                continue
        pending += chunk
        whole, found, rest = pending.rpartition(b"\n")
        if found:
            yield Piece((whole + found).decode(errors="replace"))
            pending = rest
        if len(pending) > LONGEST_LINE:
            yield Piece(pending[:LONGEST_LINE].decode(errors="replace"), cut=True)
            pending, skipping = b"", True
    if pending:
        yield Piece(pending.decode(errors="replace") + "\n")


@dataclass(frozen=True, slots=True)
class Tail:
    """The end of a log.

    Attributes:
        cut: bytes before it.
        before: a few lines before it, which only say in what it begins.
        pieces: its lines.
    """

    cut: int
    before: str
    pieces: Iterator[Piece]


def tail(readable: Readable, limit: int) -> Tail:
    """The last ``limit`` bytes, from the beginning of a line on."""
    if readable.size <= limit:
        return Tail(0, "", pieces(readable))
    start = _line_start(readable, readable.size - limit)
    begin = max(start - LOOKBACK, 0)
    before = readable.read(begin, start - begin).decode(errors="replace")
    return Tail(start, before, pieces(readable, start))


def _line_start(readable: Readable, position: int) -> int:
    """Where the first line begins at or after ``position``; the end if none does."""
    position -= 1  # a line break right before it is good
    while position < readable.size:
        chunk = readable.read(position, min(PIECE, readable.size - position))
        if not chunk:
            break
        found = chunk.find(b"\n")
        if found >= 0:
            return position + found + 1
        position += len(chunk)
    return readable.size
