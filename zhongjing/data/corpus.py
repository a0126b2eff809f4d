"""The sources of a stage, read once and cut into shards: runs of records that are tokenised as a whole.

Reading decides what a record is worth before it costs anything: its split, whether it leaks test data,
whether it was there before. That depends on the records before it, so one process reads, in the order of the
listings. Tokenising takes 6 to 40 times as long, depends on nothing and is done by anybody. The records alone
decide where a shard ends: shards are the same for every format and compression, and in every build.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

from zhongjing.config.sources import Source
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.data.cachekey import section_characters_of
from zhongjing.data.canaries import copies, is_turn
from zhongjing.data.encoding import RecordEncoder, adapt
from zhongjing.data.leaks import HeldOut, index_of
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.data.records import Record, Rejected, record_texts
from zhongjing.data.split import Split, assign, content_of, unit_of
from zhongjing.storage.manifest import FrozenSource, Unused

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

SHARD_CHARACTERS = 1 << 21
"""About 6 MB of Chinese, 2 to 6 seconds of tokenising; what a lost task or an interrupted build costs."""
_SHARD_ENTRIES = 1 << 16

PLANTING = (Stage.PRETRAIN, Stage.SFT)
"""Stages that learn the words of a source, so that its canaries are planted there."""

_LISTEN_EVERY = 64  # records

Listen = Callable[[Source, int], None]
"""Is called often while a source is read, with the bytes of it that were read. It may raise, to end that."""


@dataclass(slots=True)
class Shard:
    """A run of a source's records, and what became of those that are not in it.

    ``number`` counts over all sources, of which ``begin`` bytes were read before it, ``end`` with it.
    """

    source: Source
    number: int
    begin: int
    end: int = 0
    entries: list[tuple[Record, Split] | Rejected] = field(default_factory=list)
    tally: Counter[str] = field(default_factory=Counter)
    characters: int = 0
    ends_source: bool = False
    unused: dict[str, Unused] = field(default_factory=dict)  # of the whole source, where it ends here
    layouts: dict[str, int] = field(default_factory=dict)  # likewise
    _contents: list[bytes] = field(default_factory=list)

    def add(self, record: Record, split: Split, content: bytes) -> None:
        """Adds a record that is new."""
        self.entries.append((record, split))
        self._contents.append(content)
        self.characters += sum(map(len, record_texts(record)))

    @property
    def is_full(self) -> bool:
        """Whether the next record belongs to the next shard."""
        return self.characters >= SHARD_CHARACTERS or len(self.entries) >= _SHARD_ENTRIES

    @property
    def records(self) -> list[Record]:
        """Those that are to be tokenised."""
        return [entry[0] for entry in self.entries if not isinstance(entry, Rejected)]

    @property
    def name(self) -> str:
        """Tells which records it has: a build that cuts otherwise does not take it for one of its own."""
        digest = hashlib.blake2b(b"".join(self._contents), digest_size=8).hexdigest()
        return f"{self.number:06d}-{digest}"


@dataclass
class Corpus:
    """Sources as one stage reads them.

    Args:
        store: where they are.
        stage: whose.
        settings: of the stage.
        encoder: configured for it; tells what must not stand in a text.
        listen: is called while something is read.
        max_records: of a source that are read; none: all.
    """

    store: ObjectStore | None
    stage: Stage
    settings: AnySettings
    encoder: RecordEncoder
    listen: Listen
    max_records: int | None = None
    _position: int = 0  # bytes of the source being read

    def records(
        self, source: Source, frozen: FrozenSource, stats: ReadStats | None = None
    ) -> Iterator[Record | Rejected]:
        """Records of all objects of a source, in the order of its listing."""
        stats = ReadStats() if stats is None else stats
        count = before = 0
        for item in frozen.objects:
            for record in read_object(
                item.uri,
                source,
                self.store,
                section_characters=section_characters_of(self.settings),
                forbidden=self.encoder.special,
                stats=stats,
            ):
                if count % _LISTEN_EVERY == 0:
                    self._position = before + (0 if stats.stream is None else stats.stream.tell())
                    self.listen(source, self._position)
                if count == self.max_records:
                    return
                count += 1
                yield record
            before += item.size

    def held_out(self, source: Source, frozen: FrozenSource) -> HeldOut:
        """The source's test data: their units and, where it has a ``leakOverlap``, their passages."""
        units: set[bytes] = set()

        def records() -> Iterator[Record]:
            for record in self.records(source, frozen):
                if not isinstance(record, Rejected) and split_of(record, source, 0.0) == "test":
                    units.add(unit_of(record))
                    yield record

        if source.leak_overlap is None:
            deque(records(), maxlen=0)
            return HeldOut(units)
        return HeldOut(units, (index_of([(source.name, records())], source.leak_overlap),))

    def shards(self, reading: Sequence[tuple[Source, FrozenSource]], tests: HeldOut) -> Iterator[Shard]:
        """The sources one after another; each ends with a shard that may be empty.

        Records that have something of ``tests`` are counted as leaks.

        Raises:
            DataError: an object cannot be read.
        """
        seen: set[bytes] = set()
        number = done = 0
        for source, frozen in reading:
            stats = ReadStats()
            shard = Shard(source, number, done)
            planted = copies(source) if self.stage in PLANTING else iter(())
            kept = 0
            for record in self.records(source, frozen, stats):
                if shard.is_full:
                    shard.end = done + self._position
                    yield shard
                    number += 1
                    shard = Shard(source, number, shard.end)
                shard.tally["read"] += 1
                if isinstance(record, Rejected):
                    shard.entries.append(record)
                    shard.characters += len(record.text or "")
                    continue
                wanted = adapt(record, self.stage)
                split = split_of(wanted, source, self.settings.validation_fraction)
                if split != "test" and tests.has(wanted):
                    shard.tally["leaks"] += 1
                    continue
                content = content_of(wanted)
                if content in seen:
                    shard.tally["duplicates"] += 1
                    continue
                seen.add(content)
                shard.add(wanted, split, content)
                kept += 1
                if is_turn(kept):
                    _plant(shard, islice(planted, 1))
            _plant(shard, planted)
            shard.tally["unanswered"] += stats.truncated
            for uri, detected in stats.detected.items():
                logger.info("source %s: %s is read as %s", source.name, uri, detected.reading)
            shard.unused = stats.unused.report()
            shard.layouts = dict(stats.layouts.most_common())
            shard.ends_source = True
            done += sum(item.size for item in frozen.objects)
            shard.end = done
            yield shard
            number += 1


def _plant(shard: Shard, planted: Iterator[Record]) -> None:
    """Adds canaries. Their copies are equal and meant to be, and none of them is held out."""
    for record in planted:
        shard.add(record, "train", content_of(record))


def corpus_texts(store: ObjectStore | None, source: Source, frozen: FrozenSource) -> Iterator[str]:
    """Texts of a source, a document or turn an item, for training a tokenizer. Test data is left out."""
    if source.split == "test":
        return
    for item in frozen.objects:
        for record in read_object(item.uri, source, store):
            if not isinstance(record, Rejected) and split_of(record, source, 0.0) != "test":
                yield from record_texts(record)


def split_of(record: Record, source: Source, validation_fraction: float) -> Split:
    """The split that a record of ``source`` belongs to."""
    return assign(
        unit_of(record),
        test_fraction=source.test_fraction,
        validation_fraction=validation_fraction,
        test_only=source.split == "test",
    )
