"""Do fewer rankings suffice where reward models choose them (``feedback next``)? Against choice by chance.

``python -m benchmarks.active_ranking [SEED ...]`` prints a line of JSON a seed: held-out pair accuracy of a
reward model of N rankings by chance, of 70 % of N by chance, and of 70 % of N half of which two models have
chosen from the rest of the pool: they learnt from the other half, by chance. Each accuracy is the mean over
two trainings. Minutes on two cores.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.small_reward_model import Bench
from zhongjing.feedback.selection import worth

POOL, RANKED, PART = 900, 300, 0.7
TRAININGS = 2


def compare(seed: int, folder: Path) -> dict[str, float]:
    """The figures of one seed."""
    bench = Bench(seed, folder)
    pool = list(range(POOL))
    random.Random(seed).shuffle(pool)
    fewer = round(RANKED * PART)
    begin, rest = pool[: fewer // 2], pool[fewer // 2 :]
    committee = [bench.train(begin, 100 + model) for model in range(2)]
    scores = [bench.scores(model, rest) for model in committee]
    worths = {place: worth(found) for place, *found in zip(rest, *scores, strict=True)}
    chosen = sorted(rest, key=lambda place: -worths[place])[: fewer - len(begin)]

    def accuracy(places: list[int]) -> float:
        found = [bench.accuracy(bench.train(places, 200 + number)) for number in range(TRAININGS)]
        return sum(found) / len(found)

    return {
        "seed": seed,
        "rankings": RANKED,
        "by_chance": round(accuracy(pool[:RANKED]), 4),
        "fewer": fewer,
        "fewer_by_chance": round(accuracy(pool[:fewer]), 4),
        "fewer_chosen": round(accuracy([*begin, *chosen]), 4),
    }


def main() -> None:
    """Prints a line for each seed."""
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(compare(seed, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
