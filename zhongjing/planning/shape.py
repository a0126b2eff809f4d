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
        block = sum(a * b for a, b in self.linears) + 2 * self.hidden + biases
        return embeddings + self.layers * block + self.hidden

    def adapter_parameters(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every linear layer of the blocks (``all-linear``)."""
        return self.layers * rank * sum(a + b for a, b in self.linears)


def of_config(config: Mapping[str, Any]) -> Shape | None:
    """The shape that a config.json tells; None where it is no decoder of this kind."""
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        return Shape(
            hidden=hidden,
            intermediate=int(config["intermediate_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or hidden // heads),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", False)),
            biases=config.get("model_type") == "qwen2" or bool(config.get("attention_bias", False)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


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
    )


def _llama(hidden: int, intermediate: int, layers: int, heads: int, vocabulary: int = 32000) -> Shape:
    return Shape(hidden, intermediate, layers, heads, heads, hidden // heads, vocabulary, tied=False)


_LLAMA_13B = _llama(5120, 13824, 40, 40)

# As the publishers' config.json say, so that the planner answers offline.
_KNOWN: dict[str, Shape] = {
    "ziya-llama-13b-v1": replace(_LLAMA_13B, vocabulary=39424),
    "llama-7b": _llama(4096, 11008, 32, 32),
    "llama-2-7b": _llama(4096, 11008, 32, 32),
    "llama-13b": _LLAMA_13B,
    "llama-2-13b": _LLAMA_13B,
    "meta-llama-3-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256, tied=False),
    "llama-3.1-8b": Shape(4096, 14336, 32, 32, 8, 128, 128256, tied=False),
    "qwen2.5-0.5b": Shape(896, 4864, 24, 14, 2, 64, 151936, tied=True, biases=True),
    "qwen2.5-1.5b": Shape(1536, 8960, 28, 12, 2, 128, 151936, tied=True, biases=True),
    "qwen2.5-7b": Shape(3584, 18944, 28, 28, 4, 128, 152064, tied=False, biases=True),
    "qwen2.5-14b": Shape(5120, 13824, 48, 40, 8, 128, 152064, tied=False, biases=True),
    "qwen3-0.6b": Shape(1024, 3072, 28, 16, 8, 128, 151936, tied=True),
    "qwen3-8b": Shape(4096, 12288, 36, 32, 8, 128, 151936, tied=False),
}


def of_name(reference: str) -> Shape | None:
    """The shape of a model whose published name is known: a hub id, or a folder that is called like it."""
    name = reference.rstrip("/").rsplit("/", 1)[-1].lower()
    for ending in ("-instruct", "-chat", "-base", "-hf"):
        name = name.removesuffix(ending)
    return _KNOWN.get(name)
