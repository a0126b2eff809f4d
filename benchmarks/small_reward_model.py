"""A reward model small enough to be trained many times in minutes: for comparisons of rankings, not for use.

The project's own reward model (:mod:`zhongjing.model.reward`), objective and loss, on a random base of two
layers. Rankings are those of the example generator; the test asks about conditions that no ranking names.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zhongjing.config.sources import TinyBase
from zhongjing.config.stages import Lora
from zhongjing.data.batches import collate
from zhongjing.data.chat import Encoded, encode_ranking
from zhongjing.data.example.generate import generate
from zhongjing.data.records import Turn
from zhongjing.data.samples import MicroBatch, Sample
from zhongjing.data.templates import CHATML_TEMPLATE
from zhongjing.model.base import make_tiny_base
from zhongjing.model.reward import build_reward_model
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.train.losses import pair_counts
from zhongjing.train.stages.rm import RankingObjective

_BATCH = 8  # prompts
_EPOCHS = 4
_RATE = 4e-3
_SCALE = 4.0  # of the example data: 3600 rankings, 480 of held-out conditions
_LORA = Lora.model_validate({"rank": 16, "dropout": 0.0})
_BASE = TinyBase(
    hidden_size=96,
    intermediate_size=256,
    layers=2,
    heads=4,
    kv_heads=2,
    vocabulary_size=1500,
    max_positions=256,
)


class Bench:
    """Rankings of one seed, encoded once, and the base that reward models start from.

    Args:
        seed: of data and base.
        folder: where the base is written.
    """

    def __init__(self, seed: int, folder: Path) -> None:
        data = generate(seed, _SCALE)
        self.records: list[Mapping[str, Any]] = list(data.records["rankings"])
        texts = [data.textbook[:200_000], *(text for each in self.records[:500] for text in each["answers"])]
        self._base = folder / f"base-{seed}"
        make_tiny_base(self._base, _BASE, texts, seed, CHATML_TEMPLATE)
        tokenizer = load_tokenizer(self._base)

        def encoded(index: int, record: Mapping[str, Any]) -> Sample:
            turns = (Turn("user", record["prompt"]),)
            found = encode_ranking(tokenizer, turns, record["answers"], 256, ranks=tuple(record["ranks"]))
            assert isinstance(found, Encoded)
            return Sample(index, found.segments, found.ranks)

        self.samples = [encoded(index, each) for index, each in enumerate(self.records)]
        self.test = [encoded(index, each) for index, each in enumerate(data.records["rankings-heldout"])]

    def train(
        self, places: Sequence[int], seed: int, ranks: Mapping[int, tuple[int, ...]] | None = None
    ) -> RankingObjective:
        """A reward model of some rankings.

        Args:
            places: of the rankings.
            seed: of adapter, head and order.
            ranks: by place, in place of the true ones.
        """
        objective = RankingObjective(build_reward_model(self._base, _LORA, seed, torch.float32))
        learned = [each for each in objective.parameters() if each.requires_grad]
        optimizer = torch.optim.AdamW(learned, lr=_RATE, weight_decay=0.0)
        samples = [
            self.samples[place]
            if ranks is None
            else Sample(place, self.samples[place].segments, ranks[place])
            for place in places
        ]
        steps = _EPOCHS * -(-len(samples) // _BATCH)
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / 10, 1.05 - step / steps)
        )
        order = random.Random(seed)
        for _ in range(_EPOCHS):
            order.shuffle(samples)
            for start in range(0, len(samples), _BATCH):
                batch = collate(samples[start : start + _BATCH])
                loss = objective(batch).total / len(batch.sample_indices)
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(learned, 1.0)
                optimizer.step()
                schedule.step()
        return objective

    def scores(self, objective: RankingObjective, places: Sequence[int]) -> list[list[float]]:
        """The score of each answer of some rankings."""
        return [
            objective_scores
            for start in range(0, len(places), 32)
            for objective_scores in _scored(objective, [self.samples[p] for p in places[start : start + 32]])
        ]

    def accuracy(self, objective: RankingObjective) -> float:
        """Part of the pairs of held-out conditions in the right order."""
        right = total = 0.0
        for start in range(0, len(self.test), 32):
            batch = collate(self.test[start : start + 32])
            rewards = _rewards(objective, batch)
            counts = pair_counts(
                rewards, batch.segment_samples, batch.segment_ranks, len(batch.sample_indices)
            )
            right += float(counts[0].sum())
            total += float(counts[1].sum())
        return right / total


def _rewards(objective: RankingObjective, batch: MicroBatch) -> torch.Tensor:
    with torch.no_grad():
        return objective.rewards(batch)


def _scored(objective: RankingObjective, samples: Sequence[Sample]) -> list[list[float]]:
    flat = iter(_rewards(objective, collate(samples)).tolist())
    return [[next(flat) for _ in sample.segments] for sample in samples]
