"""Many answers of one trained model: what people, or a judge, rank.

Unlike :mod:`zhongjing.model.generation` it answers in batches, and unlike PPO's rollouts it gives text. An
answer depends on the weights, its prompt, its temperature and its seed, and not on what is asked beside it
(to rounding): so results do not depend on the number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch

from zhongjing.codes import model as codes
from zhongjing.config.stages import Quantization
from zhongjing.data.chat import Unfit, encode_prompt
from zhongjing.data.records import Turn
from zhongjing.data.templates import ensure_chat_template
from zhongjing.errors import DataError
from zhongjing.model.adapters import read_adapter
from zhongjing.model.base import load_base
from zhongjing.model.questions import Answer, Question
from zhongjing.model.rollout import CompactingEngine, Sampling
from zhongjing.model.router import AdapterRouter
from zhongjing.model.tokenizer import end_ids, load_tokenizer

_ROLE = "answer"
_INCOMPLETE = "\ufffd"  # what a decoder gives for the first bytes of a character: the limit may cut one
_SHORTEST_PROMPT = 8  # tokens that the answers' length must leave


class Answerer:
    """A trained model on one device.

    Args:
        base: folder of a full model.
        adapter: folder of the adapter that answers on it; none: the base itself.
        tokenizer: folder of the tokenizer with the chat template in use.
        device: where it runs.
        dtype: number format of weights and activations.
        quantization: how the base is stored.
        max_length: longest prompt with its answer, in tokens; at most the model's positions.
        max_new_tokens: longest answer, its end included.
        system_prompt: system turn for prompts that have none.
        cache_gib: memory of the answers that are made at a time; none: half of what is free.

    Raises:
        DataError: the model or the adapter cannot be used, or answers leave no room for a prompt.
    """

    def __init__(
        self,
        base: Path,
        adapter: Path | None,
        tokenizer: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        quantization: Quantization = "none",
        max_length: int,
        max_new_tokens: int,
        system_prompt: str | None = None,
        cache_gib: float | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(tokenizer)
        ensure_chat_template(self._tokenizer)
        model = load_base(base, dtype=dtype, quantization=quantization, device=device)
        self._router = AdapterRouter(model)
        if adapter is not None:
            self._router.add_file(_ROLE, read_adapter(adapter))
        self._router.define(_ROLE, [] if adapter is None else [_ROLE])
        positions = getattr(model.config, "max_position_embeddings", None)
        longest = min(max_length, positions) if isinstance(positions, int) else max_length
        self._room = longest - max_new_tokens
        if self._room < _SHORTEST_PROMPT:
            raise DataError(
                f"answers of {max_new_tokens} tokens leave a prompt fewer than {_SHORTEST_PROMPT} of the "
                f"{longest} tokens that there are",
                code=codes.TOO_LONG_FOR_MODEL,
                where="sampled.maxNewTokens",
                remedy="lower maxNewTokens",
            )
        self._max_new_tokens = max_new_tokens
        self._system_prompt = system_prompt
        self._stop_ids = tuple(end_ids(self._tokenizer))
        self._cache_bytes = None if cache_gib is None else int(cache_gib * 2**30)

    def answer(self, questions: Sequence[Question]) -> list[Answer | None]:
        """One answer to each question; None where the question does not fit the model.

        Of a dialogue that is too long the earliest turns are left out, as in training.
        """
        answers: list[Answer | None] = [None] * len(questions)
        ids = [self._prompt(question.turns) for question in questions]
        for temperature in sorted({question.temperature for question in questions}):
            rows = [
                row
                for row, question in enumerate(questions)
                if question.temperature == temperature and ids[row] is not None
            ]
            if not rows:
                continue
            sampling = Sampling(self._max_new_tokens, self._stop_ids, temperature)
            engine = CompactingEngine(self._router, _ROLE, sampling, cache_bytes=self._cache_bytes)
            made = engine.generate(
                [cast("Sequence[int]", ids[row]) for row in rows], [questions[row].seed for row in rows]
            )
            for place, row in enumerate(rows):
                length, ended = int(made.lengths[place]), bool(made.ended[place])
                tokens = made.tokens[place, : length - ended].tolist()
                text = cast("str", self._tokenizer.decode(tokens, skip_special_tokens=True))
                answers[row] = Answer(text.rstrip(_INCOMPLETE).strip(), length, ended)
        return answers

    def _prompt(self, turns: tuple[Turn, ...]) -> Sequence[int] | None:
        encoded = encode_prompt(self._tokenizer, turns, self._room, self._system_prompt)
        return None if isinstance(encoded, Unfit) else encoded.segments[0].ids.tolist()
