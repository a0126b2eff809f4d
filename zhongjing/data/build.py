"""Building the token cache of a stage: sources are streamed once, and nothing is dropped silently.

Every record read is kept, or counted under the reason why it was not: quarantined, a leak (it equals test
data), a duplicate, too long. A cache is made once for its key and shared by all runs that have the same
corpora, tokenizer and lengths.

::

    sources --read, split, compare--> shards --tokenise, anywhere--> parts --write, in order--> the cache
           (data/corpus.py)                 (data/parts.py)                (data/outputs.py)

One process reads and writes, so the bytes do not depend on who tokenises, or in what order. Parts stay in the
store until the manifest is there: a build that was interrupted reads its sources again and tokenises only
what is missing.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.codes import data as codes
from zhongjing.config.keys import digest
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Category, Source
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.data.cachekey import (
    cache_key_fields,
    longest_sample,
    tested_sources,
    tokenizer_files_digest,
)
from zhongjing.data.canaries import is_canary
from zhongjing.data.chat import Encoded, Unfit
from zhongjing.data.corpus import Corpus, Shard
from zhongjing.data.encoding import count
from zhongjing.data.leaks import HeldOut
from zhongjing.data.order import groups_by_category
from zhongjing.data.outputs import CacheOutputs
from zhongjing.data.parts import Encode, PartMaker, Purpose
from zhongjing.data.records import Dialogue, Record, Rejected, record_texts
from zhongjing.data.rejections import Rejections, check_answers, check_source
from zhongjing.data.tasks import encode_here
from zhongjing.data.tokens import CacheManifest, TokenCacheRef, read_manifest, reference
from zhongjing.errors import ConflictError, DataError, MissingInputError, NotFoundError
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenSource, SourceCounts, layouts_text, unused_text

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

logger = logging.getLogger(__name__)

Report = Callable[[str, float], None]

_TELL_SECONDS = 1.0  # between two reports while something goes on
_READ = 0.99  # of the work is done when all sources are tokenised
_WRITING = "writing the token cache"


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
    encode: Encode = encode_here,
) -> TokenCacheRef:
    """Makes the token cache of a stage, or finds it made.

    Args:
        store: where sources and cache are.
        layout: names of the pipeline's objects.
        document: resolved.
        stage: one that it has.
        sources: frozen listings of the stage's sources, and of every source with test data.
        tokenizer_folder: local folder of the tokenizer, chat template included.
        report: is told what is being done and how much of it is done, 0 to 1, about once a second; an error
            that it raises ends the build.
        quarantine_uri: where records that could not be read are listed (JSON lines), if there are any.
        scratch: local folder for what is being written; none: the system's temporary one.
        encode: where the records are tokenised.

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
    key = digest(fields)
    uri = layout.tokens(key)
    manifest = read_manifest(store, uri)
    if manifest is None:
        report("reading and tokenising the sources", 0.0)
        with tempfile.TemporaryDirectory(prefix="zhongjing-tokens-", dir=scratch) as folder:
            settings = document.spec.stages[stage]
            purpose = Purpose(stage, longest_sample(settings), document.spec.stages.system_prompt(stage))
            maker = PartMaker(store, uri, tokenizer_folder, purpose)
            builder = _Builder(document, stage, settings, sources, maker, Path(folder), report, encode)
            manifest = builder.build(key, fields, quarantine_uri)
        try:
            store.put(f"{uri}/manifest.json", manifest.model_dump_json().encode(), if_none_match=True)
        except ConflictError:
            # Another job made the same cache at the same time; the bytes are the same.
            manifest = read_manifest(store, uri) or manifest
    else:
        report("the token cache is there", 1.0)
        rejections = _copy_quarantine(store, uri, quarantine_uri)
        for counts in manifest.counts:
            source = document.spec.source(counts.name)
            check_source(source, counts, rejections.get(counts.name, Rejections()), quarantine_uri)
    store.delete_folder(f"{uri}/parts")
    return reference(uri, manifest)


