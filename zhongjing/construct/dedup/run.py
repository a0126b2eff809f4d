"""Takes duplicates and leaks out of sources: signatures by parts, one decision, and a construction of each.

::

    sources --signatures, by any process--> <out>/_made/dedup/<source>/part-NNNNN.npz
                                            one decision--> <out>/_made/dedup/<source>.npz, report.json
            --what stays--> <out>/part-NNNNN.jsonl, or <out>/<source>/part-NNNNN.jsonl where there are several
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from pydantic import Field

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.keys import digest
from zhongjing.config.sources import Source
from zhongjing.construct.dedup.decision import ALIKE, EQUAL, KEPT, LEAKS, SHARES, Decision
from zhongjing.construct.dedup.settings import DedupSettings
from zhongjing.construct.dedup.signatures import ALGORITHM, SignatureMaker
from zhongjing.construct.dedup.step import DedupStep, LeftOut
from zhongjing.construct.inputs import check_apart, freeze
from zhongjing.construct.manifest import SourceManifest, key_of
from zhongjing.construct.parts import PartMaker, cut
from zhongjing.construct.runner import Listen, Progress, Reading, Told, Work, claim, construct, here
from zhongjing.construct.step import Step
from zhongjing.data.leaks import index_of
from zhongjing.data.records import Rejected
from zhongjing.errors import ConfigError
from zhongjing.storage.manifest import FrozenSource, Record

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_FIRST = 0.7  # of the time, about, the signatures take
REPORT_NAME = "report.json"


class Pair(Record):
    """Records of one source that are left out because of another one, or of a test set."""

    source: str = Field(description="that they are of")
    because: str = Field(description="the source that has the earlier record, or the test set")
    why: str = Field(description="equal, alike, leak (equal or opens alike) or leak (shared runs)")
    records: int


class DedupReport(Record):
    """What was decided, in counts."""

    key: str
    records: dict[str, int] = Field(description="that were read, by source")
    tests: dict[str, int] = Field(description="records of the test sets, by name")
    left_out: list[Pair]


@dataclass(frozen=True, slots=True)
class Deduplicated:
    """The report, and the manifest and folder of each source, in their order."""

    report: DedupReport
    manifests: tuple[SourceManifest, ...]
    folders: tuple[str, ...]


_WORDS = {EQUAL: "equal", ALIKE: "alike", LEAKS: "leak (equal or opens alike)", SHARES: "leak (shared runs)"}


def deduplicate(
    store: ObjectStore,
    sources: Sequence[Source],
    out: str,
    *,
    settings: DedupSettings | None = None,
    against: Sequence[Source] = (),
    then: Sequence[Step] = (),
    frozen: Sequence[FrozenSource] | None = None,
    work: Work = here,
    listen: Listen = lambda _: None,
) -> Deduplicated:
    """Makes sources without duplicates and leaks, or finds them made.

    Args:
        store: where the outputs go, and s3:// sources are.
        sources: in the order in which the earlier record stays; names of their own.
        out: folder of the output, s3://; with several sources each has a folder of its name below.
        settings: how alike is too alike.
        against: test sets; names of their own.
        then: steps that what stays goes through, in the same construction.
        frozen: the sources' objects, where they are fixed already.
        work: where parts are made.
        listen: is told how far it is.

    Raises:
        MissingInputError: a source or test set does not exist.
        DataError: one cannot be read, has too many unusable records, or changed.
        ConfigError: two have one name, or the output's folder holds something else.
    """
    settings = settings or DedupSettings()
    listen = _timed(listen)
    out = out.rstrip("/")
    names = [each.name for each in (*sources, *against)]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ConfigError(f"two sources are named {twice!r}", code=INVALID_OPTION, where=out)
    for each in (*sources, *against):
        check_apart(each, out)
    order = _Order(store, sources, against, out, settings, frozen=frozen)
    for source, objects, step, folder in order.outputs():
        steps = [step, *then]
        claim(store, folder, key_of(source, objects, steps), steps)
    report = order.report() or order.decide(work, listen)
    manifests = []
    size = max(1, order.size)
    before = 0
    for source, objects, step, folder in order.outputs():
        own = sum(item.size for item in objects.objects)

        def told(progress: Progress, before: int = before, own: int = own) -> None:
            fraction = _FIRST + (1 - _FIRST) * (before + progress.fraction * own) / size
            listen(Progress(fraction, progress.records, progress.seconds_left))

        given = None if frozen is None else objects
        steps = [step, *then]
        manifests.append(construct(store, source, steps, folder, work=work, listen=told, frozen=given))
        before += own
    return Deduplicated(report, tuple(manifests), tuple(folder for *_, folder in order.outputs()))


def filter_of(
    store: ObjectStore,
    source: Source,
    frozen: FrozenSource,
    *,
    settings: DedupSettings,
    against: Sequence[Source] = (),
) -> DedupStep:
    """The step that a source alone goes through, for its key: nothing is decided yet.

    Raises:
        MissingInputError: a test set does not exist.
    """
    order = _Order(store, [source], against, "s3://none", settings, frozen=[frozen])
    return order.outputs()[0][2]


class _Order:
    """What is to be done, with everything fixed."""

    def __init__(
        self,
        store: ObjectStore,
        sources: Sequence[Source],
        against: Sequence[Source],
        out: str,
        settings: DedupSettings,
        *,
        frozen: Sequence[FrozenSource] | None = None,
    ) -> None:
        self._store = store
        self._sources = sources
        self._against = against
        self._out = out
        self._settings = settings
        self._work = f"{out}/_made/dedup"
        self._frozen = list(frozen or (freeze(store, source) for source in sources))
        self._tests = [freeze(store, source) for source in against]
        self._decided = {
            **settings.parameters(),
            "rensa": ALGORITHM,
            "sources": [_told(*each) for each in zip(sources, self._frozen, strict=True)],
            "against": [_told(*each) for each in zip(against, self._tests, strict=True)],
        }
        self.size = sum(item.size for frozen in self._frozen for item in frozen.objects)

    def outputs(self) -> list[tuple[Source, FrozenSource, DedupStep, str]]:
        """Each source with its objects, the step that filters it, and its folder."""
        made = []
        for source, frozen in zip(self._sources, self._frozen, strict=True):
            inputs = tuple(item.uri for item in frozen.objects)
            decision = f"{self._work}/{source.name}.npz"
            step = DedupStep({**self._decided, "of": source.name}, self._store.storage, decision, inputs)
            folder = self._out if len(self._sources) == 1 else f"{self._out}/{source.name}"
            made.append((source, frozen, step, folder))
        return made

    def report(self) -> DedupReport | None:
        """The report of an earlier run; None: nothing is decided yet."""
        found = self._store.find_record(f"{self._work}/{REPORT_NAME}", DedupReport)
        return found if found is not None and found.key == self.key else None

    @property
    def key(self) -> str:
        """Of the decision."""
        return digest(self._decided)

    def decide(self, work: Work, listen: Listen) -> DedupReport:
        """Signs all records, decides, and stores what is left out of each source."""
        tests = self._index()
        folder = f"{self._work}/{self.key}"
        makers = []
        before = 0
        for source, frozen in zip(self._sources, self._frozen, strict=True):
            maker = SignatureMaker(
                self._store, f"{folder}/{source.name}", tuple(item.uri for item in frozen.objects), tests[0]
            )
            own = sum(item.size for item in frozen.objects)
            self._sign(maker, source, frozen, work, _part_of(listen, before, own, self.size))
            before += own
            makers.append(maker)
        with TemporaryDirectory(prefix="zhongjing-dedup-") as scratch:
            decision = Decision(self._settings, Path(scratch))
            decision.decide([maker.read() for maker in makers])
        return self._store_decision(decision, tests[1])

    def _index(self) -> tuple[str | None, dict[str, int]]:
        """The object with the index of the test sets, and how many records they have."""
        if not self._against:
            return None, {}
        readings = [
            Reading(self._store, source, frozen)
            for source, frozen in zip(self._against, self._tests, strict=True)
        ]
        sets = [
            (source.name, (entry for entry in reading.entries() if not isinstance(entry, Rejected)))
            for source, reading in zip(self._against, readings, strict=True)
        ]
        index = index_of(sets, self._settings.overlap)
        for reading in readings:
            reading.check(f"{self._work}/tests")
        uri = f"{self._work}/tests.npz"
        self._store.put(uri, index.as_bytes())
        return uri, dict(zip(index.names, index.records, strict=True))

    def _sign(
        self, maker: SignatureMaker, source: Source, frozen: FrozenSource, work: Work, listen: Listen
    ) -> None:
        reading = Reading(self._store, source, frozen)
        told = Told(listen, max(1, reading.size))
        there = maker.made()
        with closing(reading.entries()) as entries:
            # Any maker will do for who works: it has a folder and a store, and makes parts by name.
            parts = work(cast("PartMaker", maker), cut(entries, lambda: reading.position), told.working)
            for part in parts:
                told.made(part, new=part.name not in there)
        reading.check(f"{self._out}/_made")

    def _store_decision(self, decision: Decision, tests: dict[str, int]) -> DedupReport:
        pairs: list[Pair] = []
        names = [source.name for source in self._sources]
        for number, source in enumerate(self._sources):
            own = (decision.sources == number) & (decision.verdicts != KEPT)
            verdicts, because = decision.verdicts[own], decision.because[own]
            # A source or a test set: one number each.
            origin = np.where(
                verdicts <= ALIKE, decision.sources[np.where(verdicts <= ALIKE, because, 0)], because
            )
            kinds, labels = np.unique(np.stack([verdicts, origin], axis=1), axis=0, return_inverse=True)
            reasons = []
            for label, (verdict, place) in enumerate(kinds.tolist()):
                other = names[place] if verdict <= ALIKE else self._against[place].name
                pair = Pair(
                    source=source.name,
                    because=other,
                    why=_WORDS[verdict],
                    records=int((labels.ravel() == label).sum()),
                )
                pairs.append(pair)
                reasons.append(f"{pair.why}: {other}")
            left_out = LeftOut(
                decision.objects[own],
                decision.indexes[own],
                labels.ravel().astype(np.int32),
                tuple(reasons),
            )
            self._store.put(f"{self._work}/{source.name}.npz", left_out.as_bytes())
        records = {name: int((decision.sources == number).sum()) for number, name in enumerate(names)}
        report = DedupReport(key=self.key, records=records, tests=tests, left_out=pairs)
        self._store.put_record(f"{self._work}/{REPORT_NAME}", report)
        return report


def _told(source: Source, frozen: FrozenSource) -> dict[str, Any]:
    """A source, as the decision depends on it: contents, how they are read, and the name that counts have."""
    return {"name": source.name, "key": key_of(source, frozen, [])}


def _part_of(listen: Listen, before: int, own: int, size: int) -> Callable[[Progress], None]:
    def told(progress: Progress) -> None:
        fraction = _FIRST * (before + progress.fraction * own) / max(1, size)
        listen(Progress(fraction, progress.records, progress.seconds_left))

    return told


def _timed(listen: Listen) -> Listen:
    """Tells how long all passes will take, where each one knows of itself alone."""
    first: list[tuple[float, float]] = []

    def told(progress: Progress) -> None:
        now = time.monotonic()
        if not first:
            first.append((now, progress.fraction))
        began, before = first[0]
        done = progress.fraction - before
        left = (now - began) * (1 - progress.fraction) / done if done > 0 else None
        listen(Progress(progress.fraction, progress.records, left))

    return told
