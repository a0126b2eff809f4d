"""The token cache: samples as flat shards in the object store, written once, read in blocks.

::

    <cache>/manifest.json           written last, If-None-Match; without it there is no cache
           /<split>/index.npz       offsets, ranks, groups, targets, CRC32 of each block
           /<split>/shard-NNNNN.bin blocks, one after the other
           /quarantine.jsonl        records that could not be read, without their text
           /parts/                  while it is built: shards that are tokenised (data/parts.py)

The tokens of a split are one flat stream, cut into blocks of 4 MiB; a shard is a run of blocks. After its
tokens a block has their target bits. Reads below 4 MiB are several times slower, so whole blocks are fetched,
checked against their CRC32 (zlib's runs at 4 GB/s here, far above the network) and kept while there is room.
"""

from __future__ import annotations

import io
import itertools
import threading
import zlib
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from zhongjing.codes import data as codes
from zhongjing.codes import storage as storage_codes
from zhongjing.data.samples import Sample, Segment
from zhongjing.data.split import Split
from zhongjing.errors import DataError, NotFoundError, StorageError
from zhongjing.storage.documents import parse_json, parse_record
from zhongjing.storage.manifest import Record, SourceCounts

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

READ_MEMORY = 1 << 30
_FETCHES = 8

TokenType = Literal["uint16", "uint32"]


class SplitInfo(Record):
    """One split of a cache."""

    samples: int = 0
    segments: int = 0
    tokens: int = 0
    targets: int = 0
    shards: list[str] = Field(default_factory=list, description="URIs")
    index: str = Field(description="URI of index.npz")
    index_crc: int


class CacheManifest(Record):
    """``manifest.json`` of a token cache."""

    version: Literal[1] = 1
    key: str
    dtype: TokenType
    block_tokens: int
    blocks_per_shard: int
    ranked: bool
    group_names: list[str]
    splits: dict[str, SplitInfo]
    counts: list[SourceCounts]
    fields: dict[str, Any] = Field(description="what the key is a hash of")


class TokenCacheRef(Record):
    """Where a token cache is and what is in it."""

    uri: str
    key: str
    counts: list[SourceCounts]
    samples: dict[str, int]
    tokens: dict[str, int]
    targets: dict[str, int]


def reference(uri: str, manifest: CacheManifest) -> TokenCacheRef:
    """The reference to the cache at ``uri``."""
    splits = manifest.splits.items()
    return TokenCacheRef(
        uri=uri,
        key=manifest.key,
        counts=manifest.counts,
        samples={name: info.samples for name, info in splits},
        tokens={name: info.tokens for name, info in splits},
        targets={name: info.targets for name, info in splits},
    )


def read_manifest(store: ObjectStore, uri: str) -> CacheManifest | None:
    """The manifest of the cache at ``uri``, or None while there is none.

    Raises:
        DataError: it is damaged.
        StorageError: a newer release wrote it.
    """
    where = f"{uri}/manifest.json"
    try:
        data = store.get(where)
    except NotFoundError:
        return None
    try:
        return parse_record(parse_json(data, where), CacheManifest, where)
    except StorageError as error:
        if error.code is storage_codes.NEWER_VERSION:
            raise
        raise _damaged(
            where, f"the manifest of the token cache cannot be read: {error.message}", uri
        ) from None


