"""Tokenizers: a byte-level BPE trained on the corpora of a tiny base, and what any other is asked for.

The trained tokenizer splits text as Qwen's do (same regular expression, NFC), so that every class by which
transformers may load the folder gives the same tokens. Three special tokens:

``<|endoftext|>``  ends a document, and pads
``<|im_start|>``   begins a turn
``<|im_end|>``     ends a turn; the tokenizer's ``eos_token``
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from zhongjing.codes import document as document_codes
from zhongjing.codes import model as model_codes
from zhongjing.data.sentencepiece_model import MODEL_FILE
from zhongjing.data.templates import DOCUMENT_ENDS, special_names, turn_end_id
from zhongjing.data.tokenizer_folder import TOKENIZER_FILES, load_tokenizer
from zhongjing.errors import DataError

__all__ = [
    "DOCUMENT_END",
    "SPECIAL_TOKENS",
    "TOKENIZER_FILES",
    "TURN_END",
    "TURN_START",
    "end_ids",
    "load_tokenizer",
    "padding_id",
    "save_tokenizer",
    "train_bpe",
]

DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
SPECIAL_TOKENS = (DOCUMENT_END, TURN_START, TURN_END)

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Of special tokens, those that publishers set aside: <|finetune_right_pad_id|>, <|reserved_special_token_0|>.
_SPARE = re.compile(r"pad|reserved|unused", re.IGNORECASE)
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
    save_tokenizer(fast, folder)


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path, *, pieces: Path | None = None) -> None:
    """Writes a tokenizer so that transformers 4, and what is built on it, loads it too.

    transformers 5 names its general class ``TokenizersBackend`` and lists further special tokens under
    ``extra_special_tokens``. transformers 4 knows neither: there they are ``PreTrainedTokenizerFast`` and
    ``additional_special_tokens``, which transformers 5 reads as well.

    Args:
        tokenizer: a fast tokenizer.
        folder: where the files are written; made if it does not exist.
        pieces: folder with the sentencepiece model that the tokenizer was made of. It is copied, for readers
            that compute by it (llama.cpp).
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(str(folder))
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    if settings.get("tokenizer_class") == "TokenizersBackend":
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(settings.get("extra_special_tokens"), list):
        settings["additional_special_tokens"] = settings.pop("extra_special_tokens")
    if pieces is not None and (pieces / MODEL_FILE).is_file():
        shutil.copyfile(pieces / MODEL_FILE, folder / MODEL_FILE)
        added = tokenizer.added_tokens_decoder.items()
        settings["added_tokens_decoder"] = {str(place): token.__getstate__() for place, token in added}
    path.write_text(
        json.dumps(settings, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """A token for padding that no answer ends with.

    Packed rows are never padded. What is padded are batches of others: of generation, where an attention mask
    says so, and of transformers' sequence classifiers, which read a score at the last token that is not
    padding. There it must not be the token that ends a turn, which may be EOS (Llama-2) or not (Qwen2.5-Base:
    EOS and padding are ``<|endoftext|>``, turns end with ``<|im_end|>``). Taken is the first that differs:
    the tokenizer's own, the unknown token, a document's end, a token set aside, EOS, any other special token.

    Raises:
        DataError: the tokenizer has no other special token.
    """
    end = turn_end_id(tokenizer)
    end = tokenizer.eos_token_id if end is None else end
    vocabulary = tokenizer.get_vocab()
    names = special_names(tokenizer)
    documents = [vocabulary[name] for name in DOCUMENT_ENDS if name in vocabulary]
    special = sorted(vocabulary[name] for name in names if name in vocabulary)
    spare = sorted(vocabulary[name] for name in names if name in vocabulary and _SPARE.search(name))
    bos = tokenizer.bos_token_id
    candidates = [
        *(tokenizer.pad_token_id, tokenizer.unk_token_id),
        *documents,
        *spare,
        tokenizer.eos_token_id,
        *(token for token in special if token != bos),
        bos,
    ]
    for candidate in candidates:
        if isinstance(candidate, int) and candidate != end:
            return candidate
    raise DataError(
        "the tokenizer has no special token besides the one that ends a turn",
        code=model_codes.UNUSABLE_TOKENIZER,
        where=getattr(tokenizer, "name_or_path", None),
        remedy="give the tokenizer a pad_token",
    )


def end_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids at which generation stops: end of a turn, as the chat template ends it, and of a document.

    Returns:
        Sorted, at least one.

    Raises:
        DataError: the tokenizer has no end token.
    """
    vocabulary = tokenizer.get_vocab()
    marks = (turn_end_id(tokenizer), tokenizer.eos_token_id)
    ids = {mark for mark in marks if isinstance(mark, int)}
    ids.update(vocabulary[token] for token in (TURN_END, *DOCUMENT_ENDS) if token in vocabulary)
    if not ids:
        raise DataError(
            "the tokenizer has no end of sequence",
            code=model_codes.UNUSABLE_TOKENIZER,
            where=getattr(tokenizer, "name_or_path", None),
        )
    return sorted(ids)
