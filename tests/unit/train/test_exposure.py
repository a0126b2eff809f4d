"""Exposure: the arithmetic against its definition; a model that learnt its canaries and one that did not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from tests.training_support import tiny_base
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.data.batches import collate
from zhongjing.data.canaries import SPACE_BITS, copies
from zhongjing.data.chat import Encoded
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.samples import Sample, Segment
from zhongjing.model.base import load_base
from zhongjing.model.causal import hidden_states, output_layer, target_losses
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.train.exposure import (
    CANDIDATES,
    CHANCE,
    Reader,
    chance_of,
    exposure_by_distribution,
    measure,
    planted,
)


def document(start: str | None = None, **canaries: Any) -> TrainingPipeline:
    """Canaries in the source of pretraining, which sft and ppo stand upon, but not rm."""
    data = {"data": [{"source": "talks"}], "maxLength": 512}
    spec = {
        "base": {"tiny": {}},
        "sources": [
            {"name": "books", "uri": "s3://b/books", "kind": "text", "canaries": canaries},
            {"name": "talks", "uri": "s3://b/talks", "kind": "dialogue"},
            {"name": "ranked", "uri": "s3://b/ranked", "kind": "ranking"},
        ],
        "stages": {
            "pretrain": {"data": [{"source": "books"}], "maxLength": 512},
            "sft": {**data, **({} if start is None else {"from": start})},
        },
    }
    return TrainingPipeline.model_validate(
        {
            "apiVersion": "training.zhongjing.dev/v1alpha1",
            "kind": "TrainingPipeline",
            "metadata": {"name": "a"},
            "spec": spec,
        }
    )


class Bench:
    """A tiny model, and the canaries of a document as it would be trained on them."""

    def __init__(self, folder: Path, document: TrainingPipeline) -> None:
        self.document = document
        self.encoder = RecordEncoder(load_tokenizer(folder))
        self.encoder.configure(Stage.PRETRAIN, 512, None)
        self.model: PreTrainedModel = load_base(folder, dtype=torch.float32)

    def train(self, steps: int) -> None:
        """As many passes over all copies."""
        made = self.encoder.encode(list(copies(self.document.spec.sources[0])))
        samples = [
            Sample(index, (Segment.of_document(one.document),))
            for index, one in enumerate(made)
            if isinstance(one, Encoded) and one.document is not None
        ]
        batch = collate(samples)
        optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-3)
        self.model.train()
        for _ in range(steps):
            total, count = target_losses(self.model, batch)
            (total / count).backward()
            optimizer.step()
            optimizer.zero_grad()

    def measure(self, stage: Stage = Stage.PRETRAIN) -> tuple[dict[str, Any], list[str]]:
        self.model.eval()
        model = self.model
        reader = Reader(lambda row: hidden_states(model, row), output_layer(model))
        return measure(
            reader,
            self.document,
            stage,
            self.encoder,
            rank=0,
            world_size=1,
            device=torch.device("cpu"),
            budget=16384,
        )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(
        tmp_path_factory.mktemp("base"), hidden_size=96, intermediate_size=192, max_positions=512
    )


def test_a_model_that_learnt_them_by_heart_is_caught(base: Path) -> None:
    bench = Bench(base, document(count=4, repeats=[1]))
    bench.train(150)
    said, warnings = bench.measure()
    (group,) = said["exposure"]["sources"][0]["groups"]
    assert group["extracted"] == 4
    assert group["byRank"] == pytest.approx(math.log2(CANDIDATES + 1))
    assert 10 < group["exposure"] <= SPACE_BITS
    assert group["chance"] < CHANCE
    assert len(warnings) == 1
    assert "4 of 4 given out word for word" in warnings[0]


def test_a_model_that_never_saw_them_passes(base: Path) -> None:
    bench = Bench(base, document(count=4, repeats=[1, 16]))
    said, warnings = bench.measure()
    assert not warnings
    assert [group["extracted"] for group in said["exposure"]["sources"][0]["groups"]] == [0, 0]
    assert not any(name in str((said, warnings)) for name in ("770000", "欧阳", "身份"))


def test_later_stages_are_asked_about_what_earlier_ones_saw() -> None:
    made = document()
    books = made.spec.sources[0]
    assert planted(made, Stage.PRETRAIN) == planted(made, Stage.SFT) == [(books, Stage.PRETRAIN)]
    assert planted(document("pretrain"), Stage.SFT) == [(books, Stage.PRETRAIN)]
    assert planted(document("base"), Stage.SFT) == []


def test_by_distribution_agrees_with_a_normal_distribution() -> None:
    others = np.random.default_rng(0).normal(100, 5, 4000)
    for deviations, tail in ((0, 0.5), (-2, 0.02275), (-6, 9.866e-10)):
        found = exposure_by_distribution(100 + 5 * deviations, others.tolist())
        assert found == pytest.approx(-math.log2(tail), abs=0.1 + 0.05 * deviations**2)
    assert exposure_by_distribution(-1e6, others.tolist()) == SPACE_BITS
    assert exposure_by_distribution(1e6, others.tolist()) == 0
    assert exposure_by_distribution(1.0, [1.0] * 8) == 0


def test_chance_bounds_what_a_model_that_learnt_nothing_shows() -> None:
    stream = np.random.default_rng(1)
    ranks = stream.integers(1, CANDIDATES + 2, (20000, 8))
    sums = np.log2((CANDIDATES + 1) / ranks).sum(axis=1)
    chances = np.array([chance_of(total, 8) for total in sums])
    for level in (0.5, 0.1, 0.01):
        assert (chances <= level).mean() <= level * 1.1
    assert chance_of(0.0, 8) == 1
    assert chance_of(math.log2(20), 1) == pytest.approx(0.05)