class TokenSplit:
    """A split of a token cache: a :class:`zhongjing.data.samples.SampleSet`. Safe to use from threads.

    Attributes:
        tokens: of each sample, int64 [samples].
        targets: likewise.
        groups: mixture group of each sample, int32 [samples].
        group_names: names that ``groups`` indexes.
    """

    def __init__(
        self,
        store: ObjectStore,
        uri: str,
        manifest: CacheManifest,
        split: Split,
        memory: int = READ_MEMORY,
    ) -> None:
        self._store = store
        self._uri = uri
        self._info = manifest.splits[split]
        self._dtype = np.dtype(manifest.dtype).newbyteorder("<")
        self._block_tokens = manifest.block_tokens
        self._blocks_per_shard = manifest.blocks_per_shard
        self._block_bytes = self._block_tokens * self._dtype.itemsize + self._block_tokens // 8
        self._capacity = max(1, memory // self._block_bytes)
        index = self._read_index()
        self._segment_offsets: npt.NDArray[np.int64] = index["segment_offsets"]
        self._sample_offsets: npt.NDArray[np.int64] = index["sample_offsets"]
        self._ranks: npt.NDArray[np.int16] | None = index["ranks"] if manifest.ranked else None
        self.targets: npt.NDArray[np.int64] = index["targets"]
        self.groups: npt.NDArray[np.int32] = index["groups"]
        self._crcs: npt.NDArray[np.uint32] = index["crcs"]
        self.group_names = tuple(manifest.group_names)
        self.tokens: npt.NDArray[np.int64] = np.diff(self._segment_offsets[self._sample_offsets])
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Number of samples."""
        return self._info.samples

    @property
    def segments(self) -> npt.NDArray[np.int64]:
        """Segments of each sample, int64 [samples] (K of a ranking)."""
        return np.diff(self._sample_offsets)

    def fetch(self, indices: Sequence[int]) -> list[Sample]:
        """Samples by index, in the order asked for.

        Raises:
            DataError: a block is damaged; names the shard.
            IndexError: there is no such sample.
        """
        chosen = [int(index) for index in indices]
        for index in chosen:
            if not 0 <= index < len(self):
                raise IndexError(f"sample {index} of {len(self)}")
        spans = [self._span(index) for index in chosen]
        needed = sorted({block for begin, end in spans for block in self._blocks_of(begin, end)})
        samples: dict[int, Sample] = {}
        # No more blocks at a time than may be kept; then their samples, as they lie.
        order = sorted(range(len(chosen)), key=lambda place: spans[place])
        if len(needed) <= self._capacity:
            held = self._load(needed)
            for place in order:
                samples[place] = self._sample(chosen[place], held)
        else:
            for place in order:
                held = self._load(list(self._blocks_of(*spans[place])))
                samples[place] = self._sample(chosen[place], held)
        return [samples[place] for place in range(len(chosen))]

    def _span(self, index: int) -> tuple[int, int]:
        first, last = self._sample_offsets[index], self._sample_offsets[index + 1]
        return int(self._segment_offsets[first]), int(self._segment_offsets[last])

    def _blocks_of(self, begin: int, end: int) -> range:
        if begin == end:
            return range(0)
        return range(begin // self._block_tokens, (end - 1) // self._block_tokens + 1)

    def _sample(self, index: int, held: dict[int, bytes]) -> Sample:
        first, last = int(self._sample_offsets[index]), int(self._sample_offsets[index + 1])
        begin, end = self._span(index)
        ids, target = self._gather(begin, end, held)
        bounds = self._segment_offsets[first : last + 1] - begin
        segments = tuple(Segment(ids[a:b], target[a:b]) for a, b in itertools.pairwise(bounds))
        ranks = None if self._ranks is None else tuple(int(rank) for rank in self._ranks[first:last])
        return Sample(index, segments, ranks)

    def _gather(
        self, begin: int, end: int, held: dict[int, bytes]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        ids = np.empty(end - begin, dtype=np.int32)
        target = np.empty(end - begin, dtype=np.bool_)
        for block in self._blocks_of(begin, end):
            origin = block * self._block_tokens
            length = min(self._block_tokens, self._info.tokens - origin)
            a, b = max(begin, origin) - origin, min(end, origin + length) - origin
            payload = held[block]
            out = slice(origin + a - begin, origin + b - begin)
            ids[out] = np.frombuffer(payload, self._dtype, b - a, a * self._dtype.itemsize)
            bits_at = length * self._dtype.itemsize
            octets = np.frombuffer(payload, np.uint8, (b + 7) // 8 - a // 8, bits_at + a // 8)
            target[out] = np.unpackbits(octets, bitorder="little")[a % 8 : a % 8 + b - a]
        return ids, target

    def _load(self, blocks: Sequence[int]) -> dict[int, bytes]:
        with self._lock:
            held = {block: self._blocks[block] for block in blocks if block in self._blocks}
            for block in held:
                self._blocks.move_to_end(block)
        missing = [block for block in blocks if block not in held]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(_FETCHES, len(missing)), thread_name_prefix="tokens") as pool:
                fetched = dict(zip(missing, pool.map(self._fetch_block, missing), strict=True))
        else:
            fetched = {block: self._fetch_block(block) for block in missing}
        with self._lock:
            self._blocks.update(fetched)
            while len(self._blocks) > self._capacity:
                self._blocks.popitem(last=False)
        return {**held, **fetched}

    def _fetch_block(self, block: int) -> bytes:
        shard = self._info.shards[block // self._blocks_per_shard]
        length = min(self._block_tokens, self._info.tokens - block * self._block_tokens)
        size = length * self._dtype.itemsize + (length + 7) // 8
        start = (block % self._blocks_per_shard) * self._block_bytes
        try:
            payload = bytes(self._store.get_range(shard, start, size))
        except StorageError as error:
            if error.code not in (storage_codes.OBJECT_NOT_FOUND, storage_codes.DAMAGED_OBJECT):
                raise  # the store is away or refuses, and the cache may be whole
            raise _damaged(shard, error.message, self._uri) from error
        if len(payload) != size or zlib.crc32(payload) != int(self._crcs[block]):
            raise _damaged(shard, f"block {block} of the token cache fails its checksum", self._uri)
        return payload

    def _read_index(self) -> dict[str, Any]:
        try:
            data = self._store.get(self._info.index)
        except NotFoundError as error:
            raise _damaged(self._info.index, "the index of the token cache is missing", self._uri) from error
        if zlib.crc32(data) != self._info.index_crc:
            raise _damaged(self._info.index, "the index of the token cache fails its checksum", self._uri)
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}


def open_split(store: ObjectStore, uri: str, split: Split, *, memory: int = READ_MEMORY) -> TokenSplit:
    """Opens a split of a token cache.

    Its index is in memory then, its tokens are fetched when asked for; ``memory`` bytes of them are kept.

    Raises:
        DataError: there is no cache there, or it is damaged.
    """
    manifest = read_manifest(store, uri)
    if manifest is None:
        raise DataError(
            "there is no finished token cache here",
            code=codes.DAMAGED_CACHE,
            where=uri,
            remedy="run the stage again",
        )
    return TokenSplit(store, uri, manifest, split, memory)


def _damaged(where: str, message: str, cache: str) -> DataError:
    return DataError(
        message,
        code=codes.DAMAGED_CACHE,
        where=where,
        remedy=f"delete {cache} and run again: the token cache is built again from the sources",
    )
