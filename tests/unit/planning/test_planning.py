"""The planner's arithmetic against known numbers; remedies that hold; no torch."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from zhongjing.cli.app import app
from zhongjing.cli.errors import run
from zhongjing.config.resolve import recipe, resolve
from zhongjing.config.stages import AnySettings, Stage
from zhongjing.errors import ConfigError
from zhongjing.model.adapters import linear_layers
from zhongjing.planning.hardware import GIB, parse_gpus
from zhongjing.planning.memory import plan_memory
from zhongjing.planning.row_size import RowSize
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
        # As the models' cards and safetensors indices say.
        ("IDEA-CCNL/Ziya-LLaMA-13B-v1", 13.092),
        ("huggyllama/llama-7b", 6.738),
        ("llama-13b-hf", 13.016),
        ("meta-llama/Llama-2-7b-hf", 6.738),
        ("meta-llama/Llama-2-13b-chat-hf", 13.016),
        ("meta-llama/Meta-Llama-3-8B-Instruct", 8.030),
        ("meta-llama/Llama-3.1-8B", 8.030),
        ("meta-llama/Llama-3.2-1B", 1.236),
        ("meta-llama/Llama-3.2-3B-Instruct", 3.213),
        ("Qwen/Qwen2.5-0.5B", 0.494),
        ("Qwen/Qwen2.5-1.5B", 1.544),
        ("Qwen/Qwen2.5-3B", 3.086),
        ("Qwen/Qwen2.5-7B-Instruct", 7.616),
        ("Qwen/Qwen2.5-14B", 14.770),
        ("Qwen/Qwen2.5-32B", 32.764),
        ("Qwen/Qwen3-0.6B-Base", 0.596),
        ("Qwen/Qwen3-1.7B", 1.721),
        ("Qwen/Qwen3-4B-Base", 4.022),
        ("Qwen/Qwen3-8B", 8.191),
        ("Qwen/Qwen3-14B", 14.768),
        ("01-ai/Yi-6B", 6.061),
        ("01-ai/Yi-9B", 8.829),
        ("01-ai/Yi-1.5-34B-Chat", 34.389),
    ],
)
def test_parameters_of_published_models(name: str, billions: float) -> None:
    shape = of_name(name)
    assert shape is not None
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.001)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True}),
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen3", {"head_dim": 16}),
        ("qwen3", {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}),
        ("mistral", {}),
    ],
)
def test_parameters_are_those_of_the_model_that_transformers_makes(kind: str, fields: dict[str, Any]) -> None:
    sizes = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "vocab_size": 320}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model(kind, **sizes, **heads, **fields)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = of_config(config.to_dict())
    assert shape is not None
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    linear = sum(layer.weight.numel() for layer in linear_layers(model).values())
    assert shape.linear_parameters == linear


def test_a_config_that_is_no_decoder_has_no_shape() -> None:
    assert of_config({"model_type": "t5", "d_model": 512}) is None
    dense = LlamaConfig().to_dict()
    assert of_config(dense) is not None
    assert of_config(dense | {"num_local_experts": 8}) is None


@pytest.mark.parametrize(
    ("workers", "micro", "offload", "gib"),
    [
        (4, 1, "none", 77.8),
        (4, 4, "none", 84.9),
        (8, 4, "none", 60.5),
        # No gradients on the GPU: DeepSpeed brings each to the host as it is reduced.
        (4, 4, "cpu", 39.1),
    ],
)
def test_full_parameters_of_13b(workers: int, micro: int, offload: str, gib: float) -> None:
    """GiB as worked out tensor by tensor for ZeRO-2; no GPU measured them."""
    settings = settings_of(
        Stage.PRETRAIN, workers=workers, microBatchSize=micro, optimizer={"offload": offload}
    )
    memory = plan_memory(ziya(), settings)
    assert memory.device["weights"] / GIB == pytest.approx(24.4, abs=0.05)
    if offload == "none":
        assert memory.device["gradients"] / GIB == pytest.approx(24.4 / workers, abs=0.05)
        assert memory.device["gradients of the micro-batch"] == memory.device["gradients"]
    optimizer = 146.3 / workers if offload == "none" else 0
    assert memory.device["optimizer"] / GIB == pytest.approx(optimizer, abs=0.1)
    assert memory.peak / GIB == pytest.approx(gib, rel=0.05)


def test_the_recipe_fits_on_four_a100_and_without_offload_it_does_not() -> None:
    document = resolve(recipe("zhongjing-13b"))
    assert [each.fits for each in plan_pipeline(document, lambda _: ziya(), Terms(gpus=FOUR))] == [True] * 4
    without = resolve(recipe("zhongjing-13b"), ["spec.stages.pretrain.optimizer.offload=none"])
    pretrain, *others = plan_pipeline(without, lambda _: ziya(), Terms(gpus=FOUR, gpu_hour=2.5))
    assert pretrain.fits is False
    assert all(each.fits for each in others)
    assert pretrain.remedies == ({"optimizer": {"offload": "cpu"}}, {"workers": 8}, {"tuning": "lora"})
    assert pretrain.money is None, "nothing says how much data there is"


def test_rollouts_of_13b_take_the_rows_that_a_budget_allows() -> None:
    settings = settings_of(Stage.PPO)
    row = RowSize.of(ziya(), 2)
    assert row.token == 819_200
    everything = plan_memory(ziya(), settings)
    assert everything.device["KV cache"] == row.needed(8, 3072, 1024)  # 32 episodes on four workers
    bounded = plan_memory(ziya(), settings_of(Stage.PPO, rollout={"cacheGiB": 15}))
    assert "KV cache" in bounded.device
    assert bounded.device["KV cache"] == row.needed(4, 3072, 1024) <= 15 * GIB


def test_rollouts_without_a_budget_fit_any_gpu_that_has_room_for_one_row() -> None:
    """They take a part of what is free, as the engine does that makes them."""
    settings = settings_of(Stage.PPO)
    for gpus in ("4xA100-80G", "4xRTX-48G"):
        limit = parse_gpus(gpus).usable
        assert plan_memory(ziya(), settings, limit).peak <= limit
    smaller = plan_memory(ziya(), settings_of(Stage.PPO, quantization="nf4"), parse_gpus("4xRTX-24G").usable)
    assert smaller.peak < parse_gpus("4xRTX-24G").usable


def test_offload_keeps_20_bytes_a_parameter_on_the_host() -> None:
    """Masters, gradients and moments in fp32; masters and the sum of micro-batches in fp16 (LOG.md)."""
    memory = plan_memory(ziya(), settings_of(Stage.PRETRAIN))
    share = ziya().parameters / 4
    assert (memory.host - 4 * GIB) / share == pytest.approx(20, rel=0.01)
    one_pass = plan_memory(ziya(), settings_of(Stage.PRETRAIN, globalBatchSize=16))
    assert (one_pass.host - 4 * GIB) / share == pytest.approx(18, rel=0.01)


def test_an_episode_is_computed_for_policy_and_critic() -> None:
    changes = {"gradientCheckpointing": False, "maxLength": 2048, "microBatchTokens": 4096}
    ppo = settings_of(Stage.PPO, maxPromptLength=1024, **changes)
    sft = settings_of(Stage.SFT, lora={"rank": 16, "dropout": 0.0}, **changes)
    one, two = (plan_memory(ziya(), each).device["activations"] for each in (sft, ppo))
    assert two / one == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize(
    ("fields", "budget"),
    [
        ({}, 2 * 4096),
        ({"maxPromptLength": 512}, 2 * 1536),
        ({"maxLength": 2048}, 2 * 2048),  # prompts are cut to what a whole response leaves
        ({"microBatchTokens": 999}, 999),
    ],
)
def test_room_for_so_many_episodes(fields: dict[str, Any], budget: int) -> None:
    assert settings_of(Stage.PPO, **fields).token_budget == budget


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
        (Stage.SFT, {"resources": {"cpus": 8, "gpus": 1, "memory": "4Gi"}}, "4xA100-80G"),
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
    assert [
        each.fits for each in plan_pipeline(resolve(recipe("zhongjing-13b")), lambda _: ziya(), Terms())
    ] == [None] * 4


def test_hours_and_money_follow_from_a_given_throughput() -> None:
    terms = Terms(gpus=FOUR, tokens_per_second=1000, gpu_hour=2, tokens={Stage.SFT: 4_000_000})
    sft = plan_pipeline(resolve(recipe("zhongjing-13b")), lambda _: ziya(), terms)[1]
    assert sft.tokens == 10_800_000  # 3 epochs over 90 %
    assert sft.hours == pytest.approx(0.75)
    assert sft.money == pytest.approx(6)  # 4 GPUs


@pytest.mark.parametrize("text", ["four", "4xA100", "0xA100-80G", "4xA100-0G", ""])
def test_gpus_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="names no GPUs"):
        parse_gpus(text)


def test_a_capital_x_counts_as_well() -> None:
    assert parse_gpus("4XA100-80G") == FOUR


@pytest.mark.parametrize(
    "odd",
    [{"num_local_experts": 8}, {"num_hidden_layers": -4}, {"vocab_size": 0}, {"hidden_size": float("inf")}],
)
def test_a_config_that_is_no_dense_decoder_has_no_shape(odd: dict[str, Any]) -> None:
    """Mixtral's config.json is Llama's with ``num_local_experts``; json reads Infinity."""
    config = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "vocab_size": 100,
    }
    assert of_config(config) is not None
    assert of_config(config | odd) is None


def test_workers_with_a_gpu_share_the_memory_of_their_machine() -> None:
    settings = settings_of(Stage.PRETRAIN, optimizer={"offload": "cpu"}, resources={"gpus": 1})
    assert not find_problems(settings, ziya(), Terms(gpus=FOUR, machine=512 * GIB))
    problems = find_problems(settings, ziya(), Terms(gpus=FOUR, machine=64 * GIB))
    assert any("host memory, the machine has 64.0 GiB" in each for each in problems)


RECIPE = ["plan", "--recipe", "zhongjing-13b", "-o", "json", "--gpus"]


def planned(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code of ``zhongjing plan`` and its stages by name."""
    code = run(app, [*RECIPE, *words], "zhongjing")
    told = capsys.readouterr().out
    return code, {each["stage"]: each for each in json.loads(told)["stages"]} if code != 2 else {}


