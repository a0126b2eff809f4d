"""The full model that a pipeline starts from: made, merged from a published delta, or loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from zhongjing.codes import model as codes
from zhongjing.config.sources import TinyBase
from zhongjing.config.stages import Quantization
from zhongjing.data.own_code import check_own_code
from zhongjing.errors import DataError
from zhongjing.model.attention import PACKED, check_attention
from zhongjing.model.quantization import keep_storage, loading_arguments
from zhongjing.model.tokenizer import TOKENIZER_FILES, end_ids, load_tokenizer, padding_id, train_bpe
from zhongjing.model.weights import WeightReader, WeightWriter
from zhongjing.storage.heartbeat import beat

# Tensors whose first dimension is the vocabulary: the only ones that may differ in size between a delta and
# its root.
_VOCABULARY_TENSORS = ("embed_tokens.weight", "lm_head.weight")
# Deviation of a tiny base's fresh weights. transformers' 0.02 suits widths of thousands: at width 128 facts
# were learnt half as fast (docs/adr/0005-tiny-base.md).
_INITIALIZER_RANGE = 0.05
# Buffers that old checkpoints carry and no model reads any more.
_IGNORED_SUFFIXES = ("rotary_emb.inv_freq",)


def make_tiny_base(folder: Path, tiny: TinyBase, texts: Iterable[str], seed: int, chat_template: str) -> None:
    """Writes a small random model of ``tiny.family`` with a tokenizer trained on ``texts``.

    The same arguments give the same bytes. The embedding has ``tiny.vocabulary_size`` rows even where the
    corpus gave fewer tokens. Qwen families tie the embeddings, as their small members do.

    Raises:
        DataError: the vocabulary is too small (see :func:`zhongjing.model.tokenizer.train_bpe`).
    """
    train_bpe(texts, tiny.vocabulary_size, chat_template, folder, max_length=tiny.max_positions)
    tokenizer = load_tokenizer(folder)
    config = AutoConfig.for_model(
        tiny.family,
        vocab_size=tiny.vocabulary_size,
        hidden_size=tiny.hidden_size,
        intermediate_size=tiny.intermediate_size,
        num_hidden_layers=tiny.layers,
        num_attention_heads=tiny.heads,
        num_key_value_heads=tiny.kv_heads,
        head_dim=tiny.hidden_size // tiny.heads,
        max_position_embeddings=tiny.max_positions,
        tie_word_embeddings=tiny.family != "llama",
        initializer_range=_INITIALIZER_RANGE,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=padding_id(tokenizer),
        dtype=torch.float32,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    writer = WeightWriter(folder)
    tied = set(model.all_tied_weights_keys)
    for name, tensor in model.state_dict().items():
        if name not in tied:
            writer.add(name, tensor)
    writer.finish()
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(str(folder))
    write_generation_config(folder)


def write_generation_config(folder: Path, tokenizer_from: Path | None = None) -> None:
    """Writes ``generation_config.json`` with every end token, a turn's among them, and a padding token.

    What is there already is kept, besides these: also settings that transformers would not write themselves
    (a temperature without sampling, as older models are published with).

    Args:
        folder: of the model.
        tokenizer_from: folder of the tokenizer in use; none: ``folder``.
    """
    tokenizer = load_tokenizer(tokenizer_from or folder)
    path = folder / "generation_config.json"
    settings: dict[str, Any] = {}
    if path.is_file():
        settings = json.loads(path.read_text(encoding="utf-8"))
    known = settings.get("eos_token_id", [])
    known = known if isinstance(known, list) else [known]
    settings["eos_token_id"] = sorted({*end_ids(tokenizer), *(end for end in known if isinstance(end, int))})
    settings["pad_token_id"] = padding_id(tokenizer)
    settings.pop("_from_model_config", None)
    text = json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def merge_delta(
    delta_folder: Path, root_folder: Path, out_folder: Path, *, max_shard_bytes: int = 4 * 2**30
) -> None:
    """Adds a published difference to its root, tensor by tensor, as Ziya-LLaMA-13B-v1 needs.

    The sum is taken in fp32 and stored in the delta's number format. Where the delta has more embedding rows
    than the root, the root's missing rows count as zero. Config and tokenizer come from the delta. Memory is
    bounded by one output shard and the largest tensor.

    Args:
        delta_folder: the published difference, in Hugging Face format.
        root_folder: the model that it was taken from, in Hugging Face format.
        out_folder: where the merged model is written.
        max_shard_bytes: size of one output shard.

    Raises:
        DataError: a tensor is missing on one side or has another shape; the message names it.
    """
    with WeightReader(delta_folder) as delta, WeightReader(root_folder) as root:
        ours = {name for name in delta if not name.endswith(_IGNORED_SUFFIXES)}
        theirs = {name for name in root if not name.endswith(_IGNORED_SUFFIXES)}
        for missing, folder in ((ours - theirs, root_folder), (theirs - ours, delta_folder)):
            if missing:
                raise DataError(
                    f"tensor {min(missing)} is not in this model ({len(missing)} missing)",
                    code=codes.DELTA_MISMATCH,
                    where=str(folder),
                )
        writer = WeightWriter(out_folder, max_shard_bytes=max_shard_bytes)
        dtype = torch.float32
        for name in delta:
            if name in ours:
                dtype = (tensor := _add(name, delta.get(name), root.get(name), root_folder)).dtype
                writer.add(name, tensor)
                beat()
        writer.finish()
    for path in sorted(delta_folder.iterdir()):
        if path.name in (*TOKENIZER_FILES, "config.json", "generation_config.json"):
            shutil.copyfile(path, out_folder / path.name)
    _patch_config(out_folder, dtype)
    write_generation_config(out_folder)


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention_dropout: float = 0.0,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Loads a full causal model on CPU, in training's terms: packed rows, no cache, given dropout.

    Args:
        folder: model in Hugging Face format, tokenizer included.
        dtype: number format of the weights.
        attention_dropout: dropout on attention probabilities while in training mode.
        quantization: how the weights of linear layers are stored.
        device: where they are quantized.

    Raises:
        DataError: the folder is no such model, or its tokenizer has more entries than its embedding.
    """
    config = load_config(folder)
    check_vocabulary(folder, config)
    config.attention_dropout = attention_dropout
    config.use_cache = False
    try:
        with quiet_transformers():
            model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                attn_implementation=PACKED,
                **loading_arguments(quantization, dtype, device),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the model cannot be loaded: {error}", code=codes.UNUSABLE_MODEL, where=str(folder)
        ) from error
    keep_storage(model)
    check_attention(model, str(folder))
    return model


