"""Items that no reader of the data plane knows, on their way into a construction: each as a text of JSON."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zhongjing.config.sources import Source
from zhongjing.construct.kg.readers import graph_of
from zhongjing.construct.parts import Entry
from zhongjing.construct.runner import Feed
from zhongjing.construct.sources.knowledge import items_of
from zhongjing.data.compression import decompressed
from zhongjing.data.formats import SNIFF_BYTES, Detected, sniff
from zhongjing.data.json_values import json_members
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import BadRow, Position, Rejected, Row, TextRecord
from zhongjing.data.rows import iter_rows, open_text
from zhongjing.data.streams import open_object
from zhongjing.storage.manifest import FrozenObject, FrozenSource

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore


def as_item(value: object, position: Position) -> TextRecord:
    """An item as what a construction moves."""
    return TextRecord(json.dumps(value, ensure_ascii=False, default=str), position)


class ItemFeed(Feed):
    """Items of files: elements of arrays, lines of JSON, rows of tables; or the values of one object.

    Args:
        members: whether a file is one object whose values are the items.
    """

    def __init__(self, *, members: bool = False) -> None:
        self.members = members

    def read(self, uri: str, source: Source, store: ObjectStore | None, stats: ReadStats) -> Generator[Entry]:
        """Items of one object, in its order. Raises DataError where it cannot be read at all."""
        with open_object(uri, store) as stored:
            stats.stream = stored
            try:
                stream = decompressed(stored)
                head = stream.read(SNIFF_BYTES)
                stream.seek(0)
                detected = sniff(
                    head,
                    complete=len(head) < SNIFF_BYTES,
                    format_hint=source.format,
                    encoding_hint=source.encoding,
                )
                for row in self._rows(stream, detected):
                    position = Position(source.name, uri, row.index, row.line)
                    if isinstance(row, BadRow):
                        yield _rejected(position, row, keep_text=source.keep_text)
                    else:
                        yield as_item(row.value, position)
            finally:
                stats.stream = None

    def _rows(self, stream: Any, detected: Detected) -> Iterator[Row | BadRow]:
        if not self.members or detected.format not in ("json", "jsonl"):
            yield from iter_rows(stream, detected)
            return
        text = open_text(stream, detected)
        try:
            yield from json_members(text)
        finally:
            text.detach()


def _rejected(position: Position, row: BadRow, *, keep_text: bool) -> Rejected:
    data = row.raw.encode("utf-8", "surrogateescape")
    text = data.decode("utf-8", "replace") if keep_text else None
    return Rejected(position, row.reason, hashlib.sha256(data).hexdigest(), text)


class GraphFeed(Feed):
    """Entities of a graph. All files are one graph, which is in memory (about 2 KB a statement)."""

    def entries(self, store: ObjectStore | None, source: Source, frozen: FrozenSource) -> Iterator[Entry]:
        """Entities with their statements, and what could not be read of the files."""
        graph = graph_of((item.uri.rpartition("/")[2], _bytes(item.uri, store)) for item in frozen.objects)
        uri = frozen.objects[0].uri
        for index, item in enumerate(items_of(graph)):
            yield as_item(item, Position(source.name, uri, index))


class ListFeed(Feed):
    """Items that are made here: no input.

    Args:
        name: of what is made.
        items: in their order.
    """

    def __init__(self, name: str, items: Sequence[object]) -> None:
        self._uri = f"made://{name}/items"
        self._items = items

    def freeze(self, store: ObjectStore | None, source: Source) -> FrozenSource:
        """The list as if it were an object."""
        del store
        data = json.dumps(self._items, ensure_ascii=False).encode()
        digest = hashlib.sha256(data).hexdigest()
        item = FrozenObject(uri=self._uri, size=len(data), digest=digest)
        return FrozenSource(name=source.name, objects=[item], digest=digest)

    def entries(self, store: ObjectStore | None, source: Source, frozen: FrozenSource) -> Iterator[Entry]:
        """The items."""
        del store, frozen
        for index, item in enumerate(self._items):
            yield as_item(item, Position(source.name, self._uri, index))


def _bytes(uri: str, store: ObjectStore | None) -> bytes:
    if uri.startswith("s3://"):
        assert store is not None, "s3:// needs a store"
        return bytes(store.get(uri))
    return Path(uri).read_bytes()
