"""Compressed sources, written by the publishers' own libraries and read record by record."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import struct
import sys
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.unit.data.reading import read
from tests.unit.data.support import json_lines
from zhongjing.config.sources import Kind, Source
from zhongjing.data.compression import decompressed
from zhongjing.data.inspect import inspect_sources
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.errors import DataError

TALKS = json_lines([{"prompt": f"第{i}个问题?", "response": f"第{i}个回答。"} for i in range(500)])
TABLE = "question,answer\n" + "".join(f"问{i},答{i}\n" for i in range(50))
ARRAY = b"[" + b",\n".join(TALKS.splitlines()) + b"]"
HALF = TALKS.index(b"\n", len(TALKS) // 2) + 1

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
every_compressor = pytest.mark.parametrize("compressor", COMPRESSORS)


@every_compressor
@pytest.mark.parametrize("plain", [TALKS, ARRAY, TABLE.encode("gb18030")], ids=["jsonl", "json", "csv"])
def test_records_are_those_of_the_plain_object(compressor: str, plain: bytes) -> None:
    found = read(COMPRESSORS[compressor](plain))
    assert found == read(plain)
    assert len(found) >= 50


@every_compressor
def test_books_are_cut_at_the_same_places(compressor: str) -> None:
    book = ("党参补中益气,健脾益肺。" * 30 + "\n\n") * 40
    found = read(COMPRESSORS[compressor](book.encode()), Kind.TEXT)
    assert found == read(book.encode(), Kind.TEXT)
    assert len(found) > 1


@every_compressor
def test_concatenated_archives_are_read_to_the_end(compressor: str) -> None:
    """RFC 1952, 2.2: members follow one another; RFC 8878, 3: so do frames."""
    compress = COMPRESSORS[compressor]
    assert read(compress(TALKS[:HALF]) + compress(TALKS[HALF:])) == read(TALKS)


def test_skippable_frames_are_skipped_wherever_they_stand() -> None:
    """RFC 8878, 3.1.2: magic number, size in 4 bytes little endian, user data. pzstd writes one first."""
    compress = COMPRESSORS["zstd"]
    skipped = struct.pack("<II", 0x184D2A53, 5000) + bytes(5000)
    assert read(skipped + compress(TALKS[:HALF]) + skipped + compress(TALKS[HALF:]) + skipped) == read(TALKS)


def test_frames_without_a_content_size_are_read() -> None:
    stream = zstandard.ZstdCompressor().compressobj()  # as `zstd` writes what comes through a pipe
    assert read(stream.compress(TALKS) + stream.flush()) == read(TALKS)


@every_compressor
@pytest.mark.parametrize("left", [6, 0.5, 0.99])
def test_an_archive_that_is_cut_short_is_an_error_that_names_it(compressor: str, left: float) -> None:
    whole = COMPRESSORS[compressor](TALKS)
    with pytest.raises(DataError, match=f"{compressor} archive is cut short") as caught:
        read(whole[: int(left if left > 1 else left * len(whole))])
    assert caught.value.where == "s3://b/x"
    assert f"{compressor} -t" in (caught.value.remedy or "")


@every_compressor
def test_a_damaged_archive_is_an_error_that_names_it(compressor: str) -> None:
    damaged = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(TALKS))
    if compressor != "zstd":
        damaged = bytearray(COMPRESSORS[compressor](TALKS))
    for index in range(len(damaged) // 2, len(damaged) // 2 + 40):
        damaged[index] ^= 0x5A
    with pytest.raises(DataError, match=f"{compressor} archive is damaged") as caught:
        read(bytes(damaged))
    assert caught.value.where == "s3://b/x"


@every_compressor
@pytest.mark.parametrize("at", [0, 40], ids=["its magic number", "within it"])
def test_damage_in_a_later_part_is_no_end_of_the_archive(compressor: str, at: int) -> None:
    """pbzip2, pigz and pzstd write many parts; Python's own BZ2File takes a damaged one for garbage."""
    compress = COMPRESSORS[compressor]
    if compressor == "zstd":
        compress = zstandard.ZstdCompressor(write_checksum=True).compress
    first, second, third = compress(TALKS[:HALF]), bytearray(compress(TALKS[HALF:])), compress(TALKS)
    second[at] ^= 0x5A
    with pytest.raises(DataError, match=f"{compressor} archive is damaged"):
        read(first + bytes(second) + third)


def test_a_zstd_window_that_is_too_large_is_named() -> None:
    """RFC 8878, 3.1.1.1.2: decoders may refuse large windows; libzstd does above 128 MiB (`zstd --long`)."""
    long = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    stream = zstandard.ZstdCompressor(compression_params=long).compressobj()
    with pytest.raises(DataError, match="window of more than 128 MiB") as caught:
        read(stream.compress(TALKS) + stream.flush())
    assert "--long" in (caught.value.remedy or "")


def zipped() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("talks.jsonl", TALKS)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("zip", zipped()),
        ("xz", lzma.compress(TALKS)),
        ("7z", b"7z\xbc\xaf\x27\x1c" + bytes(100)),
        ("gzip", gzip.compress(gzip.compress(TALKS))),
    ],
    ids=["zip", "xz", "7z", "twice"],
)
def test_what_is_not_read_is_refused_with_a_remedy(name: str, data: bytes) -> None:
    with pytest.raises(DataError, match=rf"compressed \({name}\)") as caught:
        read(data)
    assert "gzip, zstd or bzip2" in (caught.value.remedy or "")


def test_a_compressed_parquet_file_is_refused() -> None:
    with pytest.raises(DataError, match="compressed parquet"):
        read(gzip.compress(b"PAR1" + bytes(100) + b"PAR1"))


@every_compressor
def test_memory_does_not_grow_with_what_is_in_the_archive(compressor: str) -> None:
    archive = io.BytesIO(COMPRESSORS[compressor](bytes(48 << 20)))
    tracemalloc.start()
    try:
        stream = decompressed(archive)
        length = 0
        while piece := stream.read(1 << 16):
            length += len(piece)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert length == 48 << 20
    assert peak < 24 << 20


def test_progress_counts_the_bytes_that_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "talks.gz"
    path.write_bytes(gzip.compress(TALKS))
    stats = ReadStats()
    for _ in read_object(str(path), Source(name="x", uri=str(path), kind=Kind.DIALOGUE), stats=stats):
        assert stats.stream is not None
        assert stats.stream.tell() <= path.stat().st_size


def test_zstd_without_its_package_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DataError, match="package zstandard") as caught:
        read(COMPRESSORS["zstd"](TALKS))
    assert caught.value.code.name == "MissingPackage"


@every_compressor
def test_inspect_reads_them(compressor: str, tmp_path: Path) -> None:
    path = tmp_path / "talks.jsonl.packed"
    path.write_bytes(COMPRESSORS[compressor](TALKS))
    source = inspect_sources([str(path)]).sources[0]
    assert (source.kind, source.read, source.kept, source.error) == (Kind.DIALOGUE, 500, 500, None)
