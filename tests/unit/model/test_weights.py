"""Weights are written a tensor at a time, as safetensors' own library reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from zhongjing.errors import DataError
from zhongjing.model.weights import WeightReader, WeightWriter

FORMATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
FORMATS += [torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool]


def test_every_format_and_shape_comes_back(tmp_path: Path) -> None:
    tensors = {f"{dtype}": torch.arange(-3, 4).to(dtype) for dtype in FORMATS}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.empty(0, 3), "turned": torch.randn(3, 5).T}
    writer = WeightWriter(tmp_path)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    found: dict[str, torch.Tensor] = {}
    for file in tmp_path.glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_a_tensor_is_in_its_file_when_it_is_added(tmp_path: Path) -> None:
    writer = WeightWriter(tmp_path)
    for number in range(1, 4):
        tensor = torch.full((1000,), float(number))
        writer.add(str(number), tensor)
        (file,) = tmp_path.iterdir()
        content = file.read_bytes()
        assert content.endswith(tensor.numpy().tobytes())
        assert len(content) == (64 << 10) + number * tensor.nbytes
    writer.finish()
    with WeightReader(tmp_path) as reader:
        assert [float(reader.get(name)[0]) for name in ("1", "2", "3")] == [1.0, 2.0, 3.0]


def test_a_shard_ends_at_its_size_and_where_its_header_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = WeightWriter(tmp_path / "sizes")
    monkeypatch.setattr("zhongjing.model.weights.SHARD_BYTES", 1000)
    for name, numbers in (("a", 100), ("b", 150), ("c", 1), ("d", 500), ("e", 1)):
        writer.add(name, torch.ones(numbers))
    writer.finish()
    monkeypatch.undo()
    index = json.loads((tmp_path / "sizes" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * 752
    assert [name.split("-")[1] for name in index["weight_map"].values()] == [
        f"0000{n}" for n in (1, 1, 2, 3, 4)
    ]
    writer = WeightWriter(tmp_path / "names")
    names = [f"{number:03d}." + "x" * 1000 for number in range(100)]
    for name in names:
        writer.add(name, torch.ones(1))
    writer.finish()
    assert len(list((tmp_path / "names").glob("*.safetensors"))) == 2
    with WeightReader(tmp_path / "names") as reader:
        assert sorted(reader) == names
        assert all(float(reader.get(name)) == 1.0 for name in names)


def test_what_safetensors_has_no_name_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tensor x is torch\.complex64"):
        WeightWriter(tmp_path).add("x", torch.zeros(1, dtype=torch.complex64))
