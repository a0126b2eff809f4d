"""Holds a published delta against its root by names and shapes of their tensors, without torch.

Hours of merging tell in a job what the headers of the weight files tell here. A safetensors file begins with
eight bytes of length and a header of JSON (safetensors, "Format"). A ``.bin`` file of torch 1.6 or later is a
zip archive whose ``data.pkl`` rebuilds tensors from storages (torch, ``torch/serialization.py``); it is
unpickled with nothing but that in reach.
"""

from __future__ import annotations

import json
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from zhongjing.codes import model as codes
from zhongjing.config.sources import DeltaRule
from zhongjing.errors import DataError

Shapes = dict[str, tuple[int, ...]]

_LONGEST_HEADER = 100_000_000  # bytes; the limit of safetensors
_KINDS = ("model.safetensors", "pytorch_model.bin")
_VOCABULARY_TENSORS = ("embed_tokens.weight", "lm_head.weight")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")
_NOT_READ = "rotary_emb.inv_freq"  # buffers that old checkpoints carry


def check_delta(delta: Path, root: Path, rule: DeltaRule) -> None:
    """Holds a delta against its root.

    Args:
        delta: the published difference, with config and tokenizer.
        root: the model that it is to be added to.
        rule: by which it was published.

    Raises:
        DataError: the delta has no tokenizer, a file is damaged, a tensor is missing on one side, or has a
            shape by which the two cannot be added.
    """
    if not any((delta / name).is_file() for name in _TOKENIZERS):
        raise DataError(
            "the delta has no tokenizer: that of the merged model is the delta's own",
            code=codes.UNUSABLE_TOKENIZER,
            where=str(delta),
            remedy=f"fetch all files of the delta, one of {', '.join(_TOKENIZERS)} among them",
        )
    ours, theirs = shapes_of(delta), shapes_of(root)
    if ours is None or theirs is None:
        return
    for missing, folder in ((ours.keys() - theirs.keys(), root), (theirs.keys() - ours.keys(), delta)):
        if missing:
            raise DataError(
                f"tensor {min(missing)} is not in this model ({len(missing)} missing)",
                code=codes.DELTA_MISMATCH,
                where=str(folder),
            )
    for name in ours:
        # Vocabularies grow: Ziya's rows stand whole, and Vicuna's that its root does not have.
        whole = name.endswith(_VOCABULARY_TENSORS)
        grown = whole and ours[name][1:] == theirs[name][1:] and ours[name][0] > theirs[name][0]
        if ours[name] != theirs[name] and not (grown or (whole and rule == "fengshen")):
            raise DataError(
                f"tensor {name} is {theirs[name]} in the root, {ours[name]} in the delta",
                code=codes.DELTA_MISMATCH,
                where=str(root),
            )


def shapes_of(folder: Path) -> Shapes | None:
    """Shapes of a model's tensors by name; None where a file is of an older form, which the job reads.

    Raises:
        DataError: there are no weights, a file that the index names is missing, or a file is damaged.
    """
    found: Shapes = {}
    for file in _files(folder):
        shapes = _of_safetensors(file) if file.suffix == ".safetensors" else _of_bin(file)
        if shapes is None:
            return None
        found |= {name: shape for name, shape in shapes.items() if not name.endswith(_NOT_READ)}
    return found


def _files(folder: Path) -> list[Path]:
    """In the order in which a job looks for them."""
    for kind in _KINDS:
        index = folder / f"{kind}.index.json"
        if not index.is_file():
            continue
        try:
            names = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            raise _unusable("the index of the weights cannot be read", index) from None
        missing = sorted(name for name in names if not (folder / name).is_file())
        if missing:
            raise _unusable(f"the index names {missing[0]}, which is missing", folder)
        return [folder / name for name in sorted(names)]
    for kind in _KINDS:
        if (folder / kind).is_file():
            return [folder / kind]
    raise _unusable("the folder has no weights", folder)


def _of_safetensors(file: Path) -> Shapes:
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
                raise ValueError("no header")
            header = json.loads(stream.read(length))
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        if max((int(entry["data_offsets"][1]) for entry in tensors.values()), default=0) != size - 8 - length:
            raise ValueError("cut off")
        return {name: tuple(int(each) for each in entry["shape"]) for name, entry in tensors.items()}
    except OSError as error:
        raise _unreadable(file, error.strerror) from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise _unreadable(file) from None


def _of_bin(file: Path) -> Shapes | None:
    try:
        with file.open("rb") as stream:
            if stream.read(2) != b"PK":
                return None
        with zipfile.ZipFile(file) as archive:
            (name,) = (each for each in archive.namelist() if each.endswith("/data.pkl"))
            with archive.open(name) as stream:
                content = _Outline(stream).load()
    except OSError as error:
        raise _unreadable(file, error.strerror) from None
    except zipfile.BadZipFile:
        raise _unreadable(file) from None
    except Exception:
        return None  # of another form; a pickle may raise anything
    return dict(_tensors(content))


def _tensors(content: Any) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, shape in content.items() if isinstance(content, dict) else ():
        if isinstance(name, str) and isinstance(shape, tuple):
            yield name, shape


class _Outline(pickle.Unpickler):
    """Rebuilds tensors as their shapes. No other class or function can be reached from a pickle."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda storage, offset, size, *rest: tuple(int(each) for each in size)
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda shape, *rest: shape
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and name.endswith("Storage"):
            return object
        raise pickle.UnpicklingError(f"{module}.{name}")

    def persistent_load(self, identity: Any) -> None:
        """Storages are not read."""


def _unusable(message: str, place: Path) -> DataError:
    return DataError(message, code=codes.UNUSABLE_MODEL, where=str(place))


def _unreadable(file: Path, why: str | None = None) -> DataError:
    return _unusable(f"the weights cannot be read: {why or 'the file is cut off or damaged'}", file)