def load_config(folder: Path) -> PretrainedConfig:
    """The model's configuration.

    Raises:
        DataError: there is none that transformers understands, it needs code of its own, or it stands for an
            adapter.
    """
    check_own_code(folder)
    if not (folder / "config.json").is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise DataError(
            "this is an adapter, not a full model" if adapter else "the folder has no config.json",
            code=codes.NOT_A_FULL_MODEL if adapter else codes.UNUSABLE_MODEL,
            where=str(folder),
            remedy="give the full model as base; adapters belong into a stage's `from`" if adapter else None,
        )
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"config.json cannot be used: {error}", code=codes.UNUSABLE_MODEL, where=str(folder)
        ) from error
    return config


def check_vocabulary(folder: Path, config: PretrainedConfig) -> None:
    """Checks that every token has an embedding row; more rows than tokens are common and fine.

    Raises:
        DataError: the tokenizer makes ids that the embedding lacks.
    """
    # The largest id, not the number of tokens: added tokens may leave gaps.
    largest = max(load_tokenizer(folder).get_vocab().values(), default=-1)
    rows = int(config.vocab_size)
    if largest >= rows:
        raise DataError(
            f"the tokenizer makes ids up to {largest}, the embedding has only {rows} rows",
            code=codes.TOKENIZER_MISMATCH,
            where=str(folder),
            remedy="the tokenizer is of another model; for a published delta give base.delta with base.root",
        )


