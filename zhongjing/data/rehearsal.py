"""What a stage would make of its sources: counts, lengths against its limit, and single examples.

Reads, splits, compares and tokenises as the job does (:mod:`zhongjing.data.corpus`), and stores nothing. So
what it counts of whole sources is what the job will count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import Field

from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage
from zhongjing.data.cachekey import longest_sample
from zhongjing.data.chat import Encoded, Unfit
from zhongjing.data.corpus import Corpus
from zhongjing.data.encoding import RecordEncoder, count
from zhongjing.data.inspect import Lengths, lengths
from zhongjing.data.leaks import HeldOut
from zhongjing.data.losses import data_warnings, length_field
from zhongjing.data.records import Position, Rejected
from zhongjing.data.records import Record as DataRecord
from zhongjing.data.rejections import Rejections
from zhongjing.data.samples import Segment
from zhongjing.errors import DataError
from zhongjing.storage.manifest import FrozenSource, Record, SourceCounts

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_BATCH = 256  # records tokenised together
_UNLIMITED = 1 << 40


class SourceRehearsal(Record):
    """What a stage would make of one source."""

    counts: SourceCounts
    tokens: Lengths = Field(
        description="of a record before it is cut; of a ranking its longest answer, prompt included"
    )
    error: str | None = Field(default=None, description="why reading ended early")


class StageRehearsal(Record):
    """What a stage would make of its sources."""

    stage: Stage
    limit: str = Field(description="the field that bounds a record's length, with its value")
    sources: list[SourceRehearsal]
    warnings: list[str]


@dataclass(frozen=True)
class Example:
    """One record as a stage trains on it."""

    source: str
    position: Position
    segments: tuple[Segment, ...]
    ranks: tuple[int, ...] | None
    cut: bool


@dataclass
class Rehearsal:
    """A stage's reading of its sources.

    Args:
        encoder: with the tokenizer and chat template that the stage will have; is configured here.
        listings: of the stage's sources and of all test data that is to be compared with.
        max_records: of a source that are read; none: all.

    Raises:
        ConfigError: the chat template does not show the stage's system turn.
    """

    document: TrainingPipeline
    stage: Stage
    encoder: RecordEncoder
    listings: Mapping[str, FrozenSource]
    store: ObjectStore | None = None
    max_records: int | None = None

    def __post_init__(self) -> None:
        settings = self.document.spec.stages[self.stage]
        self._settings = settings
        self._limit = longest_sample(settings)
        self._system = self.document.spec.stages.system_prompt(self.stage)
        self._set_limit(self._limit)
        self._corpus = Corpus(
            self.store, self.stage, settings, self.encoder, lambda *_: None, max_records=self.max_records
        )

    def run(self) -> StageRehearsal:
        """Reads all sources of the stage that have a listing."""
        reading = self._reading()
        tests = HeldOut()
        for source in self.document.spec.sources:
            if source.has_test_data and source.name in self.listings:
                tests |= self._corpus.held_out(source, self.listings[source.name])
        tallies = {source.name: Counter[str]() for source, _ in reading}
        sizes: dict[str, list[int]] = {source.name: [] for source, _ in reading}
        rejections = {source.name: Rejections() for source, _ in reading}
        layouts: dict[str, dict[str, int]] = {}
        errors: dict[str, str] = {}
        name = reading[0][0].name if reading else ""
        try:
            for shard in self._corpus.shards(reading, tests):
                name = shard.source.name
                tally = tallies[name]
                tally += shard.tally
                layouts[name] = shard.layouts
                for entry in shard.entries:
                    if isinstance(entry, Rejected):
                        tally["tied" if entry.is_tied else "quarantined"] += 1
                        if not entry.is_tied:
                            rejections[name].add(entry)
                kept = [entry for entry in shard.entries if not isinstance(entry, Rejected)]
                for start in range(0, len(kept), _BATCH):
                    batch = kept[start : start + _BATCH]
                    for (_, split), (made, size) in zip(
                        batch, self._measured([record for record, _ in batch]), strict=True
                    ):
                        count(made, split, tally)
                        sizes[name] += [] if size is None else [size]
        except DataError as damage:
            errors[name] = damage.message
        found = [
            SourceRehearsal(
                counts=SourceCounts(
                    name=source.name,
                    digest=frozen.digest,
                    layouts=layouts.get(source.name, {}),
                    **tallies[source.name],
                ),
                tokens=lengths(sizes[source.name]),
                error=errors.get(source.name),
            )
            for source, frozen in reading
        ]
        reasons = [
            f"{each.counts.name}: a stage would stop: {rejections[each.counts.name]}"
            for each, (source, _) in zip(found, reading, strict=True)
            if each.counts.quarantined > source.max_quarantine_fraction * each.counts.read
        ]
        return StageRehearsal(
            stage=self.stage,
            limit=length_field(self.stage, self._settings),
            sources=found,
            warnings=[
                *data_warnings(self.stage, self._settings, [each.counts for each in found]),
                *reasons,
            ],
        )

    def examples(self) -> Iterator[Example]:
        """Records as they are trained on, in the order of the sources; what is left out is passed over."""
        for shard in self._corpus.shards(self._reading(), HeldOut()):
            for record in shard.records:
                (made,) = self.encoder.encode([record])
                if isinstance(made, Unfit):
                    continue
                whole = () if made.document is None else (Segment.of_document(made.document),)
                segments = made.segments or whole
                yield Example(shard.source.name, record.position, segments, made.ranks, made.truncated)

    def _reading(self) -> list[tuple[Source, FrozenSource]]:
        own = [self.document.spec.source(ref.source) for ref in self._settings.data]
        return [(source, self.listings[source.name]) for source in own if source.name in self.listings]

    def _measured(self, records: Sequence[DataRecord]) -> Iterator[tuple[Encoded | Unfit, int | None]]:
        """Each record as the stage has it, and its length before it is cut."""
        self._set_limit(_UNLIMITED)
        whole = self.encoder.encode(records)
        self._set_limit(self._limit)
        for record, made in zip(records, whole, strict=True):
            if isinstance(made, Unfit):
                yield made, None
                continue
            if made.document is not None:  # packed into windows, never cut
                yield made, len(made.document)
                continue
            size = max(len(segment.ids) for segment in made.segments)
            yield (self.encoder.encode([record])[0] if size > self._limit else made), size

    def _set_limit(self, tokens: int) -> None:
        self.encoder.configure(self.stage, tokens, self._system)
