"""PPO in the real loop on DeepSpeed ZeRO-2, on one and two ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ppo_support import Folders, make_folders, make_settings, ppo_inputs, random_prompts
from tests.training_jobs import ppo
from tests.training_support import run_ranks
from zhongjing.train.engine import Engine
from zhongjing.train.ppo.program import PpoProgram

pytestmark = pytest.mark.integration


def run(models: Path, out: Path, **options: Any) -> dict[str, Any]:
    """A run of one rank, in this process."""
    return ppo(out, models=str(models), **options)


def rollouts(outcome: dict[str, Any]) -> list[dict[str, float]]:
    return [point["values"] for point in outcome["points"] if point["kind"] == "rollout"]


# Times differ between runs; everything else must not.
_TIMES = ("tokens_per_second", "step_seconds", "plan_seconds", "data_seconds", "evaluation_seconds")


def train_points(outcome: dict[str, Any]) -> dict[int, dict[str, float]]:
    return {
        point["step"]: {k: v for k, v in point["values"].items() if "second" not in k and k not in _TIMES}
        for point in outcome["points"]
        if point["kind"] == "train"
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_folders(folder, "llama")
    return folder


SHORT = {"epochs": 0.5, "globalBatchSize": 8, "ppoEpochs": 2, "minibatches": 2, "evaluations": 2}


def test_one_and_two_ranks_agree_and_the_base_stays_frozen(models: Path, tmp_path: Path) -> None:
    one = run(models, tmp_path / "one", settings=SHORT)
    two, _ = run_ranks("ppo", tmp_path / "two", 2, models=str(models), settings=SHORT)
    assert one["steps"] == two["steps"] == 16
    for outcome in (one, two):
        assert outcome["moved"]
        assert all(name.endswith((".ppo", ".critic", "critic_head")) for name in outcome["moved"])
    assert one["before"] == pytest.approx(two["before"], rel=1e-4, abs=1e-5)
    assert rollouts(one)[0] == pytest.approx(rollouts(two)[0], rel=1e-4, abs=1e-5)
    first, other = train_points(one), train_points(two)
    for step in (1, 2, 3, 4):
        for name in ("loss", "policy_loss", "value_loss", "grad_norm", "ratio"):
            assert first[step][name] == pytest.approx(other[step][name], rel=2e-3, abs=1e-4), (step, name)
    assert first[1]["ratio"] == pytest.approx(1.0, abs=1e-6)
    ours = load_file(tmp_path / "one" / "model" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "two" / "model" / "adapter_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.isfinite(tensor).all()
        assert tensor.shape == theirs[name].shape


def test_resume_between_rollouts_gives_identical_metrics(models: Path, tmp_path: Path) -> None:
    settings = {**SHORT, "klTarget": 0.5, "klHorizon": 20}
    whole = run(models, tmp_path / "whole", settings=settings)
    # Asked to stop in the middle of the second rollout: the checkpoint comes at its end.
    stopped = run(models, tmp_path / "parts", settings=settings, stop_at=6)
    assert stopped["suspended"]
    assert stopped["steps"] == 8
    resumed = run(models, tmp_path / "parts", settings=settings)
    assert not resumed["suspended"]
    assert resumed["steps"] == whole["steps"] == 16
    expected, found = train_points(whole), train_points(resumed)
    for step in range(1, 17):
        assert found[step] == expected[step], step
    assert rollouts(resumed) == rollouts(whole)
    assert resumed["metrics"] == whole["metrics"]
    ours = load_file(tmp_path / "whole" / "model" / "adapter_model.safetensors")
    theirs = load_file(tmp_path / "parts" / "model" / "adapter_model.safetensors")
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.slow
def test_bf16_measures_what_it_updates(models: Path, tmp_path: Path) -> None:
    """In 16 bits another padding or another order of operations would show as a ratio far from 1."""
    outcome = run(
        models, tmp_path / "bf16", settings={**SHORT, "precision": "bf16", "gradientCheckpointing": True}
    )
    first = [values for step, values in train_points(outcome).items() if step % 4 == 1]
    assert all(values["ratio"] == pytest.approx(1.0, abs=1e-3) for values in first)
    assert outcome["moved"]


def test_a_step_without_weight_changes_nothing(models: Path) -> None:
    """After an early stop Adam's momentum must not go on moving the policy."""
    folders = Folders(models / "base", models / "sft", models / "rm")
    program = PpoProgram(
        make_settings(ppoEpochs=4, maxKl=1e-9, learningRate=1e-2),
        ppo_inputs(folders, random_prompts(16), random_prompts(2)),
    )
    engine = Engine(
        program.module, program.parameter_groups(), make_settings(learningRate=1e-2), torch.device("cpu")
    )
    try:
        applied = []
        for step in range(4):
            before = {name: p.detach().clone() for name, p in engine.names.items()}
            plan = program.step_batches(step)
            result = engine.train_step(plan, 1e-2, step=step)
            moved = any(not torch.equal(p, before[name]) for name, p in engine.names.items())
            assert moved == result.applied == (plan.denominator > 0)
            applied.append(moved)
        # The second step sees the first one's policy, whose KL is measured; then the rollout is left.
        assert applied == [True, True, False, False]
    finally:
        engine.destroy()


@pytest.mark.slow
def test_the_reward_rises(models: Path, tmp_path: Path) -> None:
    settings = {
        "epochs": 24,
        "globalBatchSize": 64,
        "microBatchSize": 32,
        "ppoEpochs": 4,
        "minibatches": 2,
        "learningRate": 5e-3,
        "klCoef": 0.01,
        "missingEosPenalty": 0.0,
        "schedule": "constant",
        "evaluations": 1,
    }
    outcome = run(models, tmp_path / "toy", settings=settings, toy=True)
    still = {**settings, "learningRate": 0.0, "epochs": 1}
    control = run(models, tmp_path / "control", settings=still, toy=True)
    assert outcome["before"] == pytest.approx(control["before"], abs=1e-6)
    assert control["metrics"] == pytest.approx(control["before"], abs=1e-5)
    # At first there are about as many even as odd tokens: a score near 0; at most 1 can be reached.
    scores = [values["score"] for values in rollouts(outcome)]
    assert abs(scores[0]) < 0.3
    assert sum(scores[-4:]) / 4 > scores[0] + 0.4
    assert outcome["metrics"]["score"] > outcome["before"]["score"] + 0.25
    assert outcome["metrics"]["kl"] > 1.0
    assert outcome["metrics"]["entropy"] < outcome["before"]["entropy"]
    # The critic starts as a copy of the reward model, which knows nothing of even tokens.
    explained = [values["explained_variance"] for values in rollouts(outcome)]
    assert explained[0] < 0.0
    assert sum(explained[-4:]) / 4 > 0.2
