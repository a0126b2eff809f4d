"""What to rank next: the tasks on which reward models disagree with each other.

Reward models that differ in their seed, or in the half of the rankings that they learnt from, differ where
rankings are few. For a pair of answers each model says how likely the first is the better (Bradley-Terry);
the pair's worth is what its ranking would tell about which model is right: the entropy of the models' mean,
less the mean of their entropies (Houlsby et al. 2011, Bayesian active learning for classification and
preference learning). A task's worth is the mean over its pairs.

::

    <out>/_scores/<model>/tasks-00000.json   scores of one file of the pool by one model; never made twice
         /tasks-00000.jsonl, _tasks.json     the chosen tasks, those of the most worth first
"""

from __future__ import annotations

import heapq
import itertools
import math
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from zhongjing.codes import construct as codes
from zhongjing.codes.command import INVALID_OPTION
from zhongjing.data.records import Turn, Turns
from zhongjing.errors import ConfigError
from zhongjing.feedback.tasks import (
    TASKS,
    FeedbackTask,
    TaskSet,
    part_data,
    read_tasks,
    task_of,
    write_parts,
)
from zhongjing.storage.manifest import Record

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

Score = Callable[[Turns, Sequence[str]], list[float] | None]
"""The score of each answer to a prompt; None where they do not fit the model."""
Listen = Callable[[float, float | None], None]
"""Is told what part of the work is done, and about how many seconds are left."""


class PartScores(Record):
    """Scores of the tasks of one file by one model, by task; None: too long for it."""

    sha256: str
    scores: dict[str, list[float] | None]


@dataclass(frozen=True, slots=True)
class Pool:
    """The tasks to choose from: a whole task set, without those in ``ranked`` (task ids)."""

    folder: str
    task_set: TaskSet
    ranked: Collection[str] = frozenset()


def worth(scores: Sequence[Sequence[float]]) -> float:
    """What a ranking of these answers would tell, in nats a pair; 0 where the models agree.

    Args:
        scores: [models][answers]; at least two of each.
    """
    pairs = list(itertools.combinations(range(len(scores[0])), 2))
    total = 0.0
    for one, other in pairs:
        chances = [_sigmoid(model[one] - model[other]) for model in scores]
        mean = sum(chances) / len(chances)
        total += _entropy(mean) - sum(map(_entropy, chances)) / len(chances)
    return max(0.0, total / len(pairs))


def _sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value >= 0 else math.exp(value) / (1 + math.exp(value))


def _entropy(chance: float) -> float:
    return -sum(p * math.log(p) for p in (chance, 1 - chance) if p > 0)


def score_pool(  # noqa: PLR0917
    store: ObjectStore,
    pool: Pool,
    out: str,
    model: str,
    score: Callable[[], Score],
    listen: Listen = lambda *_: None,
) -> None:
    """Scores the pool with one model; files that are scored already are not scored again.

    Args:
        store: where all is.
        pool: the tasks.
        out: folder of the choice.
        model: names the model's scores: a hash of its weights.
        score: loads the model, at the first file that is to be scored.
        listen: is told how far it is.

    Raises:
        StorageError: a file of the pool is not what was written.
    """
    parts = pool.task_set.parts
    total, done, made = max(1, sum(part.tasks for part in parts)), 0, 0
    loaded: Score | None = None
    began = time.monotonic()
    for part in parts:
        uri = f"{out}/_scores/{model}/{part.name.removesuffix('.jsonl')}.json"
        found = store.find_record(uri, PartScores)
        if found is not None and found.sha256 == part.sha256:
            done += part.tasks
            continue
        if loaded is None:
            loaded, began = score(), time.monotonic()
        scores: dict[str, list[float] | None] = {}
        for line in part_data(store, pool.folder, part).splitlines():
            task = task_of(line, f"{pool.folder}/{part.name}")
            turns = tuple(Turn(turn.role, turn.content) for turn in task.prompt)
            scores[task.id] = loaded(turns, [answer.text for answer in task.answers])
            done, made = done + 1, made + 1
            listen(done / total, (time.monotonic() - began) / made * (total - done))
        store.put_record(uri, PartScores(sha256=part.sha256, scores=scores))


def choose(store: ObjectStore, pool: Pool, out: str, models: Sequence[str], count: int) -> TaskSet:
    """Writes the tasks of the most worth as a task set of their own, or finds it written.

    Args:
        store: where all is.
        pool: the tasks, scored by all models (:func:`score_pool`).
        out: folder of the choice.
        models: as they were named to :func:`score_pool`; at least two.
        count: tasks wanted; where there are fewer, all are taken.

    Raises:
        ConfigError: the folder has another choice, or fewer than two models are named.
        StorageError: scores or tasks are missing or damaged.
    """
    check_models(models)
    already = store.find_record(f"{out}/{TASKS}", TaskSet)
    if already is not None:
        same = (already.chosen_from, already.chosen_by) == (pool.folder, sorted(models))
        if same and sum(already.wanted.values()) == count:
            return already
        raise ConfigError(
            "the folder has another choice of tasks", code=codes.OUTPUT_IN_USE, where=f"{out}/{TASKS}"
        )
    best = heapq.nsmallest(count, _worths(store, pool, out, models))
    order = {task: place for place, (_, task) in enumerate(best)}
    chosen: list[FeedbackTask | None] = [None] * len(order)
    for task in read_tasks(store, pool.folder, pool.task_set):
        if task.id in order:
            chosen[order[task.id]] = task
    tasks = [task for task in chosen if task is not None]
    origins = sorted({task.source for task in tasks})
    told = pool.task_set.model_copy(
        update={
            "prompts": {origin: sum(task.source == origin for task in tasks) for origin in origins},
            "wanted": {"chosen": count},
            "answers": sum(len(task.answers) for task in tasks),
            "resampled": 0,
            "missing": 0,
            "dropped": 0,
            "unended": 0,
            "parts": write_parts(store, out, tasks),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "chosen_from": pool.folder,
            "chosen_by": sorted(models),
        }
    )
    store.put_record(f"{out}/{TASKS}", told)
    return told


def check_models(models: Sequence[str]) -> None:
    """Raises ConfigError where there are fewer than two different models: one cannot disagree."""
    if len(set(models)) < 2:
        raise ConfigError(
            "one reward model does not disagree with itself",
            code=INVALID_OPTION,
            where="--reward-models",
            remedy="name two or more that were trained with other seeds or on other rankings",
        )


def _worths(store: ObjectStore, pool: Pool, out: str, models: Sequence[str]) -> Iterator[tuple[float, str]]:
    """The worth of each task, negated, with its id; tasks that do not fit a model are left out."""
    for part in pool.task_set.parts:
        name = f"{part.name.removesuffix('.jsonl')}.json"
        found = [store.get_record(f"{out}/_scores/{model}/{name}", PartScores).scores for model in models]
        for task in found[0]:
            scores = [each[task] for each in found]
            fitting = [each for each in scores if each is not None]
            if task not in pool.ranked and len(fitting) == len(scores):
                yield -worth(fitting), task
