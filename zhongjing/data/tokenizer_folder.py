"""The tokenizer of a model folder: loaded here and nowhere else, so that all parts see the same ids."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from zhongjing.codes import model as codes
from zhongjing.data.own_code import check_own_code
from zhongjing.data.pieces import has_only_pieces, load_pieces
from zhongjing.errors import DataError

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "spiece.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files of a model folder that decide how text becomes tokens."""


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, by its publisher's rule (:mod:`zhongjing.data.pieces`).

    Raises:
        DataError: the folder has no tokenizer that transformers can load, or one that needs code of its own.
    """
    check_own_code(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError("the folder has no tokenizer", code=codes.UNUSABLE_TOKENIZER, where=str(folder))
    try:
        if has_only_pieces(folder):
            return load_pieces(folder)
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the tokenizer cannot be loaded: {error}", code=codes.UNUSABLE_TOKENIZER, where=str(folder)
        ) from error
    return tokenizer
