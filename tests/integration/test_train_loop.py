"""Whole stages through the loop: learning, resume, stop, explosion, one and two ranks."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.training_jobs import train
from tests.training_support import run_ranks, tiny_base
from zhongjing.codes import storage as storage_codes
from zhongjing.codes import training as training_codes
from zhongjing.errors import StorageError, TrainingError

pytestmark = pytest.mark.integration

LORA: dict[str, Any] = {"rank": 4, "alpha": 8.0, "dropout": 0.0}
SFT: dict[str, Any] = {
    "tuning": "full",
    "epochs": 4,
    "global_batch_size": 8,
    "micro_batch_tokens": 48,
    "learning_rate": 3e-3,
    "warmup_fraction": 0.1,
    "evaluations": 3,
    "lora": LORA,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "llama"))


def kinds(points: list[dict[str, Any]], kind: str) -> list[int]:
    return [point["step"] for point in points if point["kind"] == kind]


def losses(points: list[dict[str, Any]], kind: str = "train") -> list[float]:
    return [point["values"]["loss"] for point in points if point["kind"] == kind]


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_sft_learns_and_writes_what_others_load(tmp_path: Path, base: str, tuning: str) -> None:
    rate = 3e-3 if tuning == "full" else 2e-2
    result = train(
        tmp_path, stage="sft", base=base, settings={**SFT, "tuning": tuning, "learning_rate": rate}
    )
    assert result["steps"] == 20
    assert result["samples"] == 160
    assert kinds(result["points"], "train") == list(range(1, 21))
    assert kinds(result["points"], "validation") == [0, 7, 14, 20]
    # An adapter cannot change the random output layer, so it has less to learn with.
    assert result["metrics"]["loss"] < (0.8 if tuning == "full" else 0.97) * result["before"]["loss"]
    assert result["before"]["loss"] == pytest.approx(math.log(400), rel=0.1)
    values = result["points"][-2]["values"]
    assert {"loss", "grad_norm", "learning_rate", "tokens_per_second", "step_seconds", "data_seconds"} < set(
        values
    )
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    assert progress["step"] == progress["total_steps"] == 20

    # The written model is the best one, and transformers or PEFT load it without code of ours.
    model: torch.nn.Module
    if tuning == "full":
        model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        state = model.state_dict()
    else:
        config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "s3://bucket/base"
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "model")
        state = {
            name.replace(".default.", "."): value
            for name, value in load_file(tmp_path / "model" / "adapter_model.safetensors").items()
        }
        assert AutoPeftModelForCausalLM is not None
    kept = {
        name.removeprefix("model.").replace(".default.", "."): value
        for name, value in result["weights"].items()
    }
    for name, value in kept.items():
        assert state[name].flatten().tolist() == value, name
    AutoTokenizer.from_pretrained(tmp_path / "model")


def test_pretraining_with_an_adapter_leaves_a_full_model(tmp_path: Path, base: str) -> None:
    settings = {**SFT, "tuning": "lora", "learning_rate": 2e-2, "dropout": 0.0}
    result = train(tmp_path, stage="pretrain", base=base, settings=settings)
    assert result["metrics"]["loss"] < result["before"]["loss"]
    folder = tmp_path / "model"
    assert not (folder / "adapter_config.json").exists()
    trained = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    changed = [
        name
        for name, value in AutoModelForCausalLM.from_pretrained(base).state_dict().items()
        if not torch.equal(trained[name], value)
    ]
    assert changed
    assert all("proj" in name for name in changed)
    AutoTokenizer.from_pretrained(folder)


def test_the_best_checkpoint_is_the_result(tmp_path: Path, base: str) -> None:
    # Few samples, many epochs: the held-out loss rises after a while.
    settings = {**SFT, "epochs": 60, "evaluations": 10, "global_batch_size": 2, "learning_rate": 1e-2}
    result = train(tmp_path, stage="sft", base=base, settings=settings, samples=2)
    held_out = {
        point["step"]: point["values"]["loss"] for point in result["points"] if point["kind"] == "validation"
    }
    del held_out[0]
    assert result["best_step"] == min(held_out, key=lambda step: held_out[step])
    assert result["best_step"] < result["steps"]
    folder = tmp_path / "run" / f"step-{result['best_step']:08d}"
    saved = torch.from_file(
        str(folder / "rank-00000-weights.bin"),
        size=(folder / "rank-00000-weights.bin").stat().st_size // 4,
    )
    spans = json.loads((folder / "rank-00000.json").read_text())["fragments"]
    assert {name for name, *_ in spans} == result["weights"].keys()
    for name, start, count, at in spans:
        assert start == 0
        assert saved[at : at + count].tolist() == result["weights"][name]


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, base: str, stage: str) -> None:
    settings = {**SFT, "tuning": "lora", "lora": {**LORA, "dropout": 0.1}, "epochs": 2}
    if stage == "rm":
        settings["micro_batch_tokens"] = 96
    whole = train(tmp_path / "whole", stage=stage, base=base, settings=settings)
    for stop in (4, 3):  # at steps 4 and 7: between evaluations and at one
        part = train(tmp_path / "parts", stage=stage, base=base, settings=settings, stop_at=stop)
        assert part["suspended"]
    rest = train(tmp_path / "parts", stage=stage, base=base, settings=settings)
    assert rest["weights"] == whole["weights"]
    for key in ("steps", "best_step", "before", "metrics", "samples", "tokens", "extra"):
        assert rest[key] == whole[key], key
    lines = (tmp_path / "parts" / "run" / "metrics.jsonl").read_text().splitlines()
    points = [json.loads(line) for line in lines]
    # Nothing was done twice or left out, and every number is the same.
    for kind in ("train", "validation"):
        assert kinds(points, kind) == kinds(whole["points"], kind)
        assert losses(points, kind) == losses(whole["points"], kind)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SFT, "epochs": 2, "evaluations": 1, "checkpoints": {"every_steps": 3}}
    whole = train(tmp_path / "whole", stage="sft", base=base, settings=settings)
    from zhongjing.train.engine import Engine

    original = Engine.train_step

    def dies(self: Engine, *args: Any, **kwargs: Any) -> Any:
        if kwargs["step"] == 8:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Engine, "train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "parts", stage="sft", base=base, settings=settings)
    monkeypatch.undo()
    rest = train(tmp_path / "parts", stage="sft", base=base, settings=settings)
    assert rest["points"][0]["step"] == 7  # from the checkpoint of step 6
    assert rest["weights"] == whole["weights"]
    assert rest["metrics"] == whole["metrics"]


def test_one_and_two_ranks_agree(tmp_path: Path, base: str) -> None:
    settings = {**SFT, "epochs": 1.5}
    alone = train(tmp_path / "one", stage="sft", base=base, settings=settings)
    first, second = run_ranks("train", tmp_path / "two", 2, stage="sft", base=base, settings=settings)
    assert first["weights"] == second["weights"]
    assert (first["samples"], first["tokens"]) == (alone["samples"], alone["tokens"]) == (60, alone["tokens"])
    assert losses(first["points"]) == pytest.approx(losses(alone["points"]), rel=1e-5)
    assert first["before"]["loss"] == pytest.approx(alone["before"]["loss"], rel=1e-6)
    assert first["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-4)


def test_offload_changes_nothing_where_a_rank_has_fillers(tmp_path: Path, base: str) -> None:
    """Three samples a step on two ranks: one has a micro-batch of no weight behind its own."""
    settings = {**SFT, "epochs": 0.5, "global_batch_size": 3, "micro_batch_size": 1, "micro_batch_tokens": 16}
    found = []
    for offload in ("none", "cpu"):
        chosen = {**settings, "optimizer": {"offload": offload}}
        first, _ = run_ranks("train", tmp_path / offload, 2, stage="sft", base=base, settings=chosen)
        found.append(first)
    for name, values in found[0]["weights"].items():
        assert found[1]["weights"][name] == pytest.approx(values, rel=1e-5, abs=1e-6), name


def test_a_stop_is_agreed_by_two_ranks_and_goes_on_with_one(tmp_path: Path, base: str) -> None:
    settings = {**SFT, "epochs": 2}
    whole = train(tmp_path / "whole", stage="sft", base=base, settings=settings)
    parts = run_ranks("train", tmp_path / "parts", 2, stage="sft", base=base, settings=settings, stop_at=5)
    assert [part["suspended"] for part in parts] == [True, True]
    assert [part["steps"] for part in parts] == [5, 5]
    rest = train(tmp_path / "parts", stage="sft", base=base, settings=settings)
    first = rest["points"][0]
    assert first["step"] == 6
    assert first["values"]["loss"] == pytest.approx(losses(whole["points"])[5], rel=1e-5)


CROWDED: dict[str, Any] = {**SFT, "evaluations": 4, "checkpoints": {"every_steps": 2}}


def test_a_full_disk_costs_checkpoints_and_nothing_else(tmp_path: Path, full_disk: Path, base: str) -> None:
    calm = train(tmp_path, stage="sft", base=base, settings=CROWDED)
    crowded = train(full_disk, stage="sft", base=base, settings=CROWDED, full_until=17)
    assert crowded["best_step"] == calm["best_step"] == crowded["steps"] == 20
    assert crowded["metrics"] == calm["metrics"]
    assert crowded["weights"] == calm["weights"]
    assert losses(crowded["points"]) == losses(calm["points"])
    assert checkpoint_names(full_disk) == ["step-00000018", "step-00000020"]
    assert "the disk is full, so no checkpoint of step 2 (none was taken yet)" in crowded["messages"]
    assert calm["messages"] == [""]
    progress = json.loads((full_disk / "run" / "progress.json").read_text())
    assert progress["message"] == "", "there is room again"


def test_ranks_agree_that_the_disk_is_full(full_disk: Path, base: str) -> None:
    settings = {**CROWDED, "epochs": 1, "evaluations": 1}
    first, second = run_ranks("train", full_disk, 2, stage="sft", base=base, settings=settings, full_until=3)
    assert first["best_step"] == second["best_step"] == first["steps"] == 5
    assert first["weights"] == second["weights"]
    assert checkpoint_names(full_disk) == ["step-00000004", "step-00000005"]


def checkpoint_names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "run").glob("step-*"))


def test_a_full_disk_at_the_end_is_an_error(full_disk: Path, base: str) -> None:
    with pytest.raises(StorageError) as caught:
        train(full_disk, stage="sft", base=base, settings=SFT, full_until=1000)
    assert caught.value.code is storage_codes.DISK_FULL
    assert "step-00000020" in str(caught.value.where)
    assert not list((full_disk / "run").glob("step-*"))


def test_a_stop_on_a_full_disk_is_an_error(full_disk: Path, base: str) -> None:
    with pytest.raises(StorageError) as caught:
        train(full_disk, stage="sft", base=base, settings=SFT, stop_at=3, full_until=1000)
    assert caught.value.code is storage_codes.DISK_FULL
    assert "step-00000003" in str(caught.value.where)


def test_rm_keeps_what_its_best_checkpoint_measured(full_disk: Path, base: str) -> None:
    settings = {**SFT, "epochs": 2, "learning_rate": 1e-3, "evaluations": 5, "lora": {**LORA, "rank": 32}}
    del settings["tuning"]
    result = train(full_disk, stage="rm", base=base, settings=settings, full_until=9)
    assert result["best_step"] == 10
    assert result["extra"]["rewardMean"] == result["metrics"]["reward_mean"]
    # A prompt's answers stay together, also where they are more than the budget: it is counted.
    over = [
        point["values"].get("samples_over_budget", 0)
        for point in result["points"]
        if point["kind"] == "train"
    ]
    assert sum(over) == 2 * result["extra"]["samplesOverBudget"] > 0


def test_rm_learns_and_is_a_peft_classifier(tmp_path: Path, base: str) -> None:
    settings = {
        "epochs": 6,
        "global_batch_size": 8,
        "micro_batch_tokens": 144,
        "learning_rate": 2e-2,
        "evaluations": 3,
        "lora": LORA,
    }
    result = train(tmp_path, stage="rm", base=base, settings=settings)
    assert result["before"]["loss"] == pytest.approx(math.log(2), rel=0.5)
    assert result["metrics"]["accuracy"] > 0.8
    held = result["metrics"]
    assert held["accuracy_low"] < held["accuracy"] <= held["accuracy_high"] <= 1
    assert held["pairs"] == 12 * 6 - 3, "of four answers each, three ties"
    assert 0 <= held["longer_accuracy"] <= 1
    assert result["metrics"]["loss"] < 0.8 * result["before"]["loss"]
    assert result["extra"]["rewardMean"] == result["metrics"]["reward_mean"]
    assert result["extra"]["rewardStd"] > 0
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    loaded = PeftModel.from_pretrained(classifier, tmp_path / "model")
    heads = [value for name, value in loaded.named_parameters() if "score" in name and "default" in name]
    trained = next(value for name, value in result["weights"].items() if "score" in name)
    assert heads[0].flatten().tolist() == trained


def test_learning_rate_zero_changes_nothing(tmp_path: Path, base: str) -> None:
    result = train(
        tmp_path,
        stage="sft",
        base=base,
        settings={**SFT, "learning_rate": 0.0, "weight_decay": 0.1, "epochs": 1},
    )
    assert result["metrics"] == result["before"]


def test_a_learning_rate_that_explodes_stops_and_says_so(tmp_path: Path, base: str) -> None:
    settings = {**SFT, "learning_rate": 5.0, "epochs": 20, "checkpoints": {"every_steps": 2}}
    with pytest.raises(TrainingError) as caught:
        train(tmp_path, stage="sft", base=base, settings=settings)
    assert caught.value.code is training_codes.DIVERGED
    assert caught.value.where is not None
    assert caught.value.where.startswith("step ")
    assert "last good checkpoint: step" in str(caught.value)
    assert "learningRate" in str(caught.value)


def test_another_seed_is_refused(tmp_path: Path, base: str) -> None:
    train(tmp_path, stage="sft", base=base, settings=SFT, stop_at=2)
    with pytest.raises(TrainingError, match="seed"):
        train(tmp_path, stage="sft", base=base, settings=SFT, seed=4)


def test_another_adapter_is_refused(tmp_path: Path, base: str) -> None:
    settings = {**SFT, "tuning": "lora"}
    train(tmp_path, stage="sft", base=base, settings=settings, stop_at=2)
    with pytest.raises(StorageError, match="have another shape"):
        train(tmp_path, stage="sft", base=base, settings={**settings, "lora": {**LORA, "rank": 2}})


def test_gradient_checkpointing_changes_nothing(tmp_path: Path, base: str) -> None:
    settings = {**SFT, "tuning": "lora", "epochs": 1}
    plain = train(tmp_path / "plain", stage="sft", base=base, settings=settings)
    again = train(
        tmp_path / "again", stage="sft", base=base, settings={**settings, "gradient_checkpointing": True}
    )
    assert losses(again["points"]) == pytest.approx(losses(plain["points"]), rel=1e-6)
