"""Shards of a corpus as tokens in the store: what an interrupted build finds again.

A part is one object, written whole or not at all: an npz, whose members have checksums. Its name tells which
records it is made of, and it stands in the folder of the cache, whose key tells all else that decides its
tokens. So every process that makes it makes the same bytes.
"""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zhongjing.config.stages import Stage
from zhongjing.data.chat import Encoded, Unfit
from zhongjing.data.corpus import Shard
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.records import Record, record_texts
from zhongjing.data.samples import Segment
from zhongjing.data.tokenizer_folder import load_tokenizer
from zhongjing.errors import NotFoundError
from zhongjing.storage.heartbeat import beat

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_BATCH = 256  # records tokenised together
_LONG_BATCH = 1 << 19  # characters after which a batch is tokenised, however few its records
_FATES = (None, Unfit.TOO_LONG, Unfit.REWRITTEN, Unfit.MASKED)  # by the number in a part
# Files of a tokenizer folder, and the small ones of a model that it may share the folder with.
_TOKENIZER_SUFFIXES = (".json", ".jinja", ".model", ".txt")

Listen = Callable[[float], None]
"""Is called often while a shard is tokenised, with how much of it is done, 0 to 1. It may raise."""


@dataclass(frozen=True, slots=True)
class Purpose:
    """What records are tokenised for: see :meth:`RecordEncoder.configure`."""

    stage: Stage
    max_length: int
    system_prompt: str | None


class PartMaker:
    """Makes the parts of one cache. It may be pickled into any process: the tokenizer's files travel with it.

    Args:
        store: where the cache is.
        uri: folder of the cache.
        tokenizer: folder of the tokenizer.
        purpose: what the records are tokenised for.

    Raises:
        DataError: the tokenizer cannot be loaded.
    """

    def __init__(self, store: ObjectStore, uri: str, tokenizer: Path, purpose: Purpose) -> None:
        self.uri = uri
        self.encoder = RecordEncoder(load_tokenizer(tokenizer))
        self.encoder.configure(purpose.stage, purpose.max_length, purpose.system_prompt)
        self.store = store
        self._tokenizer = tokenizer
        self._purpose = purpose

    def __reduce__(self) -> tuple[object, ...]:
        files = {
            path.name: path.read_bytes()
            for path in self._tokenizer.iterdir()
            if path.suffix in _TOKENIZER_SUFFIXES and path.is_file()
        }
        return (_unpack, (self.store, self.uri, files, self._purpose))

    def made(self) -> set[str]:
        """Names of the parts that are there."""
        return {Path(info.uri).stem for info in self.store.list(f"{self.uri}/parts")}

    def make(self, name: str, records: Sequence[Record], listen: Listen = lambda _: None) -> None:
        """Tokenises the records of a shard and stores the part."""
        encoded: list[Encoded | Unfit] = []
        for batch in _batches(records):
            encoded += self.encoder.encode(batch)
            beat()
            listen(len(encoded) / len(records))
        self.store.put(self._part(name), _pack(encoded, self.encoder.dtype))

    def load(self, shard: Shard) -> list[Encoded | Unfit]:
        """Tokens of a shard's records, or why one has none; a missing or damaged part is made anew."""
        records = shard.records
        if not records:
            return []
        try:
            return self._read(shard.name, len(records))
        except (NotFoundError, EOFError, ValueError, KeyError, zipfile.BadZipFile):
            self.make(shard.name, records)
            return self._read(shard.name, len(records))

    def _read(self, name: str, count: int) -> list[Encoded | Unfit]:
        found = _unpack_part(self.store.get(self._part(name)))
        if len(found) != count:
            raise ValueError(f"{len(found)} records in a part of {count}")
        return found

    def _part(self, name: str) -> str:
        return f"{self.uri}/parts/{name}.npz"


Encode = Callable[[PartMaker, Iterable[Shard], Callable[[Shard, float], None]], Iterator[Shard]]
"""How shards are tokenised: yields them in their order, each once its part can be loaded.

The third argument is called at least every few seconds, with the next shard and how much of it is done.
"""


def _batches(records: Sequence[Record]) -> Iterator[list[Record]]:
    batch: list[Record] = []
    characters = 0
    for record in records:
        batch.append(record)
        characters += sum(map(len, record_texts(record)))
        if len(batch) == _BATCH or characters > _LONG_BATCH:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _unpack(store: ObjectStore, uri: str, files: dict[str, bytes], purpose: Purpose) -> PartMaker:
    with tempfile.TemporaryDirectory(prefix="zhongjing-tokenizer-") as folder:
        for name, content in files.items():
            (Path(folder) / name).write_bytes(content)
        return PartMaker(store, uri, Path(folder), purpose)


def _pack(encoded: Sequence[Encoded | Unfit], dtype: str) -> bytes:
    """Fates and truncations by record, segments by record, tokens and targets by segment, as one npz."""
    kept = [one for one in encoded if isinstance(one, Encoded)]
    segments = [segment for one in kept for segment in one.segments]
    documents = [one.document for one in kept if one.document is not None]
    ids = documents or [segment.ids for segment in segments]
    targets = [segment.target for segment in segments]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        fates=np.array([_FATES.index(one if isinstance(one, Unfit) else None) for one in encoded], np.int8),
        truncated=np.array([one.truncated for one in kept], np.bool_),
        segments=np.array([len(one.segments) for one in kept], np.int32),
        lengths=np.array([len(tokens) for tokens in ids], np.int64),
        ids=np.concatenate(ids).astype(dtype) if ids else np.empty(0, dtype),
        targets=np.packbits(np.concatenate(targets)) if targets else np.empty(0, np.uint8),
        ranks=np.array([rank for one in kept for rank in one.ranks or ()], np.int16),
        ranked=np.array([one.ranks is not None for one in kept], np.bool_),
    )
    return buffer.getvalue()


def _unpack_part(data: bytes) -> list[Encoded | Unfit]:
    """What :func:`_pack` was given.

    Raises:
        BadZipFile, ValueError, KeyError: it is no part, or damaged.
    """
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    ids: npt.NDArray[np.int32] = found["ids"].astype(np.int32)
    pieces = np.split(ids, np.cumsum(found["lengths"])[:-1])
    counts, truncated, ranked = (found[name].tolist() for name in ("segments", "truncated", "ranked"))
    if not any(counts):
        kept = iter([Encoded(document=piece) for piece in pieces[: len(counts)]])
    else:
        targets = np.unpackbits(found["targets"], count=len(ids)).astype(np.bool_)
        masks = np.split(targets, np.cumsum(found["lengths"])[:-1])
        whole = iter([Segment(*both) for both in zip(pieces, masks, strict=True)])
        ranks = iter(found["ranks"].tolist())
        kept = iter(
            [
                Encoded(
                    tuple(next(whole) for _ in range(count)),
                    tuple(next(ranks) for _ in range(count)) if has_ranks else None,
                    cut,
                )
                for count, cut, has_ranks in zip(counts, truncated, ranked, strict=True)
            ]
        )
    fates = [_FATES[fate] for fate in found["fates"].tolist()]
    return [next(kept) if fate is None else fate for fate in fates]
