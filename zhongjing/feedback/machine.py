"""Machine ranking: a judge model compares the answers of a task in pairs, by the paper's criteria (Table 2).

Judges favour a place (Zheng et al. 2023, Judging LLM-as-a-judge with MT-Bench and Chatbot Arena): each pair
is asked for in both orders, and where the two answers disagree the pair ties. A task's ranking counts for
each answer the pairs that it wins, and half of those that tie (Copeland 1951); equal counts tie.

It is a step of data construction: answers that were paid for are stored and never asked for twice, and the
output's manifest has the step ``rank`` with ``by: machine``.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import json
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import ConfigDict

from zhongjing.config.keys import digest
from zhongjing.config.sources import Source
from zhongjing.construct.llm.answers import AnswerModel, read_answer
from zhongjing.construct.llm.author import Author, Question, Written
from zhongjing.construct.llm.checks import Fault
from zhongjing.construct.llm.ledger import StoredAnswer
from zhongjing.construct.llm.model_step import ModelStep, left_as_it_is
from zhongjing.construct.llm.normalize import as_prompted
from zhongjing.construct.llm.prompt import Prompt, load_prompt
from zhongjing.construct.manifest import Ancestor
from zhongjing.construct.parts import Entry
from zhongjing.construct.runner import Feed
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import Position, Ranking, Record, Turn
from zhongjing.errors import ZhongjingError
from zhongjing.feedback.tasks import TaskSet, part_data, task_of
from zhongjing.storage.manifest import FrozenObject, FrozenSource

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_FOLDER = Path(__file__).parent / "instructions"
STEP = "rank"


class Comparison(AnswerModel):
    """Which of two answers is better; ``why`` comes first, so that it is thought of first."""

    model_config = ConfigDict(title="comparison")

    why: str
    better: Literal["first", "second", "tie"]


@dataclass(frozen=True)
class RankStep(ModelStep):
    """Ranks the answers of each record (a ranking that orders nothing yet).

    Attributes:
        longest: characters of a reason.
    """

    name: ClassVar[str] = STEP
    version: ClassVar[int] = 1
    newest_prompt: ClassVar[int] = 1
    done: ClassVar[str] = "ranked"
    growth: ClassVar[float] = 0.0
    shortest_answer: ClassVar[int] = 60

    longest: int = 50

    @property
    def prompt(self) -> Prompt:
        """The prompt in use. Raises as :func:`load_prompt`."""
        return load_prompt(self.name, self.prompt_version or self.newest_prompt, _FOLDER)

    def settings(self) -> dict[str, object]:
        """That a machine ranks, and how pairs become an order."""
        return {"by": "machine", "orders": "both", "longest": self.longest}

    def finish(self, counts: Mapping[str, int], quarantined: Mapping[str, int]) -> dict[str, object]:
        """As for every step that a model writes, and how often the judge kept to its word.

        ``consistent``: part of the pairs for which both orders gave the same; None without pairs.
        """
        pairs = counts.get("pairs", 0)
        consistent = None if not pairs else 1 - counts.get("pairs: orders disagree", 0) / pairs
        return {**super().finish(counts, quarantined), "by": "machine", "consistent": consistent}

    def _values(self, ranking: Ranking, first: int, second: int) -> dict[str, str]:
        return {
            "dialogue": as_prompted(ranking.prompt),
            "first": json.dumps(ranking.answers[first], ensure_ascii=False),
            "second": json.dumps(ranking.answers[second], ensure_ascii=False),
            "longest": str(self.longest),
        }

    def opening(self, record: Record) -> tuple[dict[str, str], ...] | None:
        """The messages for the first pair."""
        return self.prompt.opening(self._values(record, 0, 1)) if isinstance(record, Ranking) else None

    def openings(self, record: Record) -> list[tuple[dict[str, str], ...]]:
        """The messages of every pair, in both orders."""
        if not isinstance(record, Ranking):
            return []
        prompt = self.prompt
        orders = itertools.permutations(range(len(record.answers)), 2)
        return [prompt.opening(self._values(record, *order)) for order in orders]

    async def write(self, author: Author, record: Record) -> Outcome:
        """The record with its ranks; nothing where all answers tie; or its quarantine."""
        if not isinstance(record, Ranking):
            return left_as_it_is(record, "no ranking")
        orders = list(itertools.permutations(range(len(record.answers)), 2))
        written = await self._asked(author, record, orders)
        counts: Counter[str] = Counter()
        for each in written:
            counts.update(each.counts)
        failed = next((each for each in written if each.value is None), None)
        if failed is not None:
            return Outcome(counts=counts, quarantined=rejected(record, failed.reason, failed.code))
        said = {order: each.value.better for order, each in zip(orders, written, strict=True) if each.value}
        points = [0.0] * len(record.answers)
        for one, other in itertools.combinations(range(len(record.answers)), 2):
            winner, label = _agreed(one, other, said[one, other], said[other, one])
            counts["pairs"] += 1
            counts[f"pairs: {label}"] += 1
            for answer in (one, other):
                points[answer] += 0.5 if winner is None else float(answer == winner)
        counts[self.done] += 1
        ranks = ranks_of(points)
        if not any(ranks):
            counts["all tie"] += 1
            return Outcome(counts=counts)
        return Outcome((Ranking(record.prompt, record.answers, ranks, record.position),), counts)

    async def _asked(
        self, author: Author, record: Ranking, orders: Sequence[tuple[int, int]]
    ) -> list[Written[Comparison]]:
        """What was written for each pair. What is under way is waited for, whatever fails: it is paid for."""
        schema = Comparison.model_json_schema()
        prompt = self.prompt
        questions = [Question(prompt, self._values(record, *order), schema, _read) for order in orders]
        found = await asyncio.gather(*(author.write(each) for each in questions), return_exceptions=True)
        written: list[Written[Comparison]] = []
        errors: list[BaseException] = []
        for each in found:
            if isinstance(each, BaseException):
                errors.append(each)
            else:
                written.append(each)
        if errors:  # the cause before what it stopped
            raise next((error for error in errors if isinstance(error, ZhongjingError)), errors[0])
        return written


def _read(answer: StoredAnswer) -> Comparison | Fault:
    return read_answer(answer.text, answer.finish_reason, Comparison)


def _agreed(one: int, other: int, straight: str, swapped: str) -> tuple[int | None, str]:
    """The better of two answers, None for a tie, and a label for counts.

    Args:
        one: place of an answer.
        other: place of the other.
        straight: what was said when ``one`` came first.
        swapped: what was said when ``other`` did.
    """
    opposite = {"first": "second", "second": "first", "tie": "tie"}
    if straight != opposite[swapped]:
        return None, "orders disagree"
    if straight == "tie":
        return None, "tie"
    return (one if straight == "first" else other), "decided"


def ranks_of(points: Sequence[float]) -> tuple[int, ...]:
    """Ranks from points, 0 for the most; equal points tie, and ranks leave no gap."""
    places = {value: rank for rank, value in enumerate(sorted(set(points), reverse=True))}
    return tuple(places[value] for value in points)


class TaskFeed(Feed):
    """Tasks as rankings that order nothing yet, in the order in which answers are shown.

    Args:
        folder: of the task set.
        task_set: its manifest.
    """

    def __init__(self, folder: str, task_set: TaskSet) -> None:
        self._folder = folder.rstrip("/")
        self._parts = {f"{self._folder}/{part.name}": part for part in task_set.parts}
        self._lineage = task_set.parents, task_set.complete

    def freeze(self, store: ObjectStore | None, source: Source) -> FrozenSource:
        """The files of the set, as its manifest lists them."""
        objects = [
            FrozenObject(uri=uri, size=part.size, digest=part.sha256) for uri, part in self._parts.items()
        ]
        return FrozenSource(
            name=source.name, objects=objects, digest=digest([each.digest for each in objects])
        )

    def lineage(
        self, store: ObjectStore | None, objects: Sequence[FrozenObject]
    ) -> tuple[list[Ancestor], bool]:
        """That of the sources whose prompts were answered."""
        parents, complete = self._lineage
        return list(parents), complete

    def read(self, uri: str, source: Source, store: ObjectStore | None, stats: ReadStats) -> Generator[Entry]:
        """The tasks of one file. Raises StorageError where it is not what was written."""
        assert store is not None, "a task set is in a store"
        stats.stream = stream = io.BytesIO(part_data(store, self._folder, self._parts[uri]))
        for index, line in enumerate(iter(stream.readline, b"")):
            task = task_of(line, uri)
            yield Ranking(
                prompt=tuple(Turn(turn.role, turn.content) for turn in task.prompt),
                answers=tuple(answer.text for answer in task.answers),
                ranks=(0,) * len(task.answers),
                position=Position(source.name, uri, index, index + 1),
            )
