"""Tokenizer folders shaped as well-known models are published: their special tokens, classes and settings.

The vocabularies are small and made here; what decides padding and the ends of turns is as in the published
files (tokenizer_config.json, special_tokens_map.json and generation_config.json of the models on the hub):

=================  ====================================================================================
llama-1            huggyllama/llama-7b: ``LlamaTokenizer``, ``<s> </s> <unk>``, no padding, no template
llama-2-chat       meta-llama/Llama-2-7b-chat-hf: not ``legacy``, ``pad_token`` null, ``[INST]`` turns, EOS
llama-3            meta-llama/Meta-Llama-3-8B: EOS ``<|end_of_text|>``, neither padding nor unknown token
llama-3-eot        the same with the Instruct template, EOS still ``<|end_of_text|>`` (first published state)
llama-3.1-chat     meta-llama/Llama-3.1-8B-Instruct: EOS ``<|eot_id|>``, ``<|finetune_right_pad_id|>`` unused
qwen2.5-base       Qwen/Qwen2.5-7B: EOS and padding ``<|endoftext|>``, turns end with ``<|im_end|>``
qwen2.5-chat       Qwen/Qwen2.5-7B-Instruct: EOS ``<|im_end|>``, padding ``<|endoftext|>``
qwen3              Qwen/Qwen3-8B: as qwen2.5-chat, with thoughts that the template takes out of history
yi                 01-ai/Yi-6B: ``LlamaTokenizer``, ``<|startoftext|> <|endoftext|>``, padding ``<unk>``
yi-chat            01-ai/Yi-6B-Chat: EOS ``<|im_end|>``, ChatML
baichuan2-llama    Baichuan2 in Llama layout: ``LlamaTokenizer``, ``</s>``, padding ``<unk>``
internlm2-llama    internlm2-chat in Llama layout: EOS and padding ``</s>``, turns end with ``<|im_end|>``
r1-distill         deepseek-ai/DeepSeek-R1-Distill-Qwen-32B: EOS and padding one token, thoughts are cut
=================  ====================================================================================
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.unit.data.support import CORPUS, QWEN3_LIKE_TEMPLATE

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2.5 adds a system turn where there is none.
_QWEN25 = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\nYou help.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
_LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}{% set s = messages[0].content %}"
    "{% else %}{% set rest = messages %}{% set s = false %}{% endif %}"
    "{% for m in rest %}{% if loop.index0 == 0 and s %}"
    "{% set c = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m.content %}{% else %}{% set c = m.content %}{% endif %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
_LLAMA3 = (
    "{% for m in messages %}"
    "{% set c = '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set c = bos_token + c %}{% endif %}{{ c }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
_R1 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% endif %}"
    "{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}{% endif %}"
    "{% if m.role == 'assistant' %}{% set c = m.content %}"
    "{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ '<｜Assistant｜>' + c + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
_LLAMA3_MARKS = ("<|begin_of_text|>", "<|end_of_text|>")
_RESERVED = ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
_HEADER = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
_QWEN_MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|vision_pad|>")


@dataclass(frozen=True)
class Published:
    """One layout: what its tokenizer_config.json says, its special tokens, and what must come of it."""

    settings: dict[str, Any]
    template: str | None
    special: tuple[str, ...]
    turn_end: str
    padding: str
    sentencepiece: bool = False
    ends: tuple[str, ...] = ()  # of generation, besides the turn's
    eos_ids: tuple[str, ...] = ()  # what its generation_config.json names


def _qwen(eos: str) -> dict[str, Any]:
    return {
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": eos,
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": list(_QWEN_MARKS[1:]),
    }


def _llama3(eos: str) -> dict[str, Any]:
    return {
        "bos_token": "<|begin_of_text|>",
        "eos_token": eos,
        "clean_up_tokenization_spaces": True,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": 131072,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }


def _llama(bos: str = "<s>", eos: str = "</s>", **more: Any) -> dict[str, Any]:
    return {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": bos,
        "eos_token": eos,
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        **more,
    }


_SP = ("<unk>", "<s>", "</s>")
_YI = ("<unk>", "<|startoftext|>", "<|endoftext|>")
_IM = ("<|im_start|>", "<|im_end|>")

PUBLISHED = {
    "llama-1": Published(_llama(), None, _SP, "</s>", "<unk>", True),
    "llama-2-chat": Published(_llama(pad_token=None, legacy=False), _LLAMA2, _SP, "</s>", "<unk>", True),
    "llama-3": Published(
        _llama3("<|end_of_text|>"),
        None,
        (*_LLAMA3_MARKS, *_RESERVED, *_HEADER),
        "<|end_of_text|>",
        "<|reserved_special_token_0|>",
        eos_ids=("<|end_of_text|>",),
    ),
    "llama-3-eot": Published(
        _llama3("<|end_of_text|>"),
        _LLAMA3,
        (*_LLAMA3_MARKS, *_RESERVED, *_HEADER),
        "<|eot_id|>",
        "<|end_of_text|>",
        ends=("<|end_of_text|>",),
        eos_ids=("<|end_of_text|>",),
    ),
    "llama-3.1-chat": Published(
        _llama3("<|eot_id|>"),
        _LLAMA3,
        (*_LLAMA3_MARKS, *_RESERVED, "<|finetune_right_pad_id|>", *_HEADER, "<|eom_id|>"),
        "<|eot_id|>",
        "<|end_of_text|>",
        ends=("<|end_of_text|>", "<|eom_id|>"),
        eos_ids=("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"),
    ),
    "qwen2.5-base": Published(
        _qwen("<|endoftext|>"),
        _QWEN25,
        _QWEN_MARKS,
        "<|im_end|>",
        "<|endoftext|>",
        ends=("<|endoftext|>",),
        eos_ids=("<|endoftext|>",),
    ),
    "qwen2.5-chat": Published(
        _qwen("<|im_end|>"),
        _QWEN25,
        _QWEN_MARKS,
        "<|im_end|>",
        "<|endoftext|>",
        ends=("<|endoftext|>",),
        eos_ids=("<|im_end|>", "<|endoftext|>"),
    ),
    "qwen3": Published(
        _qwen("<|im_end|>"),
        QWEN3_LIKE_TEMPLATE,
        _QWEN_MARKS,
        "<|im_end|>",
        "<|endoftext|>",
        ends=("<|endoftext|>",),
        eos_ids=("<|im_end|>", "<|endoftext|>"),
    ),
    "yi": Published(
        _llama(*_YI[1:], pad_token="<unk>", add_bos_token=False, legacy=True),
        None,
        _YI,
        "<|endoftext|>",
        "<unk>",
        True,
    ),
    "yi-chat": Published(
        _llama(_YI[1], "<|im_end|>", pad_token="<unk>", add_bos_token=False, legacy=True),
        CHATML,
        (*_YI, *_IM),
        "<|im_end|>",
        "<unk>",
        True,
        ends=("<|endoftext|>",),
    ),
    "baichuan2-llama": Published(_llama(pad_token="<unk>"), None, _SP, "</s>", "<unk>", True),
    "internlm2-llama": Published(
        _llama(pad_token="</s>"),
        "{{ bos_token }}" + CHATML,
        (*_SP, *_IM),
        "<|im_end|>",
        "</s>",
        True,
        ends=("</s>",),
        eos_ids=("</s>", "<|im_end|>"),
    ),
    "r1-distill": Published(
        {
            "add_bos_token": False,
            "bos_token": "<｜begin▁of▁sentence｜>",
            "eos_token": "<｜end▁of▁sentence｜>",
            "pad_token": "<｜end▁of▁sentence｜>",
            "unk_token": None,
            "legacy": True,
            "model_max_length": 16384,
            "tokenizer_class": "LlamaTokenizerFast",
        },
        _R1,
        ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<|fim_pad|>"),
        "<｜end▁of▁sentence｜>",
        "<|fim_pad|>",
        eos_ids=("<｜end▁of▁sentence｜>",),
    ),
}


def write_tokenizer(folder: Path, name: str, texts: Iterable[str] = CORPUS * 4) -> Published:
    """Writes the tokenizer and generation_config.json of ``name``; the folder is made."""
    published = PUBLISHED[name]
    folder.mkdir(parents=True, exist_ok=True)
    settings = dict(published.settings)
    if published.template is not None:
        settings["chat_template"] = published.template
    if published.sentencepiece:
        (folder / "tokenizer.model").write_bytes(_sentencepiece(texts, published.special[:3]))
        # Marks beyond the model's own three are added tokens, as Yi-Chat's and InternLM2's are.
        added = dict(enumerate(published.special[:3]))
        size = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model")).get_piece_size()
        added |= dict(enumerate(published.special[3:], start=size))
        settings["added_tokens_decoder"] = {str(number): _mark(token) for number, token in added.items()}
    else:
        content, ids = _byte_level(texts, published.special)
        (folder / "tokenizer.json").write_text(content, encoding="utf-8")
        settings["added_tokens_decoder"] = {str(ids[token]): _mark(token) for token in published.special}
    text = json.dumps(settings, ensure_ascii=False, indent=2)
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    return published


def _mark(token: str) -> dict[str, Any]:
    return {
        "content": token,
        "lstrip": False,
        "normalized": False,
        "rstrip": False,
        "single_word": False,
        "special": True,
    }


def _byte_level(texts: Iterable[str], special: tuple[str, ...]) -> tuple[str, dict[str, int]]:
    """A byte-level BPE whose special tokens stand behind its vocabulary, as Qwen's and Llama-3's do."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(special))
    return tokenizer.to_str(), {token: int(tokenizer.token_to_id(token) or 0) for token in special}


def _sentencepiece(texts: Iterable[str], marks: tuple[str, ...]) -> bytes:
    """A BPE as LLaMA's is made: bytes for unknown characters, space in front, no normalisation."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=written,
        model_type="bpe",
        vocab_size=460,
        hard_vocab_limit=False,
        byte_fallback=True,
        split_digits=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        unk_piece=marks[0],
        bos_piece=marks[1],
        eos_piece=marks[2],
        minloglevel=2,
    )
    return written.getvalue()
