"""Runs steps over a source: from S3 (or files of this machine) to S3, part by part.

::

    source --read, cut--> parts --steps, anywhere--> part-NNNNN.jsonl --all there--> _manifest.json
          (data/readers.py)   (construct/parts.py)

One process reads; memory holds a few parts. A part that is there is not made again, so a run that was killed
goes on where it was, and its output is the same to the byte. Everything below the output's folder belongs to
one key (:func:`~zhongjing.construct.manifest.key_of`): a run with another key is refused.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import zhongjing
from zhongjing.codes import construct as codes
from zhongjing.config.sources import Source
from zhongjing.construct import processes
from zhongjing.construct.access import reach_with
from zhongjing.construct.inputs import check_apart, check_unchanged, freeze, frozen_now
from zhongjing.construct.manifest import (
    MANIFEST_NAME,
    Ancestor,
    PartRecord,
    SourceManifest,
    StepRecord,
    find_manifest,
    key_of,
    lineage_has_passed,
    parents_of,
)
from zhongjing.construct.parts import Entry, Part, PartMaker, cut, part_name
from zhongjing.construct.step import FinishingStep, Step, admit
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.data.records import Rejected
from zhongjing.data.rejections import Rejections, check_source
from zhongjing.data.tasks import encode_by
from zhongjing.errors import ConfigError, ConflictError, StorageError
from zhongjing.storage.manifest import FrozenObject, FrozenSource, Record, SourceCounts

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_RECENT_SECONDS = 180.0  # that say how fast the rest will go
PATIENCE_SECONDS = 3600.0
"""After which a part that no process has ended is made here, too."""

Work = Callable[[PartMaker, Iterable[Part], Callable[[Part, float], None]], Iterator[Part]]
"""Where parts are made: yields them in their order, each once it is there (:func:`encode_by`)."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a run is.

    Attributes:
        fraction: of the source's bytes, 0 to 1.
        records: that were read and are done.
        seconds_left: None: not known yet.
    """

    fraction: float
    records: int
    seconds_left: float | None


Listen = Callable[[Progress], None]
"""Is told often how far a run is. It may raise, to end the run."""


class Begun(Record):
    """What an output's folder belongs to; the first thing that is written there."""

    key: str
    steps: list[StepRecord]


def in_processes(count: int | None = None, patience: float = PATIENCE_SECONDS) -> Work:
    """Makes parts by processes of this machine, once there is more than one.

    Args:
        count: how many processes; None: one for each core that this process may use.
        patience: seconds after which a part that no process has ended is made here, too.
    """
    return encode_by(partial(processes.connect, places=count), here=1, patience=patience)


here: Work = encode_by(lambda maker: None)
"""Makes parts in this process, one after another."""


class Feed:
    """What records come from: objects of a source, as the data plane reads them. Others derive from it."""

    def freeze(self, store: ObjectStore | None, source: Source) -> FrozenSource:
        """What is read, as it is now. Raises as :func:`~zhongjing.construct.inputs.freeze`."""
        return freeze(store, source)

    def lineage(
        self, store: ObjectStore | None, objects: Sequence[FrozenObject]
    ) -> tuple[list[Ancestor], bool]:
        """Constructed sources that the objects come from, and whether all do: :func:`parents_of`."""
        return parents_of(store, objects)

    def read(self, uri: str, source: Source, store: ObjectStore | None, stats: ReadStats) -> Generator[Entry]:
        """Records and rejections of one object, in its order. Raises as :func:`read_object`."""
        return read_object(uri, source, store, stats=stats)

    def entries(
        self, store: ObjectStore | None, source: Source, frozen: FrozenSource
    ) -> Iterator[Entry] | None:
        """All records at once, where objects do not stand for themselves; None: they are read one by one."""
        del store, source, frozen
        return None


