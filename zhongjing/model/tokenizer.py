"""Tokenizers: a byte-level BPE trained on the corpora of a tiny base, and loading of any other.

The trained tokenizer splits text as Qwen's do (same regular expression, NFC), so that every class by which
transformers may load the folder gives the same tokens. Three special tokens:

``<|endoftext|>``  ends a document, and pads
``<|im_start|>``   begins a turn
``<|im_end|>``     ends a turn; the tokenizer's ``eos_token``
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zhongjing.codes import document as document_codes
from zhongjing.codes import model as model_codes
from zhongjing.errors import DataError

DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (DOCUMENT_END, TURN_START, TURN_END)

# Files of a model folder that decide how text becomes tokens.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Chinese has no spaces, so a whole clause is one word to BPE. Without a limit the frequent clauses of a small
# corpus become single tokens, and a disease inside a new sentence is spelt in tokens never seen before.
_LONGEST_TOKEN_BYTES = 24


def train_bpe(
    texts: Iterable[str],
    vocabulary_size: int,
    chat_template: str,
    folder: Path,
    *,
    max_length: int = 1024,
) -> None:
    """Trains a byte-level BPE and writes it as a tokenizer folder that ``AutoTokenizer`` loads.

    The same texts in the same order give the same bytes. A small corpus may give fewer entries than asked
    for; every byte has an entry, so no text is unknown.

    Args:
        texts: the corpus, one document or turn an item.
        vocabulary_size: largest number of entries, special tokens included.
        chat_template: Jinja template stored with the tokenizer.
        folder: where the files are written; made if it does not exist.
        max_length: longest sequence of the model that uses it, in tokens.

    Raises:
        DataError: ``vocabulary_size`` is too small for the bytes and the special tokens.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if vocabulary_size < len(alphabet) + len(SPECIAL_TOKENS):
        raise DataError(
            f"a vocabulary of {vocabulary_size} cannot hold the {len(alphabet)} bytes and the special tokens",
            code=document_codes.INVALID_VALUE,
            where="spec.base.tiny.vocabularySize",
            remedy=f"give at least {len(alphabet) + len(SPECIAL_TOKENS)}",
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        max_token_length=_LONGEST_TOKEN_BYTES,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=TURN_END,
        pad_token=DOCUMENT_END,
        extra_special_tokens=[TURN_START],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = chat_template
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(folder))


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder.

    Raises:
        DataError: the folder has no tokenizer that transformers can load.
    """
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise DataError("the folder has no tokenizer", code=model_codes.UNUSABLE_TOKENIZER, where=str(folder))
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"the tokenizer cannot be loaded: {error}", code=model_codes.UNUSABLE_TOKENIZER, where=str(folder)
        ) from error
    return tokenizer


def tokenizer_digest(folder: Path) -> str:
    """sha256 (hex) over the files that decide how text becomes tokens, names included.

    Raises:
        DataError: the folder has no tokenizer.
    """
    digest = hashlib.sha256()
    names = [name for name in TOKENIZER_FILES if (folder / name).is_file()]
    if not names:
        raise DataError("the folder has no tokenizer", code=model_codes.UNUSABLE_TOKENIZER, where=str(folder))
    for name in names:
        content = (folder / name).read_bytes()
        digest.update(f"{name}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token for padding that no answer ends with.

    transformers' sequence classifiers read a score at the last token that is not padding. Where padding is
    also the turn's end they would read one token too early, so another token is taken: the unknown token, as
    LLaMA's models do, else the document's end.

    Raises:
        DataError: every candidate is the turn's end.
    """
    turn_end = tokenizer.eos_token_id
    candidates = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.get_vocab().get(DOCUMENT_END)]
    for candidate in candidates:
        if isinstance(candidate, int) and candidate != turn_end:
            return candidate
    raise DataError(
        "the tokenizer has no token for padding besides its end of sequence",
        code=model_codes.UNUSABLE_TOKENIZER,
        where=getattr(tokenizer, "name_or_path", None),
        remedy="give the tokenizer a pad_token",
    )


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at which generation stops: end of a turn, end of a document. Sorted, at least one.

    Raises:
        DataError: the tokenizer has no end token.
    """
    vocabulary = tokenizer.get_vocab()
    ids = {tokenizer.eos_token_id} if isinstance(tokenizer.eos_token_id, int) else set()
    ids.update(vocabulary[token] for token in (TURN_END, DOCUMENT_END) if token in vocabulary)
    if not ids:
        raise DataError(
            "the tokenizer has no end of sequence",
            code=model_codes.UNUSABLE_TOKENIZER,
            where=getattr(tokenizer, "name_or_path", None),
        )
    return sorted(ids)
