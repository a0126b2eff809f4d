"""Losses and gradients against the field's own code: TRL's SFTTrainer and RewardTrainer, fp32."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_support import rankings, run_ranks, tiny_base

pytestmark = pytest.mark.integration

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "llama"))


@pytest.fixture(scope="module")
def sft_by_trl(tmp_path_factory: pytest.TempPathFactory, base: str) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sft-by-trl")
    # Four backward passes for one step: labels are counted over all of them.
    return run_ranks("trl_gradients", folder, 1, stage="sft", base=base, settings={}, batch=2)[0]


@pytest.fixture(scope="module")
def rm_by_trl(tmp_path_factory: pytest.TempPathFactory, base: str) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("rm-by-trl")
    return run_ranks("trl_gradients", folder, 1, stage="rm", base=base, settings={"lora": LORA}, batch=4)[0]


def assert_parity(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Losses to 1e-5, and every tensor's gradient to 1e-5 of its norm."""
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=TOLERANCE)
    trained = {name for name, values in theirs["gradients"].items() if any(values)}
    assert len(trained) > 8
    assert trained <= ours["gradients"].keys()
    for name in trained:
        wanted = torch.tensor(theirs["gradients"][name], dtype=torch.float64)
        got = torch.tensor(ours["gradients"][name], dtype=torch.float64)
        assert (got - wanted).norm() <= TOLERANCE * wanted.norm(), name


@pytest.mark.parametrize(("budget", "batches"), [(512, 1), (48, 3), (16, 8)])
def test_sft_equals_trl_with_accumulation(
    tmp_path: Path, base: str, sft_by_trl: dict[str, Any], budget: int, batches: int
) -> None:
    settings = {"tuning": "full", "micro_batch_tokens": budget}
    (ours,) = run_ranks("gradients", tmp_path, 1, stage="sft", base=base, settings=settings)
    assert ours["micro_batches"] == batches
    assert_parity(ours, sft_by_trl)


def test_sft_equals_trl_on_two_ranks_with_unequal_labels(
    tmp_path: Path, base: str, sft_by_trl: dict[str, Any]
) -> None:
    settings = {"tuning": "full", "micro_batch_tokens": 48}
    first, second = run_ranks("gradients", tmp_path, 2, stage="sft", base=base, settings=settings)
    assert sum(first["targets"]) != sum(second["targets"])
    assert first["micro_batches"] == second["micro_batches"]
    assert_parity(first, sft_by_trl)
    assert_parity(second, sft_by_trl)


@pytest.mark.parametrize("world_size", [1, 2])
def test_rm_of_two_answers_equals_trl(
    tmp_path: Path, base: str, rm_by_trl: dict[str, Any], world_size: int
) -> None:
    settings = {"lora": LORA, "micro_batch_tokens": 64}
    for ours in run_ranks("gradients", tmp_path, world_size, stage="rm", base=base, settings=settings):
        assert_parity(ours, rm_by_trl)


def test_rm_of_four_answers_with_ties_equals_a_hand_computation(tmp_path: Path, base: str) -> None:
    from zhongjing.config.stages import Lora
    from zhongjing.model.reward import build_reward_model

    model = build_reward_model(Path(base), Lora(**LORA), 3, torch.float32)
    losses = []
    for sample in rankings(8, answers=4).samples:
        assert sample.ranks is not None
        rewards = [
            model(input_ids=torch.from_numpy(segment.ids).long()[None]).logits[0, 0]
            for segment in sample.segments
        ]
        pairs = [
            torch.log1p(torch.exp(rewards[worse] - rewards[better]))
            for better, worse in itertools.permutations(range(4), 2)
            if sample.ranks[better] < sample.ranks[worse]
        ]
        assert len(pairs) == (5 if sample.index % 5 == 0 else 6)
        losses.append(torch.stack(pairs).mean())
    wanted = torch.stack(losses).mean()
    wanted.backward()
    theirs = {
        "loss": float(wanted.detach()),
        "gradients": {
            name: parameter.grad.flatten().tolist()
            for name, parameter in model.named_parameters()
            if parameter.grad is not None
        },
    }
    settings = {"lora": LORA, "micro_batch_tokens": 64}
    for world_size in (1, 2):
        folder = tmp_path / str(world_size)
        ranks = run_ranks(
            "gradients", folder, world_size, stage="rm", base=base, settings=settings, answers=4
        )
        for ours in ranks:
            assert_parity(ours, theirs)
