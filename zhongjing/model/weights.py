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

from zhongjing.codes import model as codes
from zhongjing.errors import DataError

SHARD_BYTES = 4 << 30
"""A file is ended before it would grow larger; a larger tensor has one to itself."""
_METADATA = {"format": "pt"}
# Room for the names of about 500 tensors.
_HEADER_BYTES = 64 << 10
_FORMATS = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


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

    A tensor is in its file when :meth:`add` returns: none is held. Room for the header, which names what
    follows it, is left at the beginning of each file (Format, in safetensors' README: "The header may be
    trailing padded with whitespace").

    Args:
        folder: where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, Any] = {}
        self._header_bytes = len(_header({}))
        self._bytes = 0
        self._total_bytes = 0
        self._shards: list[list[str]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Adds a tensor, of a CPU.

        Raises:
            DataError: safetensors has no name for its number format.
            OSError: the disk is full.
        """
        if tensor.dtype not in _FORMATS:
            raise DataError(
                f"tensor {name} is {tensor.dtype}, which safetensors cannot store", code=codes.UNUSABLE_MODEL
            )
        entry = {
            "dtype": _FORMATS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._bytes, self._bytes + tensor.nbytes],
        }
        fits = (
            self._bytes + tensor.nbytes <= SHARD_BYTES
            # Readers view the bytes as numbers: these begin at multiples of their size.
            and self._bytes % tensor.element_size() == 0
            and self._header_bytes + _named(name, entry) <= _HEADER_BYTES
        )
        if self._entries and not fits:
            self._close()
            entry["data_offsets"] = [0, tensor.nbytes]
        with self._temporary(len(self._shards)).open("ab") as file:
            if not self._entries:
                file.truncate(0)
                file.write(bytes(_HEADER_BYTES))
            file.write(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        self._entries[name] = entry
        self._header_bytes += _named(name, entry)
        self._bytes += tensor.nbytes
        self._total_bytes += tensor.nbytes

    def finish(self) -> None:
        """Ends the last file, gives the shards their final names and writes the index."""
        if self._entries:
            self._close()
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

    def _close(self) -> None:
        with self._temporary(len(self._shards)).open("r+b") as file:
            file.write(_header(self._entries).ljust(_HEADER_BYTES))
        self._shards.append(list(self._entries))
        self._entries, self._header_bytes, self._bytes = {}, len(_header({})), 0


def _named(name: str, entry: dict[str, Any]) -> int:
    """Bytes that a tensor takes of a header."""
    return len(json.dumps({name: entry}))


def _header(entries: dict[str, Any]) -> bytes:
    """Length and JSON, as a file begins; the length is that of a header which fills its room."""
    text = json.dumps({"__metadata__": _METADATA, **entries}, separators=(",", ":"))
    return (_HEADER_BYTES - 8).to_bytes(8, "little") + text.encode()


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
