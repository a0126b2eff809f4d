"""The archive while it is being filled: a folder of redacted files, and a list of what could not be had."""

from __future__ import annotations

import gzip
import json
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from zhongjing.cli.reporting.redact import LogStream, Redactor
from zhongjing.cli.reporting.streams import LONGEST_LINE, Readable, pieces, tail
from zhongjing.cli.reporting.structured import clean
from zhongjing.codes.storage import DISK_FULL
from zhongjing.errors import StorageUnavailableError, ZhongjingError
from zhongjing.storage.files import disk_error, is_disk_full

LOG_BYTES = 4 * 2**20
DOCUMENT_BYTES = 16 * 2**20
TOTAL_BYTES = 200 * 2**20
"""Of all logs and metrics before compression; they shrink to about a tenth."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Something that is not in the archive, or not whole, and why."""

    what: str
    why: str


class Bundle:
    """Redacted files that become an archive. What fails is noted, and the rest is packed.

    Args:
        folder: a folder of its own, for nobody else.
        redactor: every text goes through it.
    """

    def __init__(self, folder: Path, redactor: Redactor) -> None:
        self.folder = folder
        self.redactor = redactor
        self.gaps: list[Gap] = []
        self._left = TOTAL_BYTES

    def gap(self, what: str, why: object) -> None:
        """Notes that something is not there."""
        text = why.message if isinstance(why, ZhongjingError) else str(why)
        gap = Gap(self.redactor.log(what), self.redactor.log(text))
        if gap not in self.gaps:
            self.gaps.append(gap)

    @property
    def names(self) -> list[str]:
        """Names of the files so far, sorted."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    def text(self, name: str, text: str) -> None:
        """A text of ours."""
        with self._file(name) as file:
            file.write(self.redactor.log(text))

    def plain(self, name: str, text: str) -> None:
        """A text of ours that was made from what is clean already."""
        with self._file(name) as file:
            file.write(text)

    def json(self, name: str, value: Any, clean: Callable[[Any, Redactor], Any] = clean) -> None:
        """A JSON value, made clean."""
        with self._file(name) as file:
            json.dump(clean(value, self.redactor), file, ensure_ascii=False, indent=2)
            file.write("\n")

    def document(self, name: str, readable: Readable) -> None:
        """A stored JSON document. One that is no JSON is not packed: nobody knows what it holds."""
        with self._noted(name):
            if readable.size > DOCUMENT_BYTES:
                self.gap(name, f"it is too large ({readable.size} bytes)")
                return
            data = readable.read(0, readable.size)
            try:
                value = json.loads(data)
            except ValueError as error:
                place = f" at byte {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
                self.gap(name, f"it is damaged: no JSON of its {len(data)} bytes{place}")
                return
            self.json(name, value)

    def log(self, name: str, readable: Readable, limit: int = LOG_BYTES) -> None:
        """The end of a log."""
        with self._noted(name):
            if not self._afford(name, min(readable.size, limit)):
                return
            end = tail(readable, limit)
            stream = LogStream(self.redactor)
            with self._file(name) as file:
                if end.cut:
                    self.gap(name, f"the first {end.cut} of {readable.size} bytes are cut")
                    file.write(f"<the first {end.cut} of {readable.size} bytes are cut>\n")
                    stream.feed(end.before)
                for piece in end.pieces:
                    file.write(stream.feed(piece.text, cut=piece.cut))

    def live_log(self, name: str, lines: Iterable[str], limit: int = LOG_BYTES) -> None:
        """The end of a log that comes line by line."""
        kept: deque[str] = deque()
        size = cut = 0
        for line in lines:
            kept.append(line if line.endswith("\n") else f"{line}\n")
            size += len(kept[-1])
            while size > limit and len(kept) > 1:
                dropped = len(kept.popleft())
                size, cut = size - dropped, cut + dropped
        if not kept or not self._afford(name, size):
            return
        if cut:
            self.gap(name, f"the first {cut} characters are cut")
        stream = LogStream(self.redactor)
        with self._file(name) as file:
            for line in kept:
                piece = line[: LONGEST_LINE + 1]
                file.write(stream.feed(piece, cut=len(piece) < len(line)))

    def lines(self, name: str, readable: Readable, limit: int, clean: Callable[[str, Redactor], str]) -> None:
        """A file of JSON lines, each made clean; its end if it is larger than ``limit``."""
        with self._noted(name):
            if not self._afford(name, min(readable.size, limit)):
                return
            start = tail(readable, limit).cut
            with self._file(name) as file:
                if start:
                    note = f"the first {start} of {readable.size} bytes are cut"
                    self.gap(name, note)
                    file.write(json.dumps({"note": note}) + "\n")
                for piece in pieces(readable, start):
                    lines = [""] if piece.cut else piece.text.removesuffix("\n").split("\n")
                    file.writelines(clean(line, self.redactor) + "\n" for line in lines)

    def write(self, archive: Path, root: str, now: float) -> None:
        """Packs the files below the folder ``root``. Equal files and times give equal bytes.

        Args:
            archive: the file to write; it appears whole or not at all.
            root: name of the one folder in it.
            now: time of everything in it, in seconds since the epoch.

        Raises:
            StorageError: the archive cannot be written; the disk may be full.
        """
        partial = archive.with_name(f".{archive.name}.partial-{os.getpid()}")
        try:
            descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with (
                os.fdopen(descriptor, "wb") as raw,
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=int(now)) as packed,
                tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
            ):
                for name in self.names:
                    member = tarfile.TarInfo(f"{root}/{name}")
                    member.size = (self.folder / name).stat().st_size
                    member.mtime = int(now)
                    member.mode = 0o600
                    with (self.folder / name).open("rb") as file:
                        tar.addfile(member, file)
            partial.replace(archive)
        except OSError as error:
            raise disk_error(error, archive) from error
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)

    def _afford(self, name: str, size: int) -> bool:
        if size > self._left:
            self.gap(name, "the report is large enough without it")
            return False
        self._left -= size
        return True

    @contextmanager
    def _file(self, name: str) -> Iterator[IO[str]]:
        path = self.folder / self.redactor.name(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
                yield file
        except OSError as error:
            if is_disk_full(error):
                raise disk_error(error, path) from error
            raise

    @contextmanager
    def _noted(self, name: str) -> Iterator[None]:
        """What goes wrong with one file is noted. A store that is gone ends the reading of all of them."""
        try:
            yield
        except StorageUnavailableError:
            raise
        except ZhongjingError as error:
            if error.code is DISK_FULL:
                raise
            self.gap(name, error)
        except OSError as error:
            self.gap(name, error.strerror or error)
