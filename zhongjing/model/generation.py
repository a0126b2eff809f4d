"""Answers for people to read: the chat command and the table at the end of a run.

One token after the other with a key-value cache, for one dialogue at a time. PPO's rollouts are another
matter (``model/rollout.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from zhongjing.codes import data as data_codes
from zhongjing.codes import model as model_codes
from zhongjing.data.records import Turn
from zhongjing.errors import DataError
from zhongjing.model.tokenizer import end_ids

_INCOMPLETE = "\ufffd"  # what a decoder gives for the first bytes of a character


def answer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> str:
    """The model's answer to a dialogue; see :func:`stream_answer`."""
    pieces = stream_answer(
        model,
        tokenizer,
        turns,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
    )
    return "".join(pieces).strip()


def stream_answer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Turn],
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Iterator[str]:
    """Yields the answer piece by piece; every piece is whole characters, their join is the answer.

    Args:
        model: causal model, with or without adapters; put into evaluation mode and back.
        tokenizer: with a chat template.
        turns: the dialogue, a user turn last; the earliest turns go first if it does not fit the model.
        max_new_tokens: longest answer.
        temperature: 0 takes the likeliest token, anything above samples.
        top_p: part of the probability that is sampled from, the likeliest tokens first.
        seed: of the sampling; none: PyTorch's current random state.

    Raises:
        DataError: the turns do not end with the user's, or the last one alone does not fit the model.
    """
    if not turns or turns[-1].role != "user":
        raise DataError(
            "there is nothing to answer: the last turn must be the user's", code=data_codes.UNUSABLE_RECORD
        )
    config = cast("Any", model).config
    device = next(model.parameters()).device
    ids = _prompt_ids(
        tokenizer, turns, int(getattr(config, "max_position_embeddings", 2**31)), max_new_tokens
    )
    generator = None
    if seed is not None:
        generator = torch.Generator(device=device).manual_seed(seed)
    ends = {*end_ids(tokenizer), *_own_ends(model)}
    was_training = model.training
    model.eval()
    try:
        produced: list[int] = []
        shown = ""
        for token in _tokens(model, torch.tensor([ids], device=device), temperature, top_p, generator):
            if token in ends:
                break
            produced.append(token)
            text = cast("str", tokenizer.decode(produced, skip_special_tokens=True))
            if not text.endswith(_INCOMPLETE) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
            if len(produced) >= max_new_tokens:
                break
        rest = cast("str", tokenizer.decode(produced, skip_special_tokens=True)).rstrip(_INCOMPLETE)
        if len(rest) > len(shown):
            yield rest[len(shown) :]
    finally:
        model.train(was_training)


def _own_ends(model: torch.nn.Module) -> list[int]:
    """Ends that the model's generation_config names; its publisher may know more than its tokenizer tells."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return [end for end in (named if isinstance(named, list) else [named]) if isinstance(end, int)]


def _prompt_ids(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[Turn], positions: int, max_new_tokens: int
) -> list[int]:
    """Tokens of the dialogue and the opening of the answer, within ``positions - max_new_tokens``."""
    room = positions - max_new_tokens
    system = [turn for turn in turns if turn.role == "system"]
    rest = [turn for turn in turns if turn.role != "system"]
    while True:
        messages = [{"role": turn.role, "content": turn.content} for turn in (*system, *rest)]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        if len(ids) <= room:
            return list(cast("list[int]", ids))
        if len(rest) <= 1:
            raise DataError(
                f"the question is {len(ids)} tokens long, the model has room for {room} beside the answer",
                code=model_codes.TOO_LONG_FOR_MODEL,
                remedy="ask a shorter question, or allow fewer new tokens (chat: --max-new-tokens)",
            )
        rest = rest[2:]


@torch.no_grad()
def _tokens(
    model: torch.nn.Module,
    ids: torch.Tensor,
    temperature: float,
    top_p: float,
    generator: torch.Generator | None,
) -> Iterator[int]:
    cache: Any = None
    while True:
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = output.past_key_values
        token = _choose(output.logits[0, -1].float(), temperature, top_p, generator)
        yield token
        ids = torch.tensor([[token]], device=ids.device)


def _choose(logits: torch.Tensor, temperature: float, top_p: float, generator: torch.Generator | None) -> int:
    """One token from logits [vocabulary]."""
    if temperature <= 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits / temperature, dim=-1)
    if top_p < 1:
        ordered, order = probabilities.sort(descending=True)
        ordered[ordered.cumsum(0) - ordered >= top_p] = 0
        probabilities = torch.zeros_like(probabilities).scatter(0, order, ordered)
    return int(torch.multinomial(probabilities, 1, generator=generator))
