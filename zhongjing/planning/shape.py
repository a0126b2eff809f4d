"""Sizes of a decoder of the Llama kind, read off its config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from zhongjing.config.sources import TinyBase


@dataclass(frozen=True)
class Shape:
    """A decoder: width, blocks, heads, vocabulary (rows of the embedding)."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    biases: bool = False  # on q, k and v, as Qwen2 has
    output_bias: bool = False  # on attention's output as well
    qk_norms: bool = False  # of each head's queries and keys, as Qwen3 has

    @property
    def attention(self) -> int:
        """Channels of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv(self) -> int:
        """Channels of all key heads together, as many as of the value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[tuple[int, int], ...]:
        """(in, out) of the seven linear layers of a block."""
        return (
            (self.hidden, self.attention),
            (self.hidden, self.kv),
            (self.hidden, self.kv),
            (self.attention, self.hidden),
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        )

    @property
    def linear_parameters(self) -> int:
        """Parameters of the linear layers of all blocks: what nf4 stores in 4 bits."""
        return self.layers * sum(a * b for a, b in self.linears)

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        embeddings = self.vocabulary * self.hidden * (1 if self.tied else 2)
        biases = (self.attention + 2 * self.kv) if self.biases else 0
        norms = 2 * self.hidden + (2 * self.head_dim if self.qk_norms else 0)
        block = sum(a * b for a, b in self.linears) + norms + biases + self.output_bias * self.hidden
        return embeddings + self.layers * block + self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every linear layer of the blocks (``all-linear``)."""
        return self.layers * rank * sum(a + b for a, b in self.linears)


_OTHER_BLOCKS = ("num_experts", "num_local_experts", "n_routed_experts", "kv_lora_rank")


def of_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json tells; None where it is no decoder of this kind, or a mixture of experts.

    ``attention_bias`` puts biases on all four of attention's layers (transformers' Llama and Qwen3); Qwen2
    has them on three without saying so.
    """
    if any(config.get(name) for name in _OTHER_BLOCKS):
        return None
    kind, everywhere = config.get("model_type"), bool(config.get("attention_bias", False))
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        found = Shape(
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=kind == "qwen2" or everywhere,
            output_bias=kind != "qwen2" and everywhere,
            qk_norms=kind == "qwen3",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    sizes = (found.hidden, found.intermediate, found.layers, found.heads, found.kv_heads, found.head_dim)
    return found if min(*sizes, found.vocabulary) > 0 else None


def of_tiny(tiny: TinyBase) -> Shape:
    """The shape of a base that the pipeline makes itself."""
    return Shape(
        hidden=tiny.hidden_size,
        intermediate=tiny.intermediate_size,
        layers=tiny.layers,
        heads=tiny.heads,
        kv_heads=tiny.kv_heads,
        head_dim=tiny.hidden_size // tiny.heads,
        vocabulary=tiny.vocabulary_size,
        tied=tiny.family != "llama",
        biases=tiny.family == "qwen2",
        qk_norms=tiny.family == "qwen3",
    )


def _published(family: str, *sizes: int, tied: bool = False) -> Shape:
    """Of hidden, intermediate, layers, heads, key-value heads and vocabulary."""
    hidden, intermediate, layers, heads, kv_heads, vocabulary = sizes
    return Shape(
        *(hidden, intermediate, layers, heads, kv_heads),
        head_dim=128 if family == "qwen3" else hidden // heads,
        vocabulary=vocabulary,
        tied=tied,
        biases=family == "qwen2",
        qk_norms=family == "qwen3",
    )


_LLAMA_7B = _published("llama", 4096, 11008, 32, 32, 32, 32000)
_LLAMA_13B = _published("llama", 5120, 13824, 40, 40, 40, 32000)
_LLAMA3_8B = _published("llama", 4096, 14336, 32, 32, 8, 128256)
_YI_6B = _published("llama", 4096, 11008, 32, 32, 4, 64000)

# As the publishers' config.json say, so that the planner answers offline. Looked up: Llama 2, 3.1, 3.2,
# Qwen2.5 and Qwen3 in litgpt/config.py of Lightning-AI/litgpt (commit 2685705), which links each config.json;
# Ziya in the conversion script of Tongjilibo/bert4torch; Yi-6B and -34B in a copy of the config.json of their
# 1.5, Yi-9B by its 48 layers. The tests hold every total against the published one.
_KNOWN: dict[str, Shape] = {
    "ziya-llama-13b-v1": replace(_LLAMA_13B, vocabulary=39424),
    "llama-7b": _LLAMA_7B,
    "llama-2-7b": _LLAMA_7B,
    "llama-13b": _LLAMA_13B,
    "llama-2-13b": _LLAMA_13B,
    "meta-llama-3-8b": _LLAMA3_8B,
    "meta-llama-3.1-8b": _LLAMA3_8B,
    "llama-3.1-8b": _LLAMA3_8B,
    "llama-3.2-1b": _published("llama", 2048, 8192, 16, 32, 8, 128256, tied=True),
    "llama-3.2-3b": _published("llama", 3072, 8192, 28, 24, 8, 128256, tied=True),
    "qwen2.5-0.5b": _published("qwen2", 896, 4864, 24, 14, 2, 151936, tied=True),
    "qwen2.5-1.5b": _published("qwen2", 1536, 8960, 28, 12, 2, 151936, tied=True),
    "qwen2.5-3b": _published("qwen2", 2048, 11008, 36, 16, 2, 151936, tied=True),
    "qwen2.5-7b": _published("qwen2", 3584, 18944, 28, 28, 4, 152064),
    "qwen2.5-14b": _published("qwen2", 5120, 13824, 48, 40, 8, 152064),
    "qwen2.5-32b": _published("qwen2", 5120, 27648, 64, 40, 8, 152064),
    "qwen3-0.6b": _published("qwen3", 1024, 3072, 28, 16, 8, 151936, tied=True),
    "qwen3-1.7b": _published("qwen3", 2048, 6144, 28, 16, 8, 151936, tied=True),
    "qwen3-4b": _published("qwen3", 2560, 9728, 36, 32, 8, 151936, tied=True),
    "qwen3-8b": _published("qwen3", 4096, 12288, 36, 32, 8, 151936),
    "qwen3-14b": _published("qwen3", 5120, 17408, 40, 40, 8, 151936),
    "yi-6b": _YI_6B,
    "yi-9b": replace(_YI_6B, layers=48),
    "yi-34b": _published("llama", 7168, 20480, 60, 56, 8, 64000),
}


def of_name(reference: str) -> Shape | None:
    """The shape of a model whose published name is known: a hub id, or a folder that is called like it."""
    name = reference.rstrip("/").rsplit("/", 1)[-1].lower()
    for ending in ("-hf", "-instruct", "-chat", "-base"):
        name = name.removesuffix(ending)
    return _KNOWN.get(name.replace("yi-1.5-", "yi-"))