@dataclass
class _Builder:
    """One build: what is open while sources are read."""

    document: TrainingPipeline
    stage: Stage
    settings: AnySettings
    frozen: Sequence[FrozenSource]
    maker: PartMaker
    scratch: Path
    report: Report
    encode: Encode
    _told: float = float("-inf")
    _done: float = 0.0
    _doing: str = ""

    def build(self, key: str, fields: dict[str, object], quarantine_uri: str) -> CacheManifest:
        settings = self.settings
        encoder = self.maker.encoder
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
        self.bytes = {name: sum(item.size for item in one.objects) for name, one in listings.items()}
        self.total_bytes = sum(self.bytes[source.name] for source, _ in reading)
        corpus = Corpus(self.maker.store, self.stage, settings, encoder, self._listen)
        for source, frozen in reading:
            self._doing = f"checking the answers of {source.name}"
            check_answers(source, corpus.records(source, frozen), encoder)
        tests = self._held_out(own, listings, corpus)
        self._doing = ""
        self.outputs = CacheOutputs(
            self.maker.store,
            self.maker.uri,
            dtype=encoder.dtype,
            window=longest_sample(settings),
            scratch=self.scratch,
            quarantine_uri=quarantine_uri,
        )
        with closing(self.outputs):
            counts = self._merge(corpus.shards(reading, tests), reading)
            self.report(_WRITING, _READ)
            splits = self.outputs.finish(lambda: self._tell(_WRITING, _READ))
        if not splits["train"].samples:
            raise DataError(
                f"nothing is left to train on: {_summary(counts)}",
                code=codes.NO_GOOD_RECORD,
                where=f"stages.{self.stage.value}.data",
                remedy="look at the sources with `zhongjing data inspect -f FILE`, at maxLength and "
                "the test sources",
            )
        return CacheManifest(
            key=key,
            dtype=encoder.dtype,
            block_tokens=self.outputs.block_tokens,
            blocks_per_shard=self.outputs.blocks_per_shard,
            ranked=self.stage is Stage.RM,
            group_names=self.group_names,
            splits=dict(splits),
            counts=counts,
            fields=fields,
        )

    def _held_out(self, own: Sequence[Source], listings: dict[str, FrozenSource], corpus: Corpus) -> HeldOut:
        """All test data of the pipeline: what has something of them is taken out of every stage."""
        tests = [s for s in self.document.spec.sources if s.has_test_data and s.name in listings]
        found = HeldOut()
        if all(source.leak_overlap is None for source in tests) and {
            source.name for source in (*own, *tests)
        } == {source.name for source in own[:1]}:
            return found  # a source never disagrees with itself: equal units have equal hashes
        for source in tests:
            self._doing = f"reading the test data of {source.name}"
            found |= corpus.held_out(source, listings[source.name])
        return found

    def _merge(
        self, shards: Iterator[Shard], listings: Sequence[tuple[Source, FrozenSource]]
    ) -> list[SourceCounts]:
        """Writes the shards in their order, and counts what became of every source's records."""
        counts: list[SourceCounts] = []
        tally: Counter[str] = Counter()
        rejections = Rejections()
        digests = {source.name: frozen.digest for source, frozen in listings}
        for shard in self.encode(self.maker, shards, self._encoding):
            tally += shard.tally
            self._write(shard, tally, rejections)
            self._encoding(shard, 1.0)
            if not shard.ends_source:
                continue
            name = shard.source.name
            told = {"unused": shard.unused, "layouts": shard.layouts}
            counts.append(SourceCounts(name=name, digest=digests[name], **told, **tally))
            if shard.layouts:
                logger.info("source %s: read as %s", name, layouts_text(shard.layouts))
            if shard.unused:
                logger.info("source %s: not used: %s", name, unused_text(shard.unused))
            self.outputs.store_quarantine()
            check_source(shard.source, counts[-1], rejections, self.outputs.quarantine_uri)
            tally, rejections = Counter(), Rejections()
        return counts

    def _write(self, shard: Shard, tally: Counter[str], rejections: Rejections) -> None:
        encoded = iter(self.maker.load(shard))
        for entry in shard.entries:
            if isinstance(entry, Rejected):
                tally["tied" if entry.is_tied else "quarantined"] += 1
                self._reject(entry, rejections)
                continue
            record, split = entry
            result = next(encoded)
            if is_canary(record):  # what does not fit was never planted, and says so by the count
                if isinstance(result, Encoded):
                    tally["canaries"] += 1
                    self.outputs.add(split, self._group(shard.source, record), result)
                continue
            count(result, split, tally)
            if isinstance(result, Encoded):
                self.outputs.add(split, self._group(shard.source, record), result)
            elif result is not Unfit.TOO_LONG:
                self._reject(_unfit(record, shard.source, result), rejections)

    def _reject(self, rejected: Rejected, rejections: Rejections) -> None:
        if not rejected.is_tied:
            rejections.add(rejected)
        self.outputs.quarantine(rejected)

    def _group(self, source: Source, record: Record) -> int:
        if not self.by_category:
            return self.group_names.index(source.name)
        if source.category != "auto":
            return self.group_names.index(source.category)
        assert isinstance(record, Dialogue), "only sft has categories, and it reads dialogues"
        questions = sum(turn.role == "user" for turn in record.turns)
        return self.group_names.index(Category.MULTI_TURN if questions > 1 else Category.SINGLE_TURN)

    def _listen(self, source: Source, position: int) -> None:
        """While a source is read."""
        if self._doing:
            self._tell(self._doing, position / max(1, self.bytes[source.name]))
        else:  # ahead of what is tokenised
            self._tell(f"tokenising {source.name}", self._done)

    def _encoding(self, shard: Shard, part: float) -> None:
        """While a shard is tokenised."""
        position = shard.begin + part * (shard.end - shard.begin)
        self._done = max(self._done, _READ * min(1.0, position / max(1, self.total_bytes)))
        self._tell(f"tokenising {shard.source.name}", self._done)

    def _tell(self, message: str, fraction: float) -> None:
        now = time.monotonic()
        if now - self._told >= _TELL_SECONDS:
            self._told = now
            self.report(message, min(1.0, fraction))


