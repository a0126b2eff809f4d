from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from zhongjing.errors import DataError
from zhongjing.model.attention import PACKED
from zhongjing.model.base import check_max_length, load_base, merge_delta
from zhongjing.model.weights import WeightReader, WeightWriter

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


@pytest.fixture
def root_and_merged(base_folder: Callable[[str], Path], tmp_path: Path) -> tuple[Path, Path]:
    """A root with 30 embedding rows fewer, in fp16, and the model that a delta should give."""
    merged = _copy(base_folder("llama"), tmp_path / "merged")
    root = _copy(base_folder("llama"), tmp_path / "root")
    path = root / "model.safetensors"
    generator = torch.Generator().manual_seed(1)
    tensors = {
        name: (tensor + 0.01 * torch.randn(tensor.shape, generator=generator)).half()
        for name, tensor in load_file(path).items()
    }
    save_file(tensors, path, metadata={"format": "pt"})
    _resize(root, 450)
    return root, merged


def _write_delta(root: Path, merged: Path, folder: Path, *, form: str) -> Path:
    _copy(merged, folder)
    target, origin = load_file(folder / "model.safetensors"), load_file(root / "model.safetensors")
    delta = {}
    for name, tensor in target.items():
        extended = torch.zeros_like(tensor)
        extended[: origin[name].shape[0]] = origin[name].float()
        delta[name] = tensor - extended
    (folder / "model.safetensors").unlink()
    if form == "bin":
        delta["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        names = sorted(delta)
        parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
        for part, chosen in parts.items():
            torch.save({name: delta[name] for name in chosen}, folder / part)
        weight_map = {name: part for part, chosen in parts.items() for name in chosen}
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    else:
        writer = WeightWriter(folder, max_shard_bytes=20_000)
        for name, tensor in delta.items():
            writer.add(name, tensor)
        writer.finish()
        assert (folder / "model.safetensors.index.json").is_file()
    return folder


@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_a_delta_and_its_root_give_the_model(
    form: str, root_and_merged: tuple[Path, Path], tmp_path: Path
) -> None:
    root, merged = root_and_merged
    delta = _write_delta(root, merged, tmp_path / "delta", form=form)
    out = tmp_path / "out"
    merge_delta(delta, root, out, max_shard_bytes=30_000)
    assert len(list(out.glob("*.safetensors"))) > 3
    assert not list(out.glob("*.partial"))
    with WeightReader(out) as ours, WeightReader(merged) as wanted:
        assert sorted(ours) == sorted(wanted)
        for name in wanted:
            torch.testing.assert_close(ours.get(name), wanted.get(name), rtol=0, atol=1e-7)
    model, report = CAUSAL.from_pretrained(str(out), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.vocab_size == 480
    assert len(AutoTokenizer.from_pretrained(str(out))) < 480
    assert GenerationConfig.from_pretrained(str(out)).eos_token_id == [0, 2]


def test_the_sum_is_rounded_once_to_the_deltas_format(
    root_and_merged: tuple[Path, Path], tmp_path: Path
) -> None:
    root, merged = root_and_merged
    delta = _write_delta(root, merged, tmp_path / "delta", form="safetensors")
    half = _copy(delta, tmp_path / "half")
    for path in half.glob("model-*.safetensors"):
        save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    merge_delta(half, root, tmp_path / "out")
    name = "model.layers.1.mlp.up_proj.weight"
    with WeightReader(tmp_path / "out") as out, WeightReader(half) as d, WeightReader(root) as r:
        assert out.get(name).dtype == torch.float16
        assert torch.equal(out.get(name), (d.get(name).float() + r.get(name).float()).half())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_another_root_is_refused_by_the_tensors_name(
    root_and_merged: tuple[Path, Path], tmp_path: Path
) -> None:
    root, merged = root_and_merged
    delta = _write_delta(root, merged, tmp_path / "delta", form="safetensors")
    tensors = load_file(root / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    save_file({**tensors, name: tensors[name][:-1].clone()}, root / "model.safetensors")
    with pytest.raises(DataError, match=name):
        merge_delta(delta, root, tmp_path / "shape")
    del tensors[name]
    save_file(tensors, root / "model.safetensors")
    with pytest.raises(DataError, match=name):
        merge_delta(delta, root, tmp_path / "missing")


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
