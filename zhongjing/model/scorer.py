"""Scores answers with a trained reward model: the base, its adapter, and the head read at the last token."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from zhongjing.data.chat import Unfit, encode_ranking
from zhongjing.data.records import Turn
from zhongjing.data.samples import PackedRow
from zhongjing.data.templates import ensure_chat_template
from zhongjing.model.adapters import ADAPTER_WEIGHTS, read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.causal import segment_ends_hidden
from zhongjing.model.reward import head_rewards
from zhongjing.model.router import AdapterRouter, Part
from zhongjing.model.tokenizer import load_tokenizer

_ROLE = "reward"
_LONGEST = 4096  # tokens of a prompt with its answer, as in training (paper, section 4)


class Scorer:
    """A reward model on one device.

    Args:
        folder: of the reward model, as ``pull`` writes it: adapter with head, tokenizer, and the base that
            the adapter names.
        device: where it runs.
        dtype: number format of weights and activations; the head is fp32.
        system_prompt: system turn for prompts that have none.

    Raises:
        DataError: the folder is no reward model.
    """

    def __init__(
        self, folder: Path, *, device: torch.device, dtype: torch.dtype, system_prompt: str | None = None
    ) -> None:
        adapter = read_adapter(folder)
        self._head = adapter.reward_head().float().to(device)
        self._tokenizer = load_tokenizer(folder)
        ensure_chat_template(self._tokenizer)
        base = folder / str(adapter.config.get("base_model_name_or_path", "base"))
        self._model = load_base(base, dtype=dtype, device=device)
        self._router = AdapterRouter(self._model)
        self._router.add_file(_ROLE, adapter)
        self._router.define(_ROLE, [_ROLE])
        self._device = device
        positions = getattr(self._model.config, "max_position_embeddings", None)
        self._longest = min(_LONGEST, positions) if isinstance(positions, int) else _LONGEST
        self._system_prompt = system_prompt

    @torch.no_grad()
    def scores(self, prompt: Sequence[Turn], answers: Sequence[str]) -> list[float] | None:
        """The score of each answer; None where they do not fit the model."""
        encoded = encode_ranking(self._tokenizer, prompt, answers, self._longest, self._system_prompt)
        if isinstance(encoded, Unfit):
            return None
        row = PackedRow.of([segment.ids for segment in encoded.segments]).to(self._device)
        with self._router.open(Part(_ROLE)):
            last = segment_ends_hidden(self._model, row)
        return [float(score) for score in head_rewards(last, self._head)]


def fingerprint(folder: Path) -> str:
    """16 hex digits: a hash of the adapter's weights, head included."""
    with (folder / ADAPTER_WEIGHTS).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]
