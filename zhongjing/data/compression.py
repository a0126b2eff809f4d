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
from zhongjing.data.records import unreadable
from zhongjing.errors import DataError

_GZIP, _ZSTD, _BZIP2 = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh"
# The magic numbers of skippable frames are 0x184D2A50 to 0x184D2A5F, little endian (RFC 8878, 3.1.2).
_SKIPPABLE = tuple(bytes((low, 0x2A, 0x4D, 0x18)) for low in range(0x50, 0x60))
_LONGEST_MAGIC = 4
# The zstd decompressor returns all that its input gives. A block of 4 bytes can give 128 KiB, so this bounds
# what is in memory to 8 MiB (twice, while they are joined) and the window (at most 128 MiB for libzstd).
_INPUT_BYTES = 1 << 8
_OUTPUT_BYTES = 1 << 20  # of bzip2 at a time: 45 bytes can give 46 MB


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
        plain = _Decompressed(
            stream, "bzip2", lambda inner: cast("BinaryIO", _Parts(inner, bz2.BZ2Decompressor))
        )
    elif magic.startswith((_ZSTD, *_SKIPPABLE)):
        plain = _Decompressed(stream, "zstd", lambda inner: cast("BinaryIO", _Parts(inner, _ZstdFrame)))
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
        return unreadable(
            f"the {self._name} archive {what}, after {self._position} bytes of its content",
            f"upload it again; `{self._name} -t FILE` tells whether the original is whole",
        )


class _Parts(io.RawIOBase):
    """The content of an archive's parts (frames, streams), one after another.

    Whatever stands behind a part has to be another one: :class:`bz2.BZ2File` takes a damaged one for garbage
    that it may leave out, and with it all that follows.

    Raises:
        EOFError: the archive ends within a part.
        OSError: a part is damaged; without an errno.
    """

    def __init__(self, stream: BinaryIO, new_part: Callable[[], bz2.BZ2Decompressor | _ZstdFrame]) -> None:
        super().__init__()
        self._stream = stream
        self._new_part = new_part
        self._part: bz2.BZ2Decompressor | _ZstdFrame | None = None
        self._input = b""
        self._output = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        while not self._output:
            if not self._input and (self._part is None or self._part.needs_input):
                self._input = self._stream.read(_INPUT_BYTES)
                if not self._input:
                    if self._part is not None:
                        raise EOFError
                    return 0
            if self._part is None:
                self._part = self._new_part()
            self._output = memoryview(self._part.decompress(self._input, _OUTPUT_BYTES))
            self._input = b""
            if self._part.eof:
                self._input, self._part = self._part.unused_data, None
        piece = self._output[: len(buffer)]
        buffer[: len(piece)] = piece
        self._output = self._output[len(piece) :]
        return len(piece)


class _ZstdFrame:
    """A frame of zstd, used as a :class:`bz2.BZ2Decompressor`. It gives all that its input does."""

    needs_input = True

    def __init__(self) -> None:
        try:
            import zstandard
        except ImportError:
            raise DataError(
                "reading zstd needs the package zstandard", code=command_codes.MISSING_PACKAGE
            ) from None
        self._error = zstandard.ZstdError
        self._frame: Any = zstandard.ZstdDecompressor().decompressobj()

    def decompress(self, data: bytes, max_length: int) -> bytes:
        del max_length
        try:
            return cast("bytes", self._frame.decompress(data))
        except self._error as error:
            if "too much memory" in str(error):
                raise unreadable(
                    "the zstd archive needs a window of more than 128 MiB",
                    "compress it again without --long, or with --long=27 at most",
                ) from None
            raise OSError(str(error)) from None

    @property
    def eof(self) -> bool:
        return bool(self._frame.eof)

    @property
    def unused_data(self) -> bytes:
        return cast("bytes", self._frame.unused_data)
