"""Are two annotators and an expert worth their price? Reward models of adjudicated and of single rankings.

``python -m benchmarks.adjudication [SEED ...]`` prints a line of JSON a seed. Simulated people order answers
by the generator's ranks with Plackett-Luce noise (Plackett 1975: Gumbel noise on each answer's strength), the
expert with less. Adjudicated: two orders a prompt, and the expert's where they differ, as
:mod:`zhongjing.feedback.decision` decides. Single: one order a prompt, for as many prompts, and for as many
prompts as the adjudicated rankings cost orders. Minutes on two cores.
"""

from __future__ import annotations

import json
import math
import random
import sys
import tempfile
from pathlib import Path

from benchmarks.small_reward_model import Bench
from zhongjing.feedback.decision import Disagreement, State, decide
from zhongjing.feedback.judgments import Judgment

PROMPTS = 300
ANNOTATOR, EXPERT = 1.5, 3.0
"""Strength of one rank: chances that an annotator and the expert order neighbours rightly, 0.82 and 0.95."""
TRAININGS = 2


def ordered(rng: random.Random, ranks: tuple[int, ...], strength: float, who: str) -> Judgment:
    """The order that a person gives."""
    names = "abcdefgh"[: len(ranks)]
    worth = {
        name: -strength * rank - math.log(-math.log(1 - rng.random()))
        for name, rank in zip(names, ranks, strict=True)
    }
    order = [[name] for name in sorted(names, key=lambda name: -worth[name])]
    return Judgment(
        task="t",
        annotator=who,
        expert=who == "expert",
        annotation=0,
        updated="2026-12-01T00:00:00Z",
        shown=list(names),
        order=order,
    )


def ranks_in(order: tuple[tuple[str, ...], ...]) -> tuple[int, ...]:
    """Ranks of the answers a, b, ..."""
    ranks = {name: rank for rank, group in enumerate(order) for name in group}
    return tuple(ranks[name] for name in sorted(ranks))


def compare(seed: int, folder: Path) -> dict[str, float]:
    """The figures of one seed."""
    bench = Bench(seed, folder)
    rng = random.Random(f"people {seed}")
    rule = Disagreement("order")
    single: dict[int, tuple[int, ...]] = {}
    adjudicated: dict[int, tuple[int, ...]] = {}
    experts = 0
    for place, sample in enumerate(bench.samples[: 3 * PROMPTS]):
        assert sample.ranks is not None
        one = ordered(rng, sample.ranks, ANNOTATOR, "one")
        single[place] = ranks_in(tuple(map(tuple, one.order)))
        if place >= PROMPTS:
            continue
        pair = [one, ordered(rng, sample.ranks, ANNOTATOR, "other")]
        decision = decide(pair, None, wanted=2, rule=rule)
        if decision.state is State.DISAGREE:
            experts += 1
            expert = ordered(rng, sample.ranks, EXPERT, "expert")
            decision = decide(pair, expert, wanted=2, rule=rule)
        adjudicated[place] = ranks_in(decision.order)
    paid = 2 * PROMPTS + experts

    def accuracy(ranks: dict[int, tuple[int, ...]], count: int) -> float:
        places = list(range(count))
        found = [bench.accuracy(bench.train(places, 300 + each, ranks)) for each in range(TRAININGS)]
        return sum(found) / len(found)

    return {
        "seed": seed,
        "prompts": PROMPTS,
        "experts_share": round(experts / PROMPTS, 4),
        "adjudicated": round(accuracy(adjudicated, PROMPTS), 4),
        "single_equal_prompts": round(accuracy(single, PROMPTS), 4),
        "paid_rankings": paid,
        "single_equal_paid": round(accuracy(single, min(paid, len(single))), 4),
    }


def main() -> None:
    """Prints a line for each seed."""
    for seed in [int(word) for word in sys.argv[1:]] or [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(compare(seed, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
