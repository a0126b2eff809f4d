"""The prompts whose answers are ranked: drawn from sources, dialogues cut into turns (paper section 3).

A prompt is a question with all that was said before it. Of all prompts of the sources those with the
smallest hash of (seed, prompt) are taken: the choice depends on the seed and on what the prompts say, and
neither on files nor on their order; a larger number takes the same prompts and more.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zhongjing.config.sources import Source
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, Prompt, Record, Rejected, Turn, Turns
from zhongjing.data.rejections import Rejections, check_source
from zhongjing.data.split import Split, assign, unit_of
from zhongjing.feedback.tasks import Origin
from zhongjing.storage.manifest import FrozenSource, SourceCounts

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_LISTEN_EVERY = 64  # records
_KEY_BYTES = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt (a user turn last). ``key``: 16 hex digits, a hash of what it says."""

    key: str
    turns: Turns
    origin: Origin
    department: str | None = None

    def as_json(self) -> str:
        """One line."""
        turns = [[turn.role, turn.content] for turn in self.turns]
        value = {"key": self.key, "turns": turns, "origin": self.origin, "department": self.department}
        return json.dumps(value, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str | bytes) -> Asked:
        """What a line of :meth:`as_json` says."""
        value: dict[str, Any] = json.loads(line)
        turns = tuple(Turn(role, content) for role, content in value["turns"])
        return cls(value["key"], turns, value["origin"], value["department"])


@dataclass(frozen=True, slots=True)
class Drawing:
    """What prompts are drawn from.

    Attributes:
        source: of dialogues or prompts.
        frozen: its listing.
        origin: whether the model was trained on such prompts.
        held_out: part of the source that is held out, and that no prompt is drawn from.
    """

    source: Source
    frozen: FrozenSource
    origin: Origin
    held_out: float = 0.0


Listen = Callable[[str, float], None]
"""Is told the source that is read and how much of it is; what it raises ends the reading."""


def prompts_of(record: Record, origin: Origin) -> Iterator[Asked]:
    """The prompts of one record: of a dialogue one before each answer."""
    if isinstance(record, Prompt):
        yield _asked(record.turns, origin, None)
    elif isinstance(record, Dialogue):
        for index, turn in enumerate(record.turns):
            if turn.role == "assistant" and index and record.turns[index - 1].role == "user":
                yield _asked(record.turns[:index], origin, record.department)


def _asked(turns: Turns, origin: Origin, department: str | None) -> Asked:
    plain = tuple(Turn(turn.role, turn.content) for turn in turns)
    said = json.dumps([[turn.role, turn.content] for turn in plain], ensure_ascii=False)
    digest = hashlib.blake2b(said.encode("utf-8", "surrogatepass"), digest_size=_KEY_BYTES)
    return Asked(digest.hexdigest(), plain, origin, department)


def units_of_tests(
    store: ObjectStore | None, tests: Sequence[tuple[Source, FrozenSource]], listen: Listen
) -> set[bytes]:
    """Units of all test data: what equals them is never a prompt."""
    found: set[bytes] = set()
    for source, frozen in tests:
        for record in _records(store, source, frozen, None, listen):
            if not isinstance(record, Rejected) and _split_of(record, source, 0.0) == "test":
                found.add(unit_of(record))
    return found


def draw(  # noqa: PLR0917
    store: ObjectStore | None,
    drawings: Sequence[Drawing],
    counts: dict[Origin, int],
    seed: int,
    tests: Collection[bytes],
    quarantine_uri: str,
    listen: Listen,
    forbidden: re.Pattern[str] | None = None,
) -> tuple[list[Asked], list[SourceCounts]]:
    """Draws the prompts.

    Args:
        store: where the sources are.
        drawings: the sources.
        counts: prompts wanted of each origin; where there are fewer, all are taken.
        seed: of the choice.
        tests: units of test data (:func:`units_of_tests`).
        quarantine_uri: named in the message of a source with too many bad records.
        listen: is called while something is read.
        forbidden: records whose text matches are rejected (special tokens of the tokenizer).

    Returns:
        The prompts, none twice, in the order of their hashes; and what became of the sources' records.

    Raises:
        DataError: a source cannot be read, is empty or has too many bad records.
    """
    heaps: dict[Origin, list[tuple[int, str, Asked]]] = {origin: [] for origin in counts}
    taken: set[str] = set()
    told: list[SourceCounts] = []
    for drawing in drawings:
        heap, most = heaps[drawing.origin], counts[drawing.origin]
        tally: Counter[str] = Counter()
        rejections = Rejections()
        for record in _records(store, drawing.source, drawing.frozen, forbidden, listen):
            tally["read"] += 1
            if isinstance(record, Rejected):
                tally["quarantined"] += 1
                rejections.add(record)
                continue
            split = _split_of(record, drawing.source, drawing.held_out)
            if split != "test" and unit_of(record) in tests:
                tally["leaks"] += 1
                continue
            tally["kept"] += 1
            tally[split] += 1
            if split != "train" or not most:
                continue
            for asked in prompts_of(record, drawing.origin):
                if asked.key in taken:
                    continue
                place = (-_rank(asked.key, seed), asked.key, asked)
                if len(heap) < most:
                    heapq.heappush(heap, place)
                elif place[:2] > heap[0][:2]:
                    taken.discard(heapq.heapreplace(heap, place)[1])
                else:
                    continue
                taken.add(asked.key)
        counted = SourceCounts(name=drawing.source.name, digest=drawing.frozen.digest, **tally)
        check_source(drawing.source, counted, rejections, quarantine_uri)
        told.append(counted)
    chosen = [place for heap in heaps.values() for place in heap]
    return [asked for _, _, asked in sorted(chosen, key=lambda place: (-place[0], place[1]))], told


def _split_of(record: Record, source: Source, held_out: float) -> Split:
    return assign(
        unit_of(record),
        test_fraction=source.test_fraction,
        validation_fraction=held_out,
        test_only=source.split == "test",
    )


def _rank(key: str, seed: int) -> int:
    digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=_KEY_BYTES).digest()
    return int.from_bytes(digest, "big")


def _records(
    store: ObjectStore | None,
    source: Source,
    frozen: FrozenSource,
    forbidden: re.Pattern[str] | None,
    listen: Listen,
) -> Iterator[Record | Rejected]:
    total, done, count = max(1, sum(item.size for item in frozen.objects)), 0, 0
    for item in frozen.objects:
        listen(source.name, done / total)
        for record in read_object(item.uri, source, store, forbidden=forbidden):
            count += 1
            if count % _LISTEN_EVERY == 0:
                listen(source.name, done / total)
            yield record
        done += item.size