def check_max_length(
    config: PretrainedConfig, max_length: int, *, field: str = "maxLength", where: str | None = None
) -> None:
    """Checks that the model can place ``max_length`` tokens.

    Args:
        config: of the model.
        max_length: in tokens.
        field: name of the setting, or of the settings that add up to it.
        where: path of the setting in the document; none: ``field``.

    Raises:
        DataError: the model has fewer positions.
    """
    positions = getattr(config, "max_position_embeddings", None)
    if isinstance(positions, int) and max_length > positions:
        raise DataError(
            f"{field} {max_length} is longer than the model's {positions} positions",
            code=codes.TOO_LONG_FOR_MODEL,
            where=where or field,
            remedy=f"set {field} to at most {positions}, or use a base with more positions",
        )


def check_same_tokenizer(folder: Path, base_folder: Path) -> None:
    """Checks that an adapter and its base give the same ids to the same texts.

    Args:
        folder: of the adapter; without a tokenizer of its own there is nothing to compare.
        base_folder: of the full model.

    Raises:
        DataError: the two vocabularies differ.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        return
    ours, theirs = load_tokenizer(folder).get_vocab(), load_tokenizer(base_folder).get_vocab()
    if ours != theirs:
        differing = sum(theirs.get(token) != place for token, place in ours.items()) or len(theirs) - len(
            ours
        )
        raise DataError(
            f"its tokenizer is not the base's: {differing} of {len(ours)} tokens have other ids there",
            code=codes.TOKENIZER_MISMATCH,
            where=str(folder),
        )


def skeleton(folder: Path, *, head: bool = False) -> PreTrainedModel:
    """The model of a folder without memory for its weights: modules, names and shapes.

    Args:
        folder: full model in Hugging Face format.
        head: a sequence classifier of one label instead of the causal model.

    Raises:
        DataError: config.json is missing or cannot be used.
    """
    config = load_config(folder)
    kind: Any = AutoModelForCausalLM
    if head:
        config.num_labels = 1
        kind = AutoModelForSequenceClassification
    try:
        with torch.device("meta"), quiet_transformers():
            model: PreTrainedModel = kind.from_config(config)
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise DataError(
            f"no model can be made of config.json: {error}", code=codes.UNUSABLE_MODEL, where=str(folder)
        ) from error
    return model


class quiet_transformers:  # noqa: N801 - a context manager, used like a function
    """Silences transformers' loading report (a new reward head is expected) and progress bars."""

    def __enter__(self) -> None:
        self._level = transformers_logging.get_verbosity()
        self._bars = transformers_logging.is_progress_bar_enabled()
        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        transformers_logging.set_verbosity(self._level)
        if self._bars:
            transformers_logging.enable_progress_bar()


def _add(name: str, delta: torch.Tensor, root: torch.Tensor, root_folder: Path) -> torch.Tensor:
    total = delta.to(torch.float32, copy=True)
    if delta.shape == root.shape:
        total += root.to(torch.float32)
    elif (
        name.endswith(_VOCABULARY_TENSORS)
        and delta.shape[1:] == root.shape[1:]
        and delta.shape[0] > root.shape[0]
    ):
        total[: root.shape[0]] += root.to(torch.float32)
    else:
        raise DataError(
            f"tensor {name} is {tuple(root.shape)} in the root, {tuple(delta.shape)} in the delta",
            code=codes.DELTA_MISMATCH,
            where=str(root_folder),
        )
    return total.to(delta.dtype)


def _patch_config(folder: Path, dtype: torch.dtype) -> None:
    """Makes the merged model's config say what it is: its number format, and a padding token."""
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("torch_dtype", None)
    config["dtype"] = str(dtype).removeprefix("torch.")
    config["pad_token_id"] = padding_id(load_tokenizer(folder))
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
