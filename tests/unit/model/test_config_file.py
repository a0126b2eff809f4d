"""config.json is understood by readers of transformers 5's names and of those before it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.older_readers import read_as_before
from zhongjing.model.config_file import write_config

DEFAULT: dict[str, Any] = {"rope_type": "default", "rope_theta": 5e5}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@pytest.mark.parametrize("rope", [DEFAULT, LLAMA3], ids=["default", "llama3"])
def test_both_forms_say_the_same(
    rope: dict[str, Any], base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = json.loads((base_folder("llama") / "config.json").read_text())
    config = {**config, "rope_parameters": rope, "rope_scaling": None, "dtype": "bfloat16"}
    write_config(tmp_path, dict(config))
    theta, scaling = read_as_before(tmp_path)
    assert theta == 5e5
    expected = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert scaling == (None if rope is DEFAULT else {**expected, "type": "llama3"})
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["dtype"] == written["torch_dtype"] == "bfloat16"
    # Each form alone is to transformers 5 what both are.
    read = AutoConfig.from_pretrained(str(tmp_path))
    both = read.rope_parameters
    for gone in (("rope_parameters", "dtype"), ("rope_theta", "rope_scaling", "torch_dtype")):
        alone = tmp_path / gone[0]
        alone.mkdir()
        (alone / "config.json").write_text(json.dumps({k: v for k, v in written.items() if k not in gone}))
        found = AutoConfig.from_pretrained(str(alone))
        assert {**found.rope_parameters, "type": 0} == {**both, "type": 0}
        assert found.dtype == read.dtype == torch.bfloat16
    write_config(tmp_path, dict(written))
    assert json.loads((tmp_path / "config.json").read_text()) == written


def test_of_forms_that_disagree_counts_what_transformers_takes(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    config = json.loads((base_folder("llama") / "config.json").read_text())
    config |= {"rope_theta": 20000.0, "rope_scaling": {"type": "linear", "factor": 2.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    before = AutoConfig.from_pretrained(str(tmp_path)).rope_parameters
    write_config(tmp_path, config)
    after = AutoConfig.from_pretrained(str(tmp_path)).rope_parameters
    assert {**before, "type": 0} == {**after, "type": 0}
    assert read_as_before(tmp_path) == (20000.0, {"type": "linear", "rope_type": "linear", "factor": 2.0})


def test_parameters_by_layer_type_stay_as_they_are(tmp_path: Path) -> None:
    rope = {"full_attention": {"rope_type": "default", "rope_theta": 1e6}}
    write_config(tmp_path, {"model_type": "gemma3_text", "rope_parameters": rope})
    assert json.loads((tmp_path / "config.json").read_text()) == {
        "model_type": "gemma3_text",
        "rope_parameters": rope,
    }


def test_a_made_base_has_both_forms(base_folder: Callable[[str], Path]) -> None:
    folder = base_folder("qwen2")
    written = json.loads((folder / "config.json").read_text())
    assert read_as_before(folder) == (written["rope_parameters"]["rope_theta"], None)
    assert written["torch_dtype"] == written["dtype"] == "float32"
    assert AutoModelForCausalLM.from_pretrained(str(folder)).dtype == torch.float32
