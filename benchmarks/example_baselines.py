"""What simple rankers reach on the example rankings: the figures that a reward model must be seen beside.

``python benchmarks/example_baselines.py [SEED ...]`` prints one JSON object a seed: pair accuracy on the
held-out conditions of "the longer answer wins" and of a bag-of-words ranker. No torch; seconds.
"""

from __future__ import annotations

import itertools
import json
import math
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zhongjing.data.example.generate import generate

Ranker = Callable[[str, str], float]


def pair_accuracy(records: Sequence[Mapping[str, Any]], score: Ranker) -> float:
    """Part of the pairs of differently ranked answers in which the better one scores higher; equal: half."""
    right = total = 0.0
    for better, worse, prompt in _pairs(records):
        difference = score(prompt, better) - score(prompt, worse)
        right += 1.0 if difference > 0 else 0.5 if difference == 0 else 0.0
        total += 1
    return right / total


def longer_wins(_: str, answer: str) -> float:
    """Scores an answer by its number of characters."""
    return float(len(answer))


def bag_of_words(answer: str) -> dict[str, float]:
    """Characters and pairs of characters of an answer, with their counts damped by a logarithm."""
    counts: dict[str, int] = {}
    for gram in itertools.chain(answer, map("".join, itertools.pairwise(answer))):
        counts[gram] = counts.get(gram, 0) + 1
    return {gram: math.log1p(count) for gram, count in counts.items()}


def train_bag_of_words(
    records: Sequence[Mapping[str, Any]], *, epochs: int = 4, rate: float = 0.05, seed: int = 0
) -> Ranker:
    """A logistic pairwise ranker over :func:`bag_of_words`, trained by stochastic gradient descent."""
    weights: dict[str, float] = {}
    pairs = [(bag_of_words(better), bag_of_words(worse)) for better, worse, _ in _pairs(records)]
    rng = random.Random(seed)
    for _ in range(epochs):
        rng.shuffle(pairs)
        for better, worse in pairs:
            margin = _dot(weights, better) - _dot(weights, worse)
            step = rate / (1.0 + math.exp(min(margin, 50.0)))
            for features, sign in ((better, 1.0), (worse, -1.0)):
                for gram, value in features.items():
                    weights[gram] = weights.get(gram, 0.0) + sign * step * value
    return lambda _, answer: _dot(weights, bag_of_words(answer))


def _dot(weights: Mapping[str, float], features: Mapping[str, float]) -> float:
    return sum(weights.get(gram, 0.0) * value for gram, value in features.items())


def _pairs(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """(better, worse, prompt) of every pair without a tie."""
    found = []
    for record in records:
        ranked = list(zip(record["ranks"], record["answers"], strict=True))
        for (rank, answer), (other_rank, other) in itertools.combinations(ranked, 2):
            if rank != other_rank:
                better, worse = (answer, other) if rank < other_rank else (other, answer)
                found.append((better, worse, record["prompt"]))
    return found


def main() -> None:
    """Prints a line for each seed."""
    for seed in [int(word) for word in sys.argv[1:]] or [0]:
        data = generate(seed)
        ranker = train_bag_of_words(data.records["rankings"])
        figures = {
            "seed": seed,
            "rankings": len(data.records["rankings"]),
            "heldout": len(data.records["rankings-heldout"]),
            "longer_wins": round(pair_accuracy(data.records["rankings-heldout"], longer_wins), 4),
            "bag_of_words": round(pair_accuracy(data.records["rankings-heldout"], ranker), 4),
            "bag_of_words_on_its_training_data": round(pair_accuracy(data.records["rankings"], ranker), 4),
        }
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
