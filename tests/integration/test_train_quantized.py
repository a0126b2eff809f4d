"""Stages on a base in NF4 in the real loop: equal to the rounded base, resumed bit for bit, on two ranks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.quantized_support import write_rounded
from tests.training_jobs import train
from tests.training_support import run_ranks, tiny_base

pytestmark = pytest.mark.integration

SETTINGS: dict[str, Any] = {
    "quantization": "nf4",
    "lora": {"rank": 4, "alpha": 8.0, "dropout": 0.0},
    "learning_rate": 5e-3,
    "global_batch_size": 8,
    "micro_batch_tokens": 32,
    "epochs": 2,
    "evaluations": 2,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_base(tmp_path_factory.mktemp("base") / "llama", hidden_size=64, intermediate_size=128))


@pytest.mark.parametrize("stage", ["sft", "rm"])
def test_a_stage_on_nf4_is_the_stage_on_the_rounded_base(tmp_path: Path, base: str, stage: str) -> None:
    rounded = str(write_rounded(Path(base), tmp_path / "rounded"))
    nf4 = train(tmp_path / "nf4", stage=stage, base=base, settings=SETTINGS)
    plain = train(
        tmp_path / "plain", stage=stage, base=rounded, settings={**SETTINGS, "quantization": "none"}
    )
    assert nf4["metrics"] == pytest.approx(plain["metrics"], rel=1e-3)
    assert nf4["metrics"]["loss"] < nf4["before"]["loss"]
    # The adapter refers to the base as published, not to the rounded one.
    config = json.loads((tmp_path / "nf4" / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "s3://bucket/base"
    assert "quantization_config" not in config


@pytest.mark.parametrize("precision", ["bf16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_a_stopped_stage_on_nf4_goes_on_bit_for_bit(tmp_path: Path, base: str, precision: str) -> None:
    settings = {**SETTINGS, "precision": precision, "gradient_checkpointing": True}
    whole = train(tmp_path / "whole", stage="sft", base=base, settings=settings)
    # Stopped behind an evaluation: it must leave the weights as training had them.
    part = train(tmp_path / "parts", stage="sft", base=base, settings=settings, stop_at=6)
    assert part["suspended"]
    rest = train(tmp_path / "parts", stage="sft", base=base, settings=settings)
    assert rest["weights"] == whole["weights"]
    assert rest["metrics"] == whole["metrics"]


def test_two_ranks_agree_with_one_on_nf4(tmp_path: Path, base: str) -> None:
    alone = train(tmp_path / "one", stage="sft", base=base, settings=SETTINGS)
    first, second = run_ranks("train", tmp_path / "two", 2, stage="sft", base=base, settings=SETTINGS)
    assert first["weights"] == second["weights"]
    assert first["metrics"]["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-4)