def construct(
    store: ObjectStore,
    source: Source,
    steps: Sequence[Step],
    out: str,
    *,
    feed: Feed | None = None,
    work: Work = here,
    listen: Listen = lambda _: None,
    frozen: FrozenSource | None = None,
) -> SourceManifest:
    """Makes a source by steps, or finds it made.

    Args:
        store: where the output goes, and an s3:// source is.
        source: what is read, as a document would say it; its ``keep_text`` lets texts into the quarantine.
        steps: in their order; one name each.
        out: folder of the output, s3://.
        feed: how the source becomes records; None: as a stage would read it.
        work: where parts are made.
        listen: is told how far it is.
        frozen: the source's objects where they were listed before; none: as they are now.

    Returns:
        The manifest, which is in the store.

    Raises:
        MissingInputError: the source does not exist.
        DataError: the source cannot be read, has too many unusable records or changed; or a step failed.
        ZhongjingError: a step does not let the source through (nothing is read), cannot go on, or objects to
            what came out. What is done is kept.
        ConfigError: the output's folder holds something else.
    """
    out = out.rstrip("/")
    reach_with(store.connection.access)
    check_apart(source, out)
    feed = feed or Feed()
    given = frozen
    frozen = feed.freeze(store, source) if given is None else given
    lineage = feed.lineage(store, frozen.objects)
    admit(steps, partial(lineage_has_passed, *lineage), source.place)
    key = key_of(source, frozen, steps)
    done = claim(store, out, key, steps)
    if done is not None:
        return done
    inputs = tuple(item.uri for item in frozen.objects)
    maker = PartMaker(store, out, key, _read_back(source), tuple(steps), inputs, source.keep_text)
    reading = Reading(store, source, frozen, feed)
    told = Told(listen, max(1, reading.size))
    there = maker.made()
    count = 0
    # Closed before an error is told: left to the collector, files would be closed under their readers.
    with closing(reading.entries()) as entries:
        for part in work(maker, cut(entries, lambda: reading.position), told.working):
            told.made(part, new=part.name not in there)
            count += 1
    reading.check(f"{out}/_made")
    now = feed.freeze(store, source) if given is None else frozen_now(store, given)
    check_unchanged(now, source, frozen)
    manifest = _manifest(source, frozen, lineage, maker, count)
    try:
        store.put_record(f"{out}/{MANIFEST_NAME}", manifest, if_none_match=True)
    except ConflictError:  # of another run with this key: it made the same
        return store.get_record(f"{out}/{MANIFEST_NAME}", SourceManifest)
    return manifest


def claim(store: ObjectStore, out: str, key: str, steps: Sequence[Step]) -> SourceManifest | None:
    """Takes the output's folder for a key; the manifest where it is complete.

    Raises:
        ConfigError: the folder holds something else.
    """
    mark = f"{out}/_made/begun.json"
    begun = store.find_record(mark, Begun)
    if begun is None:
        first = next(iter(store.list(out)), None)
        if first is not None:
            raise ConfigError(
                "there are objects in the output's folder that no construction wrote",
                code=codes.OUTPUT_IN_USE,
                where=first.uri,
            )
        begun = Begun(key=key, steps=[StepRecord.of(step) for step in steps])
        try:
            store.put_record(mark, begun, if_none_match=True)
        except ConflictError:
            begun = store.get_record(mark, Begun)
    if begun.key != key:
        names = ", ".join(f"{step.name} {step.version}" for step in begun.steps) or "no steps"
        raise ConfigError(
            f"the output's folder belongs to another construction ({names}; key {begun.key}, this is {key}): "
            "input, steps or parameters are not the same",
            code=codes.OUTPUT_IN_USE,
            where=out,
        )
    return find_manifest(store, out)


def _read_back(source: Source) -> Source:
    """How the output of a source is read."""
    return Source(name=source.name, uri="s3://output/", kind=source.kind, role_marks=source.role_marks)


class Reading:
    """A source while it is read, once.

    Args:
        store: needed for s3://.
        source: as a document says it.
        frozen: its objects.
        feed: reads them.
    """

    def __init__(
        self, store: ObjectStore | None, source: Source, frozen: FrozenSource, feed: Feed | None = None
    ) -> None:
        self.position = 0  # bytes that were read
        self.size = sum(item.size for item in frozen.objects)
        self._store = store
        self._source = source
        self._frozen = frozen
        self._feed = feed or Feed()
        self._read = 0
        self._rejections = Rejections()
        self._rejected = 0
        self._tied = 0

    def entries(self) -> Generator[Entry]:
        """Records and rejections, in the order of the listing."""
        whole = self._feed.entries(self._store, self._source, self._frozen)
        if whole is not None:
            self.position = self.size
            for entry in whole:
                self._note(entry)
                yield entry
            return
        before = 0
        for item in self._frozen.objects:
            stats = ReadStats()
            with closing(self._feed.read(item.uri, self._source, self._store, stats)) as found:
                for entry in found:
                    self._note(entry)
                    stream = stats.stream
                    self.position = before + (0 if stream is None else min(stream.tell(), item.size))
                    yield entry
            before += item.size
            self.position = before

    def _note(self, entry: Entry) -> None:
        self._read += 1
        if isinstance(entry, Rejected) and entry.is_tied:
            self._tied += 1
        elif isinstance(entry, Rejected):
            self._rejected += 1
            self._rejections.add(entry)

    def check(self, quarantine: str) -> None:
        """Raises DataError where the source has no record, or too many that cannot be used."""
        counts = SourceCounts(
            name=self._source.name,
            digest=self._frozen.digest,
            read=self._read,
            tied=self._tied,
            quarantined=self._rejected,
        )
        check_source(self._source, counts, self._rejections, quarantine)