def _unfit(record: Record, source: Source, why: Unfit) -> Rejected:
    """A record that was read, and that gives no tokens to be learned."""
    text = "\n".join(record_texts(record))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return Rejected(
        record.position,
        str(why.value),
        digest,
        text if source.keep_text else None,
        codes.REWRITTEN_ANSWERS if why is Unfit.REWRITTEN else codes.UNUSABLE_RECORD,
    )


def _copy_quarantine(store: ObjectStore, uri: str, quarantine_uri: str) -> dict[str, Rejections]:
    """Gives the stage the list of a cache's bad records; returns them by source."""
    try:
        listed = store.get(f"{uri}/quarantine.jsonl")
    except NotFoundError:
        return {}  # every record could be read
    # Where there is this stage's own list, which may hold text, it stays.
    with suppress(ConflictError):
        store.put(quarantine_uri, listed, if_none_match=True)
    found: dict[str, Rejections] = {}
    for line in listed.splitlines():
        rejected = Rejected.from_json(line)
        if not rejected.is_tied:
            found.setdefault(rejected.position.source, Rejections()).add(rejected)
    return found


def _summary(counts: Sequence[SourceCounts]) -> str:
    return "; ".join(
        f"{c.name}: {c.read} read, {c.train} for training, {c.validation + c.test} held out, "
        f"{c.quarantined} quarantined, {c.too_long} too long, {c.duplicates} duplicates, {c.leaks} leaks, "
        f"{c.tied} with answers that all tie"
        for c in counts
    )
