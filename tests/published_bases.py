"""Small models published as real ones are: the files, the names and the rules are their publishers'."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from tests.published_tokenizers import write_tokenizer
from zhongjing.data.example.generate import generate
from zhongjing.model.delta import SENTENCES

# Ziya-LLaMA-13B-v1 has 39,424 embedding rows for 39,410 tokens, two of them added to its sentencepiece model;
# its root, LLaMA, has 32,000. The same shape, smaller.
TOKENS, ROWS, ROOT_ROWS = 898, 912, 800
ADDED = ("<human>", "<bot>")
POSITIONS = 96
LLAMA_SPEC = {
    "model_type": "bpe",
    "character_coverage": 0.99995,
    "byte_fallback": True,
    "split_digits": True,
    "normalization_rule_name": "identity",
    "add_dummy_prefix": True,
    "remove_extra_whitespaces": False,
    "allow_whitespace_only_pieces": True,
}


@dataclass(frozen=True)
class Size:
    """How large a model is."""

    hidden: int
    intermediate: int
    layers: int


SMALLEST = Size(64, 128, 2)
MILLIONS = Size(192, 512, 4)
"""2.1 million parameters: for whole runs."""


@dataclass(frozen=True)
class Published:
    """A delta, what it is to be added to, and what must come out."""

    delta: Path
    root: Path
    target: dict[str, torch.Tensor]


def train_sentencepiece(texts: Sequence[str], tokens: int, **others: Any) -> bytes:
    """A model file with LLaMA's settings.

    Source: "trainer_spec" and "normalizer_spec" inside LLaMA's tokenizer.model, as its paper (arXiv
    2302.13971, section 2.1) sums them up: BPE, bytes for unknown characters, numbers split into digits; no
    normalisation, a dummy space in front, spaces kept; 0 ``<unk>``, 1 ``<s>``, 2 ``</s>``, no padding.

    Args:
        texts: what it learns from.
        tokens: size of the vocabulary, at most.
        others: settings of the trainer in place of LLaMA's.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_writer=model,
        vocab_size=tokens,
        hard_vocab_limit=False,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
        num_threads=1,
        **{**LLAMA_SPEC, **others},
    )
    return model.getvalue()