def test_a_stage_is_planned_on_what_it_starts_from(capsys: pytest.CaptureFixture[str]) -> None:
    """The base of the document does not fit, what pretraining starts from does."""
    _, base = planned(capsys, "4xA100-40G")
    _, small = planned(capsys, "4xA100-40G", "--set", "spec.stages.pretrain.from=Qwen/Qwen2.5-0.5B")
    assert small["pretrain"]["peakBytes"] < base["pretrain"]["peakBytes"] / 4
    assert small["pretrain"]["fits"]


@pytest.mark.parametrize(("gpus", "code"), [("4xA100-80G", 0), ("4xA100-40G", 1), ("none", 2)])
def test_the_command_exits_by_what_fits(gpus: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    exited, stages = planned(capsys, gpus)
    assert exited == code
    if code != 2:
        assert list(stages) == ["pretrain", "sft", "rm", "ppo"]
        assert all(each["fits"] for each in stages.values()) is (code == 0)


PROBE = """
import sys
from zhongjing.cli.app import app
from zhongjing.cli.errors import run
code = run(app, sys.argv[1:], "zhongjing")
loaded = {"torch", "transformers", "ray"} & set(sys.modules)
sys.exit(str(loaded) if loaded else code)
"""


def test_the_command_needs_no_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *RECIPE, "4xA100-80G"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
