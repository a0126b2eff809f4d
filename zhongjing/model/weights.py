"""Weights on disk: read tensor by tensor, written shard by shard, never a whole model in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from zhongjing.codes import model as codes
from zhongjing.errors import DataError

_METADATA = {"format": "pt"}


class WeightReader:
    """Tensors of a model folder by name, from safetensors or from PyTorch's ``.bin`` files.

    Safetensors are read lazily; ``.bin`` files are memory-mapped, with pickled code refused. At most one file
    is open at a time.

    Raises:
        DataError: the folder has no weights, or a file is damaged or missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = _weight_files(folder)
        self._open_name: str | None = None
        self._open: Any = None
        self._of_tensor: dict[str, str] = {}
        for name in self._files:
            for tensor in self._names(name):
                self._of_tensor[tensor] = name

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, tensor: str) -> bool:
        return tensor in self._of_tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._of_tensor)

    def close(self) -> None:
        """Closes the open file."""
        self._open, self._open_name = None, None

    def get(self, tensor: str) -> torch.Tensor:
        """The tensor called ``tensor``, on CPU.

        Raises:
            DataError: there is no such tensor.
        """
        if tensor not in self._of_tensor:
            raise DataError(f"there is no tensor {tensor}", code=codes.UNUSABLE_MODEL, where=str(self.folder))
        handle = self._file(self._of_tensor[tensor])
        value: torch.Tensor = handle[tensor] if isinstance(handle, dict) else handle.get_tensor(tensor)
        return value

    def shape(self, tensor: str) -> tuple[int, ...]:
        """Shape of a tensor, without reading it where the format allows."""
        handle = self._file(self._of_tensor[tensor])
        if isinstance(handle, dict):
            return tuple(handle[tensor].shape)
        return tuple(handle.get_slice(tensor).get_shape())

    def _names(self, name: str) -> list[str]:
        return list(self._file(name).keys())

    def _file(self, name: str) -> Any:
        if self._open_name == name:
            return self._open
        self.close()
        path = self.folder / name
        try:
            if name.endswith(".safetensors"):
                self._open = safe_open(str(path), framework="pt")
            else:
                self._open = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (OSError, SafetensorError, RuntimeError, UnpicklingError) as error:
            raise DataError(
                f"the weights cannot be read: {error}", code=codes.UNUSABLE_MODEL, where=str(path)
            ) from error
        self._open_name = name
        return self._open


class WeightWriter:
    """Writes tensors as safetensors, in shards of bounded size, with the index that transformers expects.

    Args:
        folder: where the files go.
        max_shard_bytes: a shard is written before it would grow larger; the memory that is held.
    """

    def __init__(self, folder: Path, *, max_shard_bytes: int = 4 * 2**30) -> None:
        self._folder = folder
        self._limit = max_shard_bytes
        self._pending: dict[str, torch.Tensor] = {}
        self._pending_bytes = 0
        self._total_bytes = 0
        self._shards: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Adds a tensor; may write a shard."""
        size = tensor.numel() * tensor.element_size()
        if self._pending and self._pending_bytes + size > self._limit:
            self._flush()
        self._pending[name] = tensor.contiguous()
        self._pending_bytes += size
        self._total_bytes += size

    def finish(self) -> None:
        """Writes what is left, gives the shards their final names and writes the index."""
        if self._pending:
            self._flush()
        count = len(self._shards)
        if count == 1:
            self._temporary(0).rename(self._folder / "model.safetensors")
            return
        weight_map: dict[str, str] = {}
        for number, names in enumerate(self._shards):
            final = f"model-{number + 1:05d}-of-{count:05d}.safetensors"
            self._temporary(number).rename(self._folder / final)
            weight_map.update(dict.fromkeys(names, final))
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        path = self._folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _temporary(self, number: int) -> Path:
        return self._folder / f"model-{number + 1:05d}.partial"

    def _flush(self) -> None:
        save_file(self._pending, self._temporary(len(self._shards)), metadata=_METADATA)
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0


def _weight_files(folder: Path) -> list[str]:
    for index_name in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        index = folder / index_name
        if index.is_file():
            try:
                names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"the index of the weights cannot be read ({type(error).__name__})",
                    code=codes.UNUSABLE_MODEL,
                    where=str(index),
                ) from error
            for name in names:
                if not (folder / name).is_file():
                    raise DataError(
                        f"the index names {name}, which is missing",
                        code=codes.UNUSABLE_MODEL,
                        where=str(folder),
                    )
            return names
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).is_file():
            return [name]
    raise DataError(
        "the folder has no weights",
        code=codes.UNUSABLE_MODEL,
        where=str(folder),
        remedy="give a folder in Hugging Face format: model.safetensors or pytorch_model.bin, or an index",
    )
