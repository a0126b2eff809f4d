"""The planner's arithmetic against known numbers; remedies that hold; no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from zhongjing.config.resolve import recipe, resolve
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError
from zhongjing.planning.hardware import GIB, parse_gpus
from zhongjing.planning.memory import plan_memory
from zhongjing.planning.shape import Shape, of_config, of_name
from zhongjing.planning.stage_plan import Terms, changed, find_problems, find_remedies, plan_pipeline

FOUR = parse_gpus("4xA100-80G")


def ziya() -> Shape:
    shape = of_name("IDEA-CCNL/Ziya-LLaMA-13B-v1")
    assert shape is not None
    return shape


def settings_of(stage: Stage, **changes: Any) -> AnySettings:
    found = resolve(recipe("zhongjing-13b")).spec.stages.get(stage)
    assert found is not None
    return changed(found, changes)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("huggyllama/llama-7b", 6.738),  # as the models' cards and safetensors indices say
        ("llama-13b-hf", 13.016),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030),
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("Qwen/Qwen2.5-1.5B", 1.544),
        ("Qwen/Qwen2.5-7B-Instruct", 7.616),
        ("Qwen/Qwen2.5-14B", 14.770),
        ("Qwen/Qwen3-0.6B-Base", 0.596),
        ("Qwen/Qwen3-8B", 8.191),
    ],
)
def test_parameters_of_published_models(name: str, billions: float) -> None:
    shape = of_name(name)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.001)


def test_a_config_that_is_no_decoder_has_no_shape() -> None:
    assert of_config({"model_type": "t5", "d_model": 512}) is None


@pytest.mark.parametrize(
    ("workers", "micro", "offload", "gib"),
    [
        (4, 1, "none", 77.8),
        (4, 4, "none", 84.9),
        (8, 4, "none", 60.5),
        (4, 4, "cpu", 48.3),
    ],
)
def test_full_parameters_of_13b(workers: int, micro: int, offload: str, gib: float) -> None:
    """GiB as worked out tensor by tensor for ZeRO-2; no GPU measured them."""
    settings = settings_of(
        Stage.PRETRAIN, workers=workers, microBatchSize=micro, optimizer={"offload": offload}
    )
    memory = plan_memory(ziya(), settings)
    assert memory.device["weights"] / GIB == pytest.approx(24.4, abs=0.05)
    assert memory.device["gradients"] / GIB == pytest.approx(24.4 / workers, abs=0.05)
    assert memory.device["gradients of the micro-batch"] == memory.device["gradients"]
    optimizer = 146.3 / workers if offload == "none" else 0
    assert memory.device["optimizer"] / GIB == pytest.approx(optimizer, abs=0.1)
    assert memory.peak / GIB == pytest.approx(gib, rel=0.05)


def test_the_recipe_fits_on_four_a100_and_without_offload_it_does_not() -> None:
    document = resolve(recipe("zhongjing-13b"))
    assert [each.fits for each in plan_pipeline(document, ziya(), Terms(gpus=FOUR))] == [True] * 4
    without = resolve(recipe("zhongjing-13b"), ["spec.stages.pretrain.optimizer.offload=none"])
    pretrain, *others = plan_pipeline(without, ziya(), Terms(gpus=FOUR, gpu_hour=2.5))
    assert pretrain.fits is False
    assert all(each.fits for each in others)
    assert pretrain.remedies == ({"optimizer": {"offload": "cpu"}}, {"workers": 8}, {"tuning": "lora"})
    assert pretrain.money is None, "nothing says how much data there is"


def test_rollouts_of_13b_keep_0_82_mb_a_token() -> None:
    memory = plan_memory(ziya(), settings_of(Stage.PPO))
    assert memory.device["KV cache"] / (8 * 4096) == pytest.approx(0.8192e6)


def test_a_budget_bounds_the_cache_of_rollouts() -> None:
    everything, bounded = (
        plan_memory(ziya(), settings_of(Stage.PPO, **changes)).device["KV cache"]
        for changes in ({}, {"rollout": {"cacheGiB": 8}})
    )
    assert everything > 20 * GIB
    assert bounded == 8 * GIB


@pytest.mark.parametrize("gpus", [0, 1])
def test_auto_precision_has_the_width_of_the_device(gpus: int) -> None:
    changes = {"resources": {"cpus": 1, "gpus": gpus}}
    wanted = plan_memory(ziya(), settings_of(Stage.SFT, precision="bf16" if gpus else "fp32", **changes))
    assert plan_memory(ziya(), settings_of(Stage.SFT, precision="auto", **changes)) == wanted


@pytest.mark.parametrize(
    ("stage", "changes", "gpus"),
    [
        (Stage.PRETRAIN, {"optimizer": {"offload": "none"}}, "4xA100-80G"),
        (Stage.PRETRAIN, {"gradientCheckpointing": False, "microBatchSize": 16}, "4xA100-80G"),
        (Stage.SFT, {"gradientCheckpointing": False}, "4xA100-80G"),
        (Stage.SFT, {"microBatchSize": 16}, "4xA100-40G"),
        (Stage.SFT, {}, "4xRTX-24G"),
        (Stage.RM, {}, "2xA100-80G"),
        (Stage.SFT, {"resources": {"cpus": 8, "gpus": 1, "memory": "20Gi"}}, "4xA100-80G"),
    ],
)
def test_every_remedy_makes_it_fit(stage: Stage, changes: Mapping[str, Any], gpus: str) -> None:
    settings, there = settings_of(stage, **changes), parse_gpus(gpus)
    assert find_problems(settings, ziya(), Terms(gpus=there))
    remedies = find_remedies(settings, ziya(), Terms(gpus=there))
    assert remedies
    for remedy in remedies:
        enough = replace(there, count=max(there.count, remedy.get("workers", 0)))
        assert find_problems(changed(settings, remedy), ziya(), Terms(gpus=enough)) == [], remedy


def test_nothing_is_refused_where_the_limit_is_not_known() -> None:
    assert [each.fits for each in plan_pipeline(resolve(recipe("zhongjing-13b")), ziya(), Terms())] == [
        None
    ] * 4


def test_hours_and_money_follow_from_a_given_throughput() -> None:
    terms = Terms(gpus=FOUR, tokens_per_second=1000, gpu_hour=2, tokens={Stage.SFT: 4_000_000})
    sft = plan_pipeline(resolve(recipe("zhongjing-13b")), ziya(), terms)[1]
    assert sft.tokens == 10_800_000  # 3 epochs over 90 %
    assert sft.hours == pytest.approx(0.75)
    assert sft.money == pytest.approx(6)  # 4 GPUs


@pytest.mark.parametrize("text", ["four", "4xA100", "0xA100-80G", ""])
def test_gpus_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="names no GPUs"):
        parse_gpus(text)


PROBE = """
import sys
from zhongjing.cli.app import app
from zhongjing.cli.guard import run
code = run(app, sys.argv[1:], "zhongjing")
loaded = {"torch", "transformers", "ray"} & set(sys.modules)
assert not loaded, loaded
sys.exit(code)
"""


@pytest.mark.parametrize(("gpus", "code"), [("4xA100-80G", 0), ("4xA100-40G", 1), ("none", 2)])
def test_the_command_exits_by_what_fits_and_needs_no_torch(gpus: str, code: int) -> None:
    command = ["plan", "--recipe", "zhongjing-13b", "--gpus", gpus, "-o", "json"]
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *command], check=False, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    if code != 2:
        found = json.loads(done.stdout)
        assert found["fits"] is (code == 0)
        assert [each["stage"] for each in found["stages"]] == ["pretrain", "sft", "rm", "ppo"]
