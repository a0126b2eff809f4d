"""The tokenizer of a model folder: loaded here and nowhere else, so that all parts see the same ids."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zhongjing.codes import model as codes
from zhongjing.data.own_code import check_own_code
from zhongjing.data.sentencepiece_model import PROBES, is_sentencepiece, load_sentencepiece
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


_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder; see :func:`read_tokenizer`."""
    return read_tokenizer(folder)[0]


def read_tokenizer(folder: Path) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer of a model folder by its publisher's rule, and whether transformers reads it otherwise.

    A ``tokenizer.json`` is that rule, as the library tokenizers reads it, and with it transformers 4 and
    servers. transformers 5 builds the pipeline of some classes anew and leaves the file's out: its
    ``LlamaTokenizer`` takes Metaspace where the files of Llama-1, Llama-2 and Vicuna have a normalizer that
    writes a space before every part (huggyllama/llama-7b, ``tokenizer.json``). Without such a file:
    :mod:`zhongjing.data.sentencepiece_model`.

    Raises:
        DataError: the folder has no tokenizer that transformers can load, or one that needs code of its own.
    """
    check_own_code(folder)
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError("the folder has no tokenizer", code=codes.UNUSABLE_TOKENIZER, where=str(folder))
    try:
        if is_sentencepiece(folder):
            return load_sentencepiece(folder), True
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False
        )
        rebuilt = _is_rebuilt(tokenizer, folder)
        if rebuilt:
            named = {name: getattr(tokenizer, name) for name in _TOKENS if getattr(tokenizer, name)}
            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder), **named)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the tokenizer cannot be loaded: {error}", code=codes.UNUSABLE_TOKENIZER, where=str(folder)
        ) from error
    return tokenizer, rebuilt


def _is_rebuilt(tokenizer: PreTrainedTokenizerBase, folder: Path) -> bool:
    """Whether the class gives other ids than the folder's ``tokenizer.json`` does."""
    file = folder / "tokenizer.json"
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    generic = ("TokenizersBackend", "PreTrainedTokenizerFast")
    if backend is None or type(tokenizer).__name__ in generic or not file.is_file():
        return False
    marks = sorted(tokenizer.get_added_vocab())[:4]
    texts = (*PROBES, *(f"a{mark} b{mark}头痛" for mark in marks))
    ids = [encoding.ids for encoding in backend.encode_batch(list(texts), add_special_tokens=False)]
    return ids != _ids_by_file(str(file), file.stat().st_mtime_ns, texts)


@lru_cache(maxsize=4)
def _ids_by_file(file: str, changed: int, texts: tuple[str, ...]) -> list[list[int]]:
    """Ids by a ``tokenizer.json`` that was last changed then: large ones take a second to load."""
    published = Tokenizer.from_file(file)
    published.no_truncation()
    published.no_padding()
    return [encoding.ids for encoding in published.encode_batch(list(texts), add_special_tokens=False)]
