"""What a build of the token cache writes: three splits, and the list of records that could not be read."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.data.chat import Encoded
from zhongjing.data.packing import WindowPacker
from zhongjing.data.records import Rejected
from zhongjing.data.shards import SplitWriter
from zhongjing.data.split import SPLITS, Split
from zhongjing.data.tokens import SplitInfo, TokenType

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore


class CacheOutputs:
    """The splits and the quarantine while they are being written.

    Args:
        store: where to.
        uri: folder of the cache.
        dtype: of a token.
        window: tokens of a pretraining window.
        scratch: local folder.
        quarantine_uri: where the stage's quarantine goes; the cache keeps a copy without text.
    """

    def __init__(
        self,
        store: ObjectStore,
        uri: str,
        *,
        dtype: TokenType,
        window: int,
        scratch: Path,
        quarantine_uri: str,
    ) -> None:
        self.quarantine_uri = quarantine_uri
        self._store = store
        self._uri = uri
        self._window = window
        self._scratch = scratch
        self._writers = {split: SplitWriter(store, uri, split, dtype, scratch) for split in SPLITS}
        self.block_tokens = self._writers["train"].block_tokens
        self.blocks_per_shard = self._writers["train"].blocks_per_shard
        self._packers: dict[tuple[Split, int], WindowPacker] = {}
        self._quarantine_path = scratch / "quarantine.jsonl"
        self._bare_path = scratch / "quarantine-bare.jsonl"
        self._quarantined = 0

    def add(self, split: Split, group: int, encoded: Encoded) -> None:
        """Adds a sample, or a text that windows are made of at the end."""
        if encoded.document is None:
            self._writers[split].append(encoded.segments, group, encoded.ranks)
            return
        place = (split, group)
        if place not in self._packers:
            self._packers[place] = WindowPacker(self._scratch / f"{split}-{group}.tokens", self._window)
        self._packers[place].append(encoded.document)

    def quarantine(self, rejected: Rejected) -> None:
        """Notes a record that could not be read."""
        self._quarantined += 1
        for path, line in (
            (self._quarantine_path, rejected),
            (self._bare_path, dataclasses.replace(rejected, text=None)),
        ):
            with path.open("a", encoding="utf-8") as file:
                file.write(line.as_json() + "\n")

    def store_quarantine(self) -> None:
        """Uploads what has been noted so far."""
        if self._quarantined:
            self._store.put_file(self.quarantine_uri, self._quarantine_path)
            self._store.put_file(f"{self._uri}/quarantine.jsonl", self._bare_path)

    def close(self) -> None:
        """Lets go of local files, also after an error."""
        for packer in self._packers.values():
            packer.close()

    def finish(self, listen: Callable[[], None]) -> dict[Split, SplitInfo]:
        """Packs the windows, calling ``listen`` for each, and writes what is left."""
        for (split, group), packer in sorted(self._packers.items()):
            for window in packer.windows():
                listen()
                self._writers[split].append(window, group)
        return {split: writer.finish() for split, writer in self._writers.items()}
