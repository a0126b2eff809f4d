"""The recipe zhongjing-13b on the shapes of its own base, without weights: what needs no GPU memory passes.

Shapes: LLaMA-13B as transformers converts it (config.json of its release) with Ziya-LLaMA-13B-v1's
vocabulary, 39,424 rows, and its 2,048 positions.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zhongjing.config.resolve import recipe, resolve
from zhongjing.config.stages import PpoSettings, RmSettings, SftSettings, Stage
from zhongjing.errors import DataError
from zhongjing.model.adapters import target_modules
from zhongjing.model.attention import check_attention
from zhongjing.model.base import check_max_length, load_config, set_positions, skeleton
from zhongjing.planning.hardware import parse_gpus
from zhongjing.planning.shape import of_config
from zhongjing.planning.stage_plan import Terms, plan_pipeline
from zhongjing.train.parameters import adamw_groups

DOCUMENT = resolve(recipe("zhongjing-13b"))
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": 5120,
    "initializer_range": 0.02,
    "intermediate_size": 13824,
    "max_position_embeddings": 2048,
    "model_type": "llama",
    "num_attention_heads": 40,
    "num_hidden_layers": 40,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
    "use_cache": True,
    "vocab_size": 39424,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_its_positions_are_too_few_until_the_recipe_raises_them(folder: Path) -> None:
    base = DOCUMENT.spec.base
    stages = [DOCUMENT.spec.stages.get(stage) for stage in DOCUMENT.spec.stages.present()]
    lengths = [settings.max_length for settings in stages if settings is not None]
    assert max(lengths) == 4096  # the paper, section 4
    with pytest.raises(DataError, match=r"longer than the model's 2048 positions") as refused:
        check_max_length(load_config(folder), 4096)
    assert "base.maxPositions: 4096" in str(refused.value.remedy)
    set_positions(folder, base.max_positions, base.rope_scaling)
    for length in lengths:
        check_max_length(load_config(folder), length)


def test_its_modules_take_adapters_attention_and_several_optimizer_groups(folder: Path) -> None:
    model = skeleton(folder)
    assert all(parameter.device.type == "meta" for parameter in model.parameters())
    check_attention(model)
    for stage in (Stage.SFT, Stage.RM, Stage.PPO):
        settings = DOCUMENT.spec.stages.get(stage)
        assert isinstance(settings, SftSettings | RmSettings | PpoSettings)
        assert len(target_modules(model, settings.lora)) == 7
    groups = adamw_groups(model, 0.0)
    sizes = [sum(parameter.numel() for parameter in group["params"]) for group in groups]
    assert sum(sizes) == pytest.approx(13.09e9, rel=1e-3)
    assert max(sizes) < sum(sizes) / 6  # ZeRO-2 casts one group at a time


def test_the_plan_of_its_config_fits_four_a100(folder: Path) -> None:
    shape = of_config(json.loads((folder / "config.json").read_text()))
    assert shape is not None
    estimates = plan_pipeline(DOCUMENT, lambda _: shape, Terms(gpus=parse_gpus("4xA100-80G")))
    assert [estimate.problems for estimate in estimates] == [()] * 4
    ppo = DOCUMENT.spec.stages.ppo
    assert isinstance(ppo, PpoSettings)
    assert ppo.max_prompt_length + ppo.max_new_tokens == ppo.max_length
