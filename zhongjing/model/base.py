"""The full model that a pipeline starts from: made, or loaded."""

from __future__ import annotations

import json
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
from zhongjing.config.sources import RopeScaling, TinyBase
from zhongjing.config.stages import Quantization
from zhongjing.data.own_code import check_own_code
from zhongjing.errors import DataError
from zhongjing.model.attention import PACKED, check_attention
from zhongjing.model.config_file import write_config
from zhongjing.model.quantization import keep_storage, loading_arguments
from zhongjing.model.tokenizer import end_ids, load_tokenizer, padding_id, train_bpe
from zhongjing.model.weights import WeightWriter

# Deviation of a tiny base's fresh weights. transformers' 0.02 suits widths of thousands: at width 128 facts
# were learnt half as fast (docs/adr/0005-tiny-base.md).
_INITIALIZER_RANGE = 0.05
_COUNT_FROM_TRAINED = ("yarn", "llama3", "longrope")


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
    write_config(folder, json.loads(model.config.to_json_string()))
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


def set_positions(folder: Path, max_positions: int | None, rope_scaling: RopeScaling | None) -> None:
    """Writes how long sequences may be, and how positions are scaled, into a model's ``config.json``.

    transformers 5 keeps scaling and base wavelength together in ``rope_parameters``; before it was
    ``rope_scaling`` beside ``rope_theta``. The file gets both (:func:`write_config`).

    Args:
        folder: full model in Hugging Face format; its ``config.json`` is written anew.
        max_positions: in tokens; none: as they are.
        rope_scaling: by transformers' names; none: as it is.

    Raises:
        DataError: transformers takes the result for no configuration; or the base scales dynamically, and
            nothing else is asked for.
    """
    read = load_config(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Whatever the form in the file, as transformers reads it.
    rope = dict(getattr(read, "rope_parameters", None) or {})
    if max_positions is not None:
        if rope_scaling is None and rope.get("rope_type") == "dynamic":
            # It sets in above the positions, wherever those are, and would do nothing any more.
            raise DataError(
                f"the base scales its positions dynamically beyond {config.get('max_position_embeddings')}, "
                "which raising them would end",
                code=codes.UNUSABLE_MODEL,
                where="spec.base.maxPositions",
                remedy="say how positions are scaled as well: base.ropeScaling, linear or yarn",
            )
        # Scalings that count from the trained length read it here where they do not name it themselves.
        if rope.get("rope_type") in _COUNT_FROM_TRAINED and "max_position_embeddings" in config:
            rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
        config["max_position_embeddings"] = max_positions
    if rope_scaling is not None:
        kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        rope = {**kept, **rope_scaling.model_dump(mode="json", by_alias=False, exclude_none=True)}
    if rope:
        config["rope_parameters"], config["rope_scaling"] = rope, None
    write_config(folder, config)
    load_config(folder)


def load_base(
    folder: Path,
    *,
    dtype: torch.dtype,
    attention_dropout: float = 0.0,
    quantization: Quantization = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """Loads a full causal model, in training's terms: packed rows, no cache, given dropout.

    Args:
        folder: model in Hugging Face format, tokenizer included.
        dtype: number format of the weights.
        attention_dropout: dropout on attention probabilities while in training mode.
        quantization: how the weights of linear layers are stored.
        device: where the weights go, straight from their files; none: the CPU.

    Raises:
        DataError: the folder is no such model, or its tokenizer has more entries than its embedding.
    """
    config = load_config(folder)
    check_vocabulary(folder, config)
    config.attention_dropout = attention_dropout
    config.use_cache = False
    return load_weights(AutoModelForCausalLM, folder, config, dtype, quantization=quantization, device=device)


def load_weights(
    kind: Any,
    folder: Path,
    config: PretrainedConfig,
    dtype: torch.dtype,
    *,
    quantization: Quantization,
    device: torch.device | None,
) -> PreTrainedModel:
    """A model of transformers' class ``kind`` with attention for packed rows; see :func:`load_base`.

    The files are mapped, and each tensor goes from there to its place (transformers 5 converts at most four
    at a time). On a CPU weights in the number format of their files stay mapped: processes of one node share
    them until they write. No row of an embedding is left out of training: transformers gives the padding
    token's no gradient, and where padding is the end of a text, as in Qwen, that token is trained.

    Raises:
        DataError: the weights cannot be loaded, or the family's attention cannot be told its segments.
    """
    try:
        with quiet_transformers():
            model: PreTrainedModel = kind.from_pretrained(
                str(folder),
                config=config,
                dtype=dtype,
                attn_implementation=PACKED,
                device_map={"": device or torch.device("cpu")},
                **loading_arguments(quantization, dtype),
            )
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(
            f"the model cannot be loaded: {error}", code=codes.UNUSABLE_MODEL, where=str(folder)
        ) from error
    keep_storage(model)
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
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
            remedy=f"set {field} to at most {positions}; or, where spec.base is what it stands on "
            f"and is to learn longer sequences, set spec.base.maxPositions: {max_length}",
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
