"""Who ranks which task: independent annotators, equally many tasks each, decided by a seed. Pure."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence

from zhongjing.codes.command import INVALID_OPTION
from zhongjing.errors import ConfigError


def assign(
    tasks: Sequence[str], annotators: Sequence[str], *, each: int, seed: int
) -> dict[str, tuple[str, ...]]:
    """The annotators of each task.

    Every annotator meets every other about equally often, so that their agreement can be told pair by pair.

    Args:
        tasks: ids.
        annotators: their names.
        each: annotators that a task has.
        seed: of the choice.

    Returns:
        By task, ``each`` different annotators; their loads differ by at most one.

    Raises:
        ConfigError: there are fewer annotators than a task needs, or one is named twice.
    """
    if len(set(annotators)) != len(annotators) or len(annotators) < each or each < 1:
        raise ConfigError(
            f"a task has {each} annotators, and {len(set(annotators))} different ones are named",
            code=INVALID_OPTION,
            where="--annotators",
            remedy="name each once, and at least as many as a task has",
        )
    load = dict.fromkeys(annotators, 0)
    met: dict[frozenset[str], int] = {}
    assigned: dict[str, tuple[str, ...]] = {}
    rng = random.Random(f"{seed}:assign")
    for task in rng.sample(sorted(tasks), len(tasks)):
        chosen: list[str] = []
        draw = {name: rng.random() for name in annotators}
        while len(chosen) < each:
            free = [name for name in annotators if name not in chosen]
            chosen.append(
                min(
                    free,
                    key=lambda name: (
                        load[name],
                        sum(met.get(frozenset((name, c)), 0) for c in chosen),
                        draw[name],
                    ),
                )
            )
        for name in chosen:
            load[name] += 1
            for other in chosen:
                if other != name:
                    met[frozenset((name, other))] = met.get(frozenset((name, other)), 0) + 1
        assigned[task] = tuple(chosen)
    return assigned


def shown_order(task: str, annotator: str, answers: Sequence[str], seed: int) -> tuple[str, ...]:
    """The order in which an annotator sees a task's answers, by their ids."""
    digest = hashlib.sha256(f"{seed}:{task}:{annotator}".encode()).hexdigest()
    return tuple(random.Random(digest).sample(list(answers), len(answers)))
