from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.memory_support import mapped_file
from tests.older_readers import read_as_before
from zhongjing.config.sources import RopeScaling
from zhongjing.errors import DataError
from zhongjing.model.attention import PACKED
from zhongjing.model.base import check_max_length, load_base, set_positions
from zhongjing.model.reward import load_classifier
from zhongjing.model.weights import WeightReader

CAUSAL: Any = AutoModelForCausalLM  # typed as if output_loading_info did not exist
FAMILIES = ("llama", "qwen2", "qwen3")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_seed_gives_the_same_bytes(
    family: str, base_folder: Callable[[str], Path], new_base: Callable[..., None], tmp_path: Path
) -> None:
    new_base(tmp_path / "again", family)
    new_base(tmp_path / "other", family, seed=8)
    names = sorted(path.name for path in base_folder(family).iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (base_folder(family) / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    ours = (base_folder(family) / "model.safetensors").read_bytes()
    assert ours != (tmp_path / "other" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_loads_a_tiny_base_by_itself(family: str, base_folder: Callable[[str], Path]) -> None:
    folder = base_folder(family)
    model, report = CAUSAL.from_pretrained(str(folder), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.model_type == family
    assert model.dtype == torch.float32
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    generation = GenerationConfig.from_pretrained(str(folder))
    assert generation.eos_token_id == [0, 2]
    assert generation.pad_token_id == 0
    ids = tokenizer("感冒", return_tensors="pt")
    answer = model.generate(**ids, max_new_tokens=4, do_sample=False)
    assert answer.shape[1] <= ids["input_ids"].shape[1] + 4


def test_the_global_random_state_is_left_alone(new_base: Callable[..., None], tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    new_base(tmp_path, "llama")
    assert torch.equal(before, torch.get_rng_state())


def test_loaded_for_training(base_folder: Callable[[str], Path]) -> None:
    model = load_base(base_folder("llama"), dtype=torch.bfloat16, attention_dropout=0.25)
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == PACKED
    assert model.config.attention_dropout == 0.25
    assert model.model.layers[0].self_attn.attention_dropout == 0.25
    assert model.config.use_cache is False


def _copy(source: Path, target: Path) -> Path:
    target.mkdir()
    for path in source.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


def _resize(folder: Path, rows: int) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = tensors[name][:rows].clone()
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] = rows
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("head", [False, True])
def test_weights_stay_in_their_mapped_file(head: bool, base_folder: Callable[[str], Path]) -> None:
    """One node's ranks share the pages; a tensor that was copied would be in none."""
    folder = base_folder("llama")
    load = load_classifier if head else load_base
    model = load(folder, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        mapped = mapped_file(parameter.data_ptr())
        assert (mapped is None) == (name == "score.weight"), name
        assert mapped is None or mapped == (str(folder / "model.safetensors"), 0), name


def test_each_tensor_is_copied_once_where_the_number_format_changes(
    base_folder: Callable[[str], Path],
) -> None:
    model = load_base(base_folder("llama"), dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert parameter.untyped_storage().nbytes() == 2 * parameter.numel(), name
        assert mapped_file(parameter.data_ptr()) is None, name


@pytest.mark.parametrize("family", FAMILIES)
def test_the_row_of_the_padding_token_is_trained(family: str, base_folder: Callable[[str], Path]) -> None:
    """In Qwen2.5-Base ``<|endoftext|>`` ends texts and is the padding (its tokenizer_config.json)."""
    folder = base_folder(family)
    padding = int(json.loads((folder / "config.json").read_text())["pad_token_id"])
    for model in (load_base(folder, dtype=torch.float32), load_classifier(folder, dtype=torch.float32)):
        embedding: Any = model.get_input_embeddings()
        embedding(torch.tensor([padding])).sum().backward()
        assert embedding.weight.grad is not None
        assert embedding.weight.grad[padding].eq(1).all()


def test_more_rows_than_tokens_are_fine_fewer_are_not(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = _copy(base_folder("llama"), tmp_path / "base")
    length = len(AutoTokenizer.from_pretrained(str(folder)))
    assert length < 480
    load_base(folder, dtype=torch.float32)
    _resize(folder, length)
    load_base(folder, dtype=torch.float32)
    _resize(folder, length - 1)
    with pytest.raises(DataError, match=f"ids up to {length - 1}, the embedding has only {length - 1} rows"):
        load_base(folder, dtype=torch.float32)


def test_what_is_no_model_is_named(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no config\.json"):
        load_base(tmp_path, dtype=torch.float32)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="adapter, not a full model"):
        load_base(tmp_path, dtype=torch.float32)


def test_a_sequence_longer_than_the_positions_is_refused(base_folder: Callable[[str], Path]) -> None:
    config = AutoConfig.from_pretrained(str(base_folder("llama")))
    check_max_length(config, 128)
    with pytest.raises(DataError, match="maxLength 129 is longer than the model's 128"):
        check_max_length(config, 129)


def test_positions_are_written_as_transformers_reads_them(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """``rope_parameters`` (transformers 5) and ``rope_scaling`` beside ``rope_theta`` (before)."""
    new = _copy(base_folder("llama"), tmp_path / "new")
    old = _copy(base_folder("llama"), tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"] * 2
    (old / "config.json").write_text(json.dumps(config))
    scaling = RopeScaling.model_validate({"ropeType": "linear", "factor": 2.0})
    for folder, theta in ((new, 1.0), (old, 2.0)):
        before = AutoConfig.from_pretrained(str(folder)).rope_parameters["rope_theta"]
        set_positions(folder, 256, scaling)
        found = AutoConfig.from_pretrained(str(folder))
        assert found.max_position_embeddings == 256
        assert found.rope_parameters["rope_type"] == "linear"
        assert found.rope_parameters["factor"] == 2.0
        assert found.rope_parameters["rope_theta"] == before == theta * 10000.0
        assert read_as_before(folder) == (before, {"rope_type": "linear", "type": "linear", "factor": 2.0})
        # A second change finds both forms there.
        other = {"ropeType": "yarn", "factor": 4.0, "originalMaxPositionEmbeddings": 128}
        set_positions(folder, 512, RopeScaling.model_validate(other))
        again = AutoConfig.from_pretrained(str(folder))
        assert (again.rope_parameters["rope_type"], again.rope_parameters["factor"]) == ("yarn", 4.0)
        assert again.rope_parameters["rope_theta"] == before
        set_positions(folder, 256, scaling)
    # Twice as long sequences at half the angle: position 2 n is where n was.
    plain, scaled = load_base(base_folder("llama"), dtype=torch.float32), load_base(new, dtype=torch.float32)
    places = torch.arange(8)[None]
    hidden = torch.zeros(1, 8, 32)
    angles: Any = plain.model.rotary_emb(hidden, places)
    stretched: Any = scaled.model.rotary_emb(hidden, 2 * places)
    torch.testing.assert_close(stretched, angles)


def test_more_positions_leave_a_yarn_base_as_it_is(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """Without ``original_max_position_embeddings`` transformers takes the positions, which were raised."""
    folder = _copy(base_folder("llama"), tmp_path / "yarn")
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"] |= {"rope_type": "yarn", "factor": 4.0}
    (folder / "config.json").write_text(json.dumps(config))
    before = load_base(folder, dtype=torch.float32).config
    set_positions(folder, 4 * config["max_position_embeddings"], None)
    after = load_base(folder, dtype=torch.float32).config
    assert after.max_position_embeddings == 4 * before.max_position_embeddings
    assert {**after.rope_parameters, "type": "yarn"} == {**before.rope_parameters, "type": "yarn"}
    theta, scaling = read_as_before(folder)
    assert theta == config["rope_parameters"]["rope_theta"]
    assert scaling is not None
    assert scaling["original_max_position_embeddings"] == config["max_position_embeddings"]


def test_more_positions_do_not_silently_end_a_dynamic_scaling(
    base_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """internlm/internlm2-chat-7b's config: ``rope_scaling: {type: dynamic, factor: 2.0}``.

    transformers' dynamic scaling sets in above ``max_position_embeddings``, wherever that is.
    """
    folder = _copy(base_folder("llama"), tmp_path / "dynamic")
    config = json.loads((folder / "config.json").read_text())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataError, match="scales its positions dynamically beyond 128") as caught:
        set_positions(folder, 256, None)
    assert "base.ropeScaling" in (caught.value.remedy or "")
    set_positions(folder, 256, RopeScaling.model_validate({"ropeType": "linear", "factor": 2.0}))
    assert AutoConfig.from_pretrained(str(folder)).rope_parameters["rope_type"] == "linear"


def test_pickled_code_in_weights_is_refused(base_folder: Callable[[str], Path], tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "harm",))

    folder = tmp_path / "base"
    folder.mkdir()
    torch.save({"weight": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be read"):
        WeightReader(folder)
    assert not (tmp_path / "harm").exists()
