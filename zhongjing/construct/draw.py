"""A test set drawn from a source: so many questions by a hash, and what is left, as two sources.

A record is drawn by the question that it opens with (:func:`zhongjing.data.split.unit_of`), so that records
that open alike are on one side. Which ones are drawn depends on the seed and the questions alone, not on
their order, nor on the files. The first pass finds the hash up to which as many lie as are asked for; the
second is a construction of each side.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.config.sources import Source
from zhongjing.construct.manifest import SourceManifest
from zhongjing.construct.runner import Feed, Listen, Progress, Reading, Work, construct, here
from zhongjing.construct.step import Outcome
from zhongjing.data.records import Dialogue, Ranking, Record, Rejected, TextRecord
from zhongjing.data.split import bucket, unit_of
from zhongjing.errors import ConfigError

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

Side = Literal["test", "rest"]
_FIRST = 0.2  # of the time, about, the first pass takes


@dataclass(frozen=True)
class DrawStep:
    """Keeps one side.

    Attributes:
        side: which.
        seed: of the draw.
        below: hashes up to this one are drawn.
        least_turns: dialogues with fewer questions are never drawn. One that opens as a drawn one is left
            out by every stage, as a leak.
    """

    side: Side
    seed: int
    below: float
    least_turns: int = 1
    name: str = "draw"
    version: int = 1

    def parameters(self) -> dict[str, object]:
        """All that decides."""
        return {
            "side": self.side,
            "seed": self.seed,
            "below": self.below,
            "leastTurns": self.least_turns,
        }

    def apply(self, record: Record) -> Outcome:
        """Keeps a record, or counts it for the other side."""
        drawn = _hash(record, self.seed) <= self.below and turns_of(record) >= self.least_turns
        kept = drawn == (self.side == "test")
        return Outcome((record,)) if kept else Outcome(counts={"on the other side": 1})


def draw(
    store: ObjectStore,
    source: Source,
    out: str,
    count: int,
    *,
    seed: int = 0,
    least_turns: int = 1,
    work: Work = here,
    listen: Listen = lambda _: None,
) -> tuple[SourceManifest, SourceManifest]:
    """Draws a test set: ``<out>/test`` and ``<out>/rest``. Finds it made, if it is.

    Args:
        store: where the outputs go, and an s3:// source is.
        source: what is drawn from.
        out: folder, s3://.
        count: different questions.
        seed: of the draw.
        least_turns: only dialogues with so many questions or more.
        work: where parts are made.
        listen: is told how far it is.

    Returns:
        The manifests of the test set and of the rest.

    Raises:
        MissingInputError: the source does not exist.
        DataError: it cannot be read, or changed.
        ConfigError: the source has not so many different questions, or the folder holds something else.
    """
    out = out.rstrip("/")
    frozen = Feed().freeze(store, source)
    reading = Reading(store, source, frozen)
    below = _below(reading, count, seed, least_turns, listen)
    reading.check(f"{out}/test/_made")
    made = []
    for place, side in enumerate(("test", "rest")):
        begin = _FIRST + place * (1 - _FIRST) / 2

        def told(progress: Progress, begin: float = begin) -> None:
            fraction = begin + (1 - _FIRST) / 2 * progress.fraction
            listen(Progress(fraction, progress.records, progress.seconds_left))

        step = DrawStep("test" if side == "test" else "rest", seed, below, least_turns)
        made.append(construct(store, source, [step], f"{out}/{side}", work=work, listen=told))
    return made[0], made[1]


def _below(reading: Reading, count: int, seed: int, least_turns: int, listen: Listen) -> float:
    with closing(reading.entries()) as entries:
        hashes = _hashes(entries, reading, seed, least_turns, listen)
        drawn = _smallest(hashes, count)
    if len(drawn) < count:
        raise ConfigError(
            f"there are {len(drawn)} different questions to draw from, and {count} are asked for",
            code=INVALID_OPTION,
            where="--count",
            remedy="ask for fewer, or give more records",
        )
    return max(drawn)


def _hashes(
    entries: Iterable[Record | Rejected], reading: Reading, seed: int, least_turns: int, listen: Listen
) -> Iterable[float]:
    for number, entry in enumerate(entries):
        if number % 1000 == 0:
            listen(Progress(_FIRST * reading.position / max(1, reading.size), number, None))
        if not isinstance(entry, Rejected) and turns_of(entry) >= least_turns:
            yield _hash(entry, seed)


def _smallest(hashes: Iterable[float], count: int) -> set[float]:
    """The smallest different ones; so many are in memory, and no more."""
    heap: list[float] = []
    held: set[float] = set()
    for each in hashes:
        if each in held or (len(heap) == count and each >= -heap[0]):
            continue
        held.add(each)
        if len(heap) < count:
            heapq.heappush(heap, -each)
        else:
            held.discard(-heapq.heappushpop(heap, -each))
    return held


def _hash(record: Record, seed: int) -> float:
    return bucket(unit_of(record), f"draw {seed}")


def turns_of(record: Record) -> int:
    """Questions of a record; of a text one."""
    if isinstance(record, TextRecord):
        return 1
    turns = record.prompt if isinstance(record, Ranking) else record.turns
    if isinstance(record, Dialogue):
        return sum(turn.role == "assistant" for turn in turns)
    return sum(turn.role == "user" for turn in turns)