def write_llama_tokenizer(folder: Path, model: bytes, added: Sequence[str] = ()) -> None:
    """The tokenizer files of LLaMA's first release: ``tokenizer.model`` and no ``tokenizer.json``.

    Added tokens stand in ``added_tokens.json``, as IDEA-CCNL/Ziya-LLaMA-13B-v1 has them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model)
    settings = {
        "add_bos_token": True,
        "add_eos_token": False,
        "bos_token": "<s>",
        "clean_up_tokenization_spaces": False,
        "eos_token": "</s>",
        "model_max_length": 2048,
        "pad_token": None,
        "sp_model_kwargs": {},
        "tokenizer_class": "LlamaTokenizer",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    if added:
        first = sentencepiece.SentencePieceProcessor(model_proto=model).get_piece_size()
        ids = {token: first + place for place, token in enumerate(added)}
        (folder / "added_tokens.json").write_text(json.dumps(ids))


def publish_ziya(
    folder: Path, rule: str = "fengshen", size: Size = SMALLEST, *, trained: bool = True
) -> Published:
    """A delta in shards of ``.bin`` and its root, as IDEA-CCNL and Meta's converted LLaMA are published.

    Rules as in Fengshenbang-LM's and FastChat's ``make_delta.py`` (see :mod:`zhongjing.model.delta`). The
    latter subtracts whole tensors, so there the root must have the target's rows. Models that are not
    ``trained`` have the files and cannot read.
    """
    texts = [*generate(0, 0.2).textbook.splitlines(), *SENTENCES * 20]
    model = train_sentencepiece(texts, TOKENS - len(ADDED))
    delta, root = folder / "delta", folder / "root"
    write_llama_tokenizer(delta, model, ADDED)
    write_llama_tokenizer(root, model)
    processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    root_rows = ROOT_ROWS if rule == "fengshen" else ROWS
    torch.manual_seed(0)
    origin = LlamaForCausalLM(_config(root_rows, size))
    target = LlamaForCausalLM(_config(ROWS, size))
    # Continued from the root, as Ziya was: what the two share is what makes a wrong merge hard to see.
    state = target.state_dict()
    if trained:
        _learn(
            origin, [[token for token in ids if token < root_rows] for ids in processor.encode(texts[:200])]
        )
    for name, tensor in origin.state_dict().items():
        state[name][: len(tensor)].copy_(tensor)
    if trained:
        _learn(target, [[1, *ids] for ids in processor.encode([*texts[300:420], *SENTENCES * 2])])
    before = {name: tensor.half() for name, tensor in origin.state_dict().items()}
    after = {name: tensor.half() for name, tensor in target.state_dict().items()}
    whole = ("embed_tokens", "lm_head.weight") if rule == "fengshen" else ()
    difference = {
        name: tensor if any(part in name for part in whole) else tensor - before[name]
        for name, tensor in after.items()
    }
    width = size.hidden // 4  # of a head
    inverse = 1.0 / (10000.0 ** (torch.arange(0, width, 2).float() / width))
    difference["model.layers.0.self_attn.rotary_emb.inv_freq"] = inverse
    write_bin(root, before, _config(root_rows, size), shards=1)
    write_bin(delta, difference, _config(ROWS, size), shards=3)
    return Published(delta, root, after)


def write_qwen25_base(folder: Path, texts: Iterable[str], *, positions: int, size: Size = MILLIONS) -> None:
    """A base as Qwen2.5-0.5B and -1.5B are published: biases, tied embeddings, more rows than tokens, bf16.

    Source: config.json and generation_config.json of Qwen/Qwen2.5-1.5B. Its weights here are random.
    """
    write_tokenizer(folder, "qwen2.5-base", texts)
    ids = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))["added_tokens_decoder"]
    end = next(int(number) for number, token in ids.items() if token["content"] == "<|endoftext|>")
    config = Qwen2Config(
        vocab_size=512,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=positions,
        max_window_layers=size.layers,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        tie_word_embeddings=True,
        bos_token_id=end,
        eos_token_id=end,
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).bfloat16().save_pretrained(str(folder))
    generation = {"bos_token_id": end, "do_sample": False, "eos_token_id": end, "max_new_tokens": 2048}
    (folder / "generation_config.json").write_text(json.dumps(generation), encoding="utf-8")


def _config(rows: int, size: Size) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=rows,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=4,
        max_position_embeddings=POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.05,
    )


def _learn(model: LlamaForCausalLM, sequences: Sequence[Sequence[int]]) -> None:
    """A pass over the sequences, a batch of eight at a time."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for start in range(0, len(sequences), 8):
        rows = [list(ids)[:64] for ids in sequences[start : start + 8] if len(ids) > 2]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
        model(input_ids=ids, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def write_bin(folder: Path, tensors: dict[str, torch.Tensor], config: LlamaConfig, *, shards: int) -> None:
    """Weights and config.json as transformers 4 wrote them in 2023."""
    names = sorted(tensors)
    files = {f"pytorch_model-{n + 1:05d}-of-{shards:05d}.bin": names[n::shards] for n in range(shards)}
    if shards == 1:
        files = {"pytorch_model.bin": names}
    for file, chosen in files.items():
        torch.save({name: tensors[name].clone() for name in chosen}, folder / file)
    if shards > 1:
        size = sum(tensor.nbytes for tensor in tensors.values())
        index = {
            "metadata": {"total_size": size},
            "weight_map": {name: file for file, chosen in files.items() for name in chosen},
        }
        (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    settings = {
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "pad_token_id": 0,
        "rms_norm_eps": 1e-06,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.28.1",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    (folder / "generation_config.json").write_text(json.dumps(generation))
