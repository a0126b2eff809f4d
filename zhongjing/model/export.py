"""Model folders that transformers and PEFT load with no code of ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from zhongjing.codes import model as codes
from zhongjing.errors import DataError
from zhongjing.model.adapters import ADAPTER_CONFIG, AdapterFile, check_adapter, read_adapter
from zhongjing.model.base import skeleton, write_generation_config
from zhongjing.model.config_file import write_config
from zhongjing.model.tokenizer import TOKENIZER_FILES, load_tokenizer, padding_id
from zhongjing.model.weights import WeightReader, WeightWriter


def copy_tokenizer(source: Path, folder: Path) -> None:
    """Copies the tokenizer and the chat template of a model folder.

    Raises:
        DataError: the source has no tokenizer.
    """
    names = [name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not names:
        raise DataError("the folder has no tokenizer", code=codes.UNUSABLE_TOKENIZER, where=str(source))
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copyfile(source / name, folder / name)


def write_full_model(
    model: PreTrainedModel,
    folder: Path,
    tokenizer_from: Path,
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes full weights, config, tokenizer, chat template and generation_config.

    Args:
        model: the trained model (not wrapped by PEFT or DeepSpeed).
        folder: where it goes.
        tokenizer_from: folder whose tokenizer belongs to it: the base's.
        dtype: number format to store; none: the model's.
    """
    copy_tokenizer(tokenizer_from, folder)
    writer = WeightWriter(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or {})
    stored = dtype or model.dtype
    for name, tensor in model.state_dict().items():
        if name not in tied:
            writer.add(
                name, tensor.detach().to("cpu", stored if tensor.is_floating_point() else tensor.dtype)
            )
    writer.finish()
    config = json.loads(model.config.to_json_string(use_diff=True))
    _write_config(folder, config, type(model).__name__, stored, padding_id(load_tokenizer(folder)))
    # What the base's publisher says about decoding, beside ends and padding.
    settings: dict[str, Any] = cast("Any", model).generation_config.to_diff_dict()
    settings.pop("transformers_version", None)
    (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
    write_generation_config(folder)


def finish_adapter_folder(folder: Path, tokenizer_from: Path) -> None:
    """Adds tokenizer, chat template and generation_config to an adapter folder: servers look there."""
    copy_tokenizer(tokenizer_from, folder)
    write_generation_config(folder)


def localise(adapter_folder: Path, base_folder: Path) -> None:
    """Makes an adapter refer to a local copy of its base, as ``pull`` needs.

    transformers and PEFT read the base's settings, so these get what the adapter learned with: the padding
    token, without which a sequence classifier refuses batches, and the token that ends a turn, without which
    generation would not end.

    Raises:
        DataError: the adapter does not fit that base.
    """
    adapter = read_adapter(adapter_folder)
    check_adapter(adapter, skeleton(base_folder, head=adapter.head is not None))
    path = adapter_folder / ADAPTER_CONFIG
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = str(base_folder.resolve())
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    base_config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    tokenizer_folder = _tokenizer_folder(adapter_folder, base_folder)
    base_config["pad_token_id"] = padding_id(load_tokenizer(tokenizer_folder))
    write_config(base_folder, base_config)
    if adapter.head is None:
        write_generation_config(base_folder, tokenizer_folder)


def merge_adapter(base_folder: Path, adapter_folder: Path, out_folder: Path) -> None:
    """Writes one standalone model: base plus adapter, in the base's number format.

    A causal adapter gives a causal model; a reward model gives a sequence classifier of one label. The sum is
    taken in fp32, tensor by tensor on files, so memory is bounded by the largest tensor.

    Args:
        base_folder: full model in Hugging Face format.
        adapter_folder: PEFT adapter of that base.
        out_folder: where the model goes, generation_config and the adapter's tokenizer included.

    Raises:
        DataError: the adapter does not fit that base.
    """
    adapter = read_adapter(adapter_folder)
    reward = adapter.head is not None
    shapes = skeleton(base_folder, head=reward)
    check_adapter(adapter, shapes)
    changed = set(adapter.modules)
    copy_tokenizer(_tokenizer_folder(adapter_folder, base_folder), out_folder)
    writer = WeightWriter(out_folder)
    stored = torch.float32
    with WeightReader(base_folder) as base:
        for name in base:
            tensor = base.get(name)
            stored = tensor.dtype if tensor.is_floating_point() else stored
            module = name.removesuffix(".weight")
            if reward and module in ("lm_head", "score"):
                continue
            if module in changed:
                tensor = _merged(tensor, adapter, module)
                changed.remove(module)
            writer.add(name, tensor)
    if changed:
        raise DataError(
            f"the base has no weights for {min(changed)}", code=codes.ADAPTER_MISMATCH, where=str(base_folder)
        )
    if adapter.head is not None:
        writer.add("score.weight", adapter.head.to(stored))
    writer.finish()
    config = json.loads((base_folder / "config.json").read_text(encoding="utf-8"))
    if reward:
        config.update(id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0})
    _write_config(out_folder, config, type(shapes).__name__, stored, padding_id(load_tokenizer(out_folder)))
    if not reward:
        if (base_folder / "generation_config.json").is_file():
            shutil.copyfile(base_folder / "generation_config.json", out_folder / "generation_config.json")
        write_generation_config(out_folder)


def _tokenizer_folder(adapter_folder: Path, base_folder: Path) -> Path:
    """Where the tokenizer in use is: the adapter's, which has the chat template that it learned with."""
    own = any((adapter_folder / name).is_file() for name in TOKENIZER_FILES)
    return adapter_folder if own else base_folder


def _merged(weight: torch.Tensor, adapter: AdapterFile, module: str) -> torch.Tensor:
    a, b = adapter.pair(module)
    update = b.to(torch.float32) @ a.to(torch.float32) * adapter.scaling
    return (weight.to(torch.float32) + update).to(weight.dtype)


def _write_config(
    folder: Path, config: dict[str, Any], architecture: str, dtype: torch.dtype, padding: int
) -> None:
    config.pop("torch_dtype", None)
    config.pop("_name_or_path", None)
    config.update(architectures=[architecture], dtype=str(dtype).removeprefix("torch."), use_cache=True)
    config["pad_token_id"] = padding
    write_config(folder, config)
