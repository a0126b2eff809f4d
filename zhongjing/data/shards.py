"""Writing a token cache: samples go in one by one, blocks and shards come out; see ``data/tokens.py``."""

from __future__ import annotations

import io
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zhongjing.data.samples import Segment
from zhongjing.data.split import Split
from zhongjing.data.tokens import SplitInfo, TokenType

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

BLOCK_BYTES = 4 << 20  # of tokens; target bits come on top
BLOCKS_PER_SHARD = 32


class SplitWriter:
    """Writes one split; holds a block in memory and a shard on the local disk.

    Args:
        store: where to.
        uri: folder of the cache.
        split: which split.
        dtype: of a token.
        scratch: local folder for the shard being filled.
        block_tokens: tokens of a block, a multiple of 8; None: as many as make 4 MiB.
        blocks_per_shard: blocks of a shard.
    """

    def __init__(
        self,
        store: ObjectStore,
        uri: str,
        split: Split,
        dtype: TokenType,
        scratch: Path,
        *,
        block_tokens: int | None = None,
        blocks_per_shard: int = BLOCKS_PER_SHARD,
    ) -> None:
        self._store = store
        self._folder = f"{uri}/{split}"
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self.block_tokens = block_tokens or BLOCK_BYTES // self._dtype.itemsize
        if self.block_tokens % 8:
            raise ValueError(f"a block of {self.block_tokens} tokens has no whole bytes of target bits")
        self.blocks_per_shard = blocks_per_shard
        self._ids = np.zeros(self.block_tokens, dtype=self._dtype)
        self._target = np.zeros(self.block_tokens, dtype=np.bool_)
        self._filled = 0
        self._path = scratch / f"{split}.shard"
        self._blocks_in_shard = 0
        self._shards: list[str] = []
        self._crcs: list[int] = []
        self._segment_lengths: list[int] = []
        self._sample_segments: list[int] = []
        self._sample_targets: list[int] = []
        self._ranks: list[int] = []
        self._groups: list[int] = []

    def append(self, segments: Sequence[Segment], group: int, ranks: Sequence[int] | None = None) -> None:
        """Adds a sample."""
        targets = 0
        for segment in segments:
            self._segment_lengths.append(len(segment.ids))
            targets += int(segment.target.sum())
            self._write(segment.ids, segment.target)
        self._sample_segments.append(len(segments))
        self._sample_targets.append(targets)
        self._groups.append(group)
        if ranks is not None:
            self._ranks.extend(ranks)

    def _write(self, ids: npt.NDArray[np.int32], target: npt.NDArray[np.bool_]) -> None:
        done = 0
        while done < len(ids):
            take = min(len(ids) - done, self.block_tokens - self._filled)
            self._ids[self._filled : self._filled + take] = ids[done : done + take]
            self._target[self._filled : self._filled + take] = target[done : done + take]
            self._filled += take
            done += take
            if self._filled == self.block_tokens:
                self._end_block()

    def _end_block(self) -> None:
        bits = np.packbits(self._target[: self._filled], bitorder="little")
        payload = self._ids[: self._filled].tobytes() + bits.tobytes()
        self._crcs.append(zlib.crc32(payload))
        with self._path.open("ab" if self._blocks_in_shard else "wb") as file:
            file.write(payload)
        self._blocks_in_shard += 1
        self._filled = 0
        if self._blocks_in_shard == self.blocks_per_shard:
            self._end_shard()

    def _end_shard(self) -> None:
        uri = f"{self._folder}/shard-{len(self._shards):05d}.bin"
        self._store.put_file(uri, self._path)
        self._path.unlink()
        self._shards.append(uri)
        self._blocks_in_shard = 0

    def finish(self) -> SplitInfo:
        """Writes what is left, then the index."""
        if self._filled:
            self._end_block()
        if self._blocks_in_shard:
            self._end_shard()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            segment_offsets=_offsets(self._segment_lengths),
            sample_offsets=_offsets(self._sample_segments),
            targets=np.array(self._sample_targets, dtype=np.int64),
            groups=np.array(self._groups, dtype=np.int32),
            ranks=np.array(self._ranks, dtype=np.int16),
            crcs=np.array(self._crcs, dtype=np.uint32),
        )
        data = buffer.getvalue()
        uri = f"{self._folder}/index.npz"
        self._store.put(uri, data)
        return SplitInfo(
            samples=len(self._sample_segments),
            segments=len(self._segment_lengths),
            tokens=sum(self._segment_lengths),
            targets=sum(self._sample_targets),
            shards=self._shards,
            index=uri,
            index_crc=zlib.crc32(data),
        )


def _offsets(lengths: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.concatenate(([0], np.cumsum(np.array(lengths, dtype=np.int64)))).astype(np.int64)
