"""Compressed objects read as what is in them: gzip, zstd and bzip2, told by their first bytes.

Nothing in memory grows with the object. A gzip file is one or more members (RFC 1952, section 2.2), a zstd
file one or more frames, skippable ones among them (RFC 8878, section 3.1), a bzip2 file one or more streams.
"""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO, cast

from zhongjing.codes import command as command_codes
from zhongjing.codes import data as data_codes
from zhongjing.errors import DataError

_GZIP, _ZSTD, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh"
# The magic numbers of skippable frames are 0x184D2A50 to 0x184D2A5F, little endian (RFC 8878, 3.1.2).
_SKIPPABLE = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
_LONGEST_MAGIC = 4
# The zstd decompressor returns all that its input gives. A block of 4 bytes can give 128 KiB, so this bounds
# what is in memory to 8 MiB (twice, while they are joined) and the window (at most 128 MiB for libzstd).
_ZSTD_INPUT_BYTES = 1 << 8


def decompressed(stream: BinaryIO) -> BinaryIO:
    """The stream of what is in an object, compressed or not.

    Args:
        stream: the object, seekable, at its beginning. It is left open, and has to stay so.

    Returns:
        ``stream`` itself if it isn't compressed; otherwise a stream that can be read on, and sought back to
        its beginning only. Reading it raises DataError where the archive is damaged or cut short.

    Raises:
        DataError: the package that reads this compression is missing.
    """
    magic = stream.read(_LONGEST_MAGIC)
    stream.seek(0)
    if magic.startswith(_GZIP):
        plain = _Decompressed(stream, "gzip", lambda inner: cast("BinaryIO", gzip.GzipFile(fileobj=inner)))
    elif magic.startswith(_BZIP2):
        plain = _Decompressed(stream, "bzip2", lambda inner: cast("BinaryIO", bz2.BZ2File(inner)))
    elif magic.startswith((_ZSTD, *_SKIPPABLE)):
        plain = _Decompressed(stream, "zstd", lambda inner: cast("BinaryIO", _ZstdFrames(inner)))
    else:
        return stream
    return cast("BinaryIO", io.BufferedReader(plain, buffer_size=1 << 18))


class _Decompressed(io.RawIOBase):
    """What an archive holds; its library's errors become DataError."""

    def __init__(self, stream: BinaryIO, name: str, opener: Callable[[BinaryIO], BinaryIO]) -> None:
        super().__init__()
        self._stream = stream
        self._name = name
        self._opener = opener
        self._plain = opener(stream)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset == 0:
            self._stream.seek(0)
            self._plain = self._opener(self._stream)
            self._position = 0
            return 0
        raise io.UnsupportedOperation("a compressed object is read from its beginning only")

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        try:
            data = self._plain.read(len(buffer))
        except EOFError:
            raise self._damaged("is cut short") from None
        except zlib.error:
            raise self._damaged("is damaged") from None
        except OSError as error:
            if error.errno is not None:
                raise  # of the disk, not of what is on it
            raise self._damaged("is damaged") from None
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _damaged(self, what: str) -> DataError:
        return DataError(
            f"the {self._name} archive {what}, after {self._position} bytes of its content",
            code=data_codes.UNREADABLE_SOURCE,
            remedy=f"upload it again; `{self._name} -t FILE` tells whether the original is whole",
        )


class _ZstdFrames(io.RawIOBase):
    """The content of all frames, one after another. A stream that ends within a frame raises EOFError."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        try:
            import zstandard
        except ImportError:
            raise DataError(
                "reading zstd needs the package zstandard", code=command_codes.MISSING_PACKAGE
            ) from None
        self._error = zstandard.ZstdError
        self._new_frame: Callable[[], Any] = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._stream = stream
        self._frame: Any = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._output:
            self._input = self._input or self._stream.read(_ZSTD_INPUT_BYTES)
            if not self._input:
                if self._frame is not None:
                    raise EOFError
                return 0
            if self._frame is None:
                self._frame = self._new_frame()
            try:
                self._output = memoryview(self._frame.decompress(self._input))
            except self._error as error:
                raise OSError(str(error)) from None
            self._input = b""
            if self._frame.eof:
                self._input, self._frame = self._frame.unused_data, None
        part = self._output[: len(buffer)]
        buffer[: len(part)] = part
        self._output = self._output[len(part) :]
        return len(part)