class Told:
    """Turns what is heard of parts into progress with the time that is left."""

    def __init__(self, listen: Listen, size: int) -> None:
        self._listen = listen
        self._size = size
        self._records = 0
        self._seen: deque[tuple[float, float]] = deque()  # when how much was done, of the last minutes

    def working(self, part: Part, portion: float) -> None:
        """A part is being made; so much of it is there."""
        fraction = (part.begin + portion * (part.end - part.begin)) / self._size
        self._work(fraction, self._records + int(portion * len(part.records)))

    def made(self, part: Part, *, new: bool) -> None:
        """A part is there; ``new``: it was made by this run."""
        self._records += len(part.records)
        if new or self._seen:
            self._work(part.end / self._size, self._records)
        else:
            self._listen(Progress(min(1.0, part.end / self._size), self._records, None))

    def _work(self, fraction: float, records: int) -> None:
        # Of late, not since the beginning: a resumed run finds answers stored, and asks for the rest.
        now, fraction = time.monotonic(), min(1.0, fraction)
        self._seen.append((now, fraction))
        while len(self._seen) > 2 and self._seen[1][0] <= now - _RECENT_SECONDS:
            self._seen.popleft()
        began, before = self._seen[0]
        left = (now - began) * (1.0 - fraction) / (fraction - before) if fraction > before else None
        self._listen(Progress(fraction, records, left))


def _manifest(
    source: Source,
    frozen: FrozenSource,
    lineage: tuple[list[Ancestor], bool],
    maker: PartMaker,
    count: int,
) -> SourceManifest:
    noted = maker.noted()
    parts: list[PartRecord] = []
    for number in range(count):
        if part_name(number) not in noted:
            raise StorageError(
                "a part was removed while others were made",
                code=codes.OUTPUT_IN_USE,
                where=f"{maker.uri}/{part_name(number)}.jsonl",
                remedy="run the command again: it is made anew",
            )
        parts.append(noted[part_name(number)])
    counts: dict[str, Counter[str]] = {step.name: Counter() for step in maker.steps}
    reasons: Counter[str] = Counter()
    for part in parts:
        for step, done in part.counts.items():
            counts[step].update(done)
        reasons.update(part.quarantined)
    notes = {
        step.name: step.finish(counts[step.name], _of(step.name, reasons))
        for step in maker.steps
        if isinstance(step, FinishingStep)
    }
    parents, complete = lineage
    return SourceManifest(
        key=maker.key,
        kind=source.kind,
        steps=[StepRecord.of(step) for step in maker.steps],
        inputs=frozen.objects,
        input_digest=frozen.digest,
        parents=parents,
        complete=complete,
        read=sum(part.read for part in parts),
        written=sum(part.written for part in parts),
        characters=sum(part.characters for part in parts),
        counts={step: dict(sorted(done.items())) for step, done in counts.items()},
        quarantined=dict(sorted(reasons.items())),
        notes=notes,
        parts=[
            FrozenObject(
                uri=f"{maker.uri}/{part_name(part.number)}.jsonl", size=part.size, digest=part.sha256
            )
            for part in parts
        ],
        license=source.license,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=zhongjing.__version__,
    )


def _of(step: str, reasons: Mapping[str, int]) -> dict[str, int]:
    """The reasons of one step, of those of all (``step: reason``)."""
    begin = f"{step}: "
    return {name.removeprefix(begin): number for name, number in reasons.items() if name.startswith(begin)}
