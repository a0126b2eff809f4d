"""Building the token cache of a stage: sources are streamed once, and nothing is dropped silently.

Every record read is kept, or counted under the reason why it was not: quarantined, a leak (it equals test
data), a duplicate, too long. A cache is made once for its key and shared by all runs that have the same
corpora, tokenizer and lengths.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.codes import data as codes
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Category, Source
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.data.cachekey import (
    cache_key,
    cache_key_fields,
    has_test_data,
    longest_sample,
    section_characters_of,
    tested_sources,
    tokenizer_files_digest,
)
from zhongjing.data.chat import Unfit
from zhongjing.data.encoding import RecordEncoder, adapt
from zhongjing.data.fidelity import check_answers
from zhongjing.data.order import groups_by_category
from zhongjing.data.outputs import CacheOutputs
from zhongjing.data.readers import ReadStats, Rejected, read_object, record_texts
from zhongjing.data.records import Dialogue, Record
from zhongjing.data.rejections import Rejections, check_source
from zhongjing.data.split import Split, assign, content_of, unit_of
from zhongjing.data.tokens import CacheManifest, TokenCacheRef, read_manifest, reference
from zhongjing.errors import ConflictError, DataError, MissingInputError, NotFoundError
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, SourceCounts

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

Report = Callable[[str, float], None]

_BATCH = 256  # records tokenised together
_LONG_BATCH = 1 << 19  # characters after which a batch is tokenised, however few its records


def build_token_cache(  # noqa: PLR0917
    store: ObjectStore,
    layout: Layout,
    document: TrainingPipeline,
    stage: Stage,
    sources: Sequence[FrozenSource],
    tokenizer_folder: Path,
    report: Report,
    quarantine_uri: str,
    scratch: Path | None = None,
) -> TokenCacheRef:
    """Makes the token cache of a stage, or finds it made.

    Args:
        store: where sources and cache are.
        layout: names of the pipeline's objects.
        document: the resolved document.
        stage: the stage.
        sources: frozen listings of the stage's sources, and of every source with test data.
        tokenizer_folder: local folder of the tokenizer, chat template included.
        report: is told what is being done and how much of it is done, 0 to 1.
        quarantine_uri: where records that could not be read are listed (JSON lines), if there are any.
        scratch: local folder for what is being written; none: the system's temporary one.

    Returns:
        Where the cache is, and what became of every source's records.

    Raises:
        DataError: a source cannot be read, is empty or has too many bad records, or nothing is left to train
            on.
        ConfigError: the chat template cannot be trained with.
        MissingInputError: a source of the stage has no listing.
    """
    digests = {source.name: source.digest for source in sources}
    fields = cache_key_fields(document, stage, digests, tokenizer_files_digest(tokenizer_folder))
    key = cache_key(fields)
    uri = layout.tokens(key)
    manifest = read_manifest(store, uri)
    if manifest is None:
        report("reading and tokenising the sources", 0.0)
        with tempfile.TemporaryDirectory(prefix="zhongjing-tokens-", dir=scratch) as folder:
            builder = _Builder(
                store,
                uri,
                document,
                stage,
                sources,
                RecordEncoder.load(tokenizer_folder),
                Path(folder),
                report,
            )
            manifest = builder.build(key, fields, quarantine_uri)
        try:
            store.put(f"{uri}/manifest.json", manifest.model_dump_json().encode(), if_none_match=True)
        except ConflictError:
            # Another job made the same cache at the same time; the bytes are the same.
            manifest = read_manifest(store, uri) or manifest
    else:
        report("the token cache is there", 1.0)
        _copy_quarantine(store, uri, quarantine_uri)
        for counts in manifest.counts:
            check_source(document.spec.source(counts.name), counts, Rejections(), quarantine_uri)
    return reference(uri, manifest)


def corpus_texts(store: ObjectStore | None, source: Source, frozen: FrozenSource) -> Iterator[str]:
    """Texts of a source, a document or turn an item, for training a tokenizer. Test data is left out."""
    if source.split == "test":
        return
    for record in read_source(store, source, frozen):
        if not isinstance(record, Rejected) and _split_of(record, source, 0.0) != "test":
            yield from record_texts(record)


def read_source(
    store: ObjectStore | None,
    source: Source,
    frozen: FrozenSource,
    *,
    section_characters: int = 2000,
    encoder: RecordEncoder | None = None,
    stats: ReadStats | None = None,
) -> Iterator[Record | Rejected]:
    """Records of all objects of a source, in the order of its listing; see :func:`read_object`."""
    for item in frozen.objects:
        yield from read_object(
            item.uri,
            source,
            store,
            section_characters=section_characters,
            forbidden=None if encoder is None else encoder.special,
            stats=stats,
        )


def _split_of(record: Record, source: Source, validation_fraction: float) -> Split:
    return assign(
        unit_of(record),
        test_fraction=source.test_fraction,
        validation_fraction=validation_fraction,
        test_only=source.split == "test",
    )


@dataclass
class _Builder:
    """One build: what is open while sources are read."""

    store: ObjectStore
    uri: str
    document: TrainingPipeline
    stage: Stage
    frozen: Sequence[FrozenSource]
    encoder: RecordEncoder
    scratch: Path
    report: Report
    seen: set[bytes] = field(default_factory=set)
    done_bytes: int = 0

    def build(self, key: str, fields: dict[str, object], quarantine_uri: str) -> CacheManifest:
        settings = self.document.spec.stages.get(self.stage)
        assert settings is not None
        self.encoder.configure(
            self.stage, longest_sample(settings), self.document.spec.stages.system_prompt(self.stage)
        )
        self.settings: AnySettings = settings
        self.by_category = groups_by_category(settings)
        listings = {source.name: source for source in self.frozen}
        own = [self.document.spec.source(ref.source) for ref in settings.data]
        for source in own:
            if source.name not in listings:
                raise MissingInputError(
                    "the source has no listing", code=codes.SOURCE_NOT_FOUND, where=f"source {source.name}"
                )
        extra = [s for s in tested_sources(self.document, self.stage) if s.name in listings]
        reading = [(source, listings[source.name]) for source in (*own, *extra)]
        self.group_names = [category.value for category in Category] if self.by_category else []
        if not self.by_category:
            self.group_names = [source.name for source, _ in reading]
        for source, frozen in reading:
            check_answers(source, self._records(source, frozen, None), self.encoder)
        test_units = self._test_units(own, listings)
        self.total_bytes = sum(item.size for _, frozen in reading for item in frozen.objects)
        self.outputs = CacheOutputs(
            self.store,
            self.uri,
            dtype=self.encoder.dtype,
            window=longest_sample(settings),
            scratch=self.scratch,
            quarantine_uri=quarantine_uri,
        )
        with closing(self.outputs):
            counts = [self._read(source, frozen, test_units) for source, frozen in reading]
            self.report("writing the token cache", 0.99)
            splits = self.outputs.finish()
        if not splits["train"].samples:
            raise DataError(
                f"nothing is left to train on: {_summary(counts)}",
                code=codes.NO_GOOD_RECORD,
                where=f"stages.{self.stage.value}.data",
                remedy="look at the sources with `zhongjing data inspect`, at maxLength and the test sources",
            )
        return CacheManifest(
            key=key,
            dtype=self.encoder.dtype,
            block_tokens=self.outputs.block_tokens,
            blocks_per_shard=self.outputs.blocks_per_shard,
            ranked=self.stage is Stage.RM,
            group_names=self.group_names,
            splits=dict(splits),
            counts=counts,
            fields=fields,
        )

    def _test_units(self, own: Sequence[Source], listings: dict[str, FrozenSource]) -> set[bytes]:
        """Units of all test data of the pipeline: what equals them is taken out of every stage."""
        tests = [s for s in self.document.spec.sources if has_test_data(s) and s.name in listings]
        if {source.name for source in (*own, *tests)} == {source.name for source in own[:1]}:
            return set()  # a source never disagrees with itself: equal units have equal hashes
        units: set[bytes] = set()
        for source in tests:
            self.report(f"reading the test data of {source.name}", 0.0)
            for record in self._records(source, listings[source.name], None):
                if not isinstance(record, Rejected) and _split_of(record, source, 0.0) == "test":
                    units.add(unit_of(record))
        return units

    def _records(
        self, source: Source, frozen: FrozenSource, stats: ReadStats | None
    ) -> Iterator[Record | Rejected]:
        return read_source(
            self.store,
            source,
            frozen,
            section_characters=section_characters_of(self.settings),
            encoder=self.encoder,
            stats=stats,
        )

    def _read(self, source: Source, frozen: FrozenSource, test_units: set[bytes]) -> SourceCounts:
        tally: Counter[str] = Counter()
        rejections = Rejections()
        stats = ReadStats()
        batch: list[tuple[Record, Split]] = []
        characters = 0
        for record in self._records(source, frozen, stats):
            tally["read"] += 1
            if isinstance(record, Rejected):
                tally["quarantined"] += 1
                rejections.add(record)
                self.outputs.quarantine(record)
                continue
            wanted = adapt(record, self.stage)
            split = _split_of(wanted, source, self.settings.validation_fraction)
            if split != "test" and unit_of(wanted) in test_units:
                tally["leaks"] += 1
                continue
            content = content_of(wanted)
            if content in self.seen:
                tally["duplicates"] += 1
                continue
            self.seen.add(content)
            batch.append((wanted, split))
            characters += sum(map(len, record_texts(wanted)))
            if len(batch) == _BATCH or characters > _LONG_BATCH:
                self._encode(source, batch, tally, rejections)
                batch, characters = [], 0
                self._progress(source, stats)
        self._encode(source, batch, tally, rejections)
        self.done_bytes += sum(item.size for item in frozen.objects)
        counts = SourceCounts(
            name=source.name,
            digest=frozen.digest,
            read=tally["read"],
            kept=tally["kept"],
            train=tally["train"],
            validation=tally["validation"],
            test=tally["test"],
            truncated=tally["truncated"] + stats.truncated,
            too_long=tally["too_long"],
            duplicates=tally["duplicates"],
            leaks=tally["leaks"],
            quarantined=tally["quarantined"],
        )
        self.outputs.store_quarantine()
        check_source(source, counts, rejections, self.outputs.quarantine_uri)
        return counts

    def _encode(
        self, source: Source, batch: list[tuple[Record, Split]], tally: Counter[str], rejections: Rejections
    ) -> None:
        encoded = self.encoder.encode([record for record, _ in batch])
        for (record, split), result in zip(batch, encoded, strict=True):
            if result is Unfit.TOO_LONG:
                tally["too_long"] += 1
                continue
            if isinstance(result, Unfit):
                tally["quarantined"] += 1
                rejected = _rewritten(record, source)
                rejections.add(rejected)
                self.outputs.quarantine(rejected)
                continue
            tally["kept"] += 1
            tally[split] += 1
            tally["truncated"] += result.truncated
            self.outputs.add(split, self._group(source, record), result)

    def _group(self, source: Source, record: Record) -> int:
        if not self.by_category:
            return self.group_names.index(source.name)
        if source.category != "auto":
            return self.group_names.index(source.category)
        assert isinstance(record, Dialogue), "only sft has categories, and it reads dialogues"
        questions = sum(turn.role == "user" for turn in record.turns)
        return self.group_names.index(Category.MULTI_TURN if questions > 1 else Category.SINGLE_TURN)

    def _progress(self, source: Source, stats: ReadStats) -> None:
        position = self.done_bytes + (0 if stats.stream is None else stats.stream.tell())
        self.report(f"tokenising {source.name}", 0.99 * min(1.0, position / max(1, self.total_bytes)))


def _rewritten(record: Record, source: Source) -> Rejected:
    """A record that was read, and whose answers the chat template changes."""
    text = "\n".join(record_texts(record))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Rejected(
        record.position,
        str(Unfit.REWRITTEN.value),
        digest,
        text if source.keep_text else None,
        codes.REWRITTEN_ANSWERS,
    )


def _copy_quarantine(store: ObjectStore, uri: str, quarantine_uri: str) -> None:
    try:
        store.put(quarantine_uri, store.get(f"{uri}/quarantine.jsonl"), if_none_match=True)
    except NotFoundError:
        return  # every record could be read
    except ConflictError:
        return  # this stage's own list, which may hold text, stays


def _summary(counts: Sequence[SourceCounts]) -> str:
    return "; ".join(
        f"{c.name}: {c.read} read, {c.train} for training, {c.validation + c.test} held out, "
        f"{c.quarantined} quarantined, {c.too_long} too long, {c.duplicates} duplicates, {c.leaks} leaks"
        for c in counts
    )
