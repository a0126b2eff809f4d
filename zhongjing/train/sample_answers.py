"""One held-out question answered by the models before and after a stage: the look that no metric replaces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from zhongjing.config.stages import Stage
from zhongjing.data.records import Turn
from zhongjing.data.templates import chat_format
from zhongjing.model.adapters import load_adapter
from zhongjing.model.base import load_base
from zhongjing.model.generation import answer
from zhongjing.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from zhongjing.train.programs import Local

# Beyond this the second copy of the base that answering needs may not fit beside the trained model.
_LARGEST_BASE_BYTES = 2 * 2**30
_SAMPLES_LOOKED_AT = 200


def sample_answers(
    local: Local, result: Path, *, stage: Stage, dtype: torch.dtype, max_new_tokens: int
) -> dict[str, str]:
    """Greedy answers of base, sft and ppo (as far as they exist) to the first held-out question of one turn.

    Args:
        local: the stage's folders and splits.
        result: the stage's model folder.
        stage: SFT or PPO.
        dtype: number format to answer in.
        max_new_tokens: longest answer.

    Returns:
        ``question`` and an answer by model; nothing where the base is large or there is no such question.
    """
    size = sum(file.stat().st_size for file in local.base.glob("*.safetensors"))
    if size > _LARGEST_BASE_BYTES:
        return {}
    tokenizer = load_tokenizer(local.tokenizer)
    question = next(_questions(local, tokenizer), None)
    if question is None:
        return {}

    def ask(base: Path, adapter: Path | None = None) -> str:
        model = load_base(base, dtype=dtype)
        asked: torch.nn.Module = model if adapter is None else load_adapter(model, adapter, "answer")
        asked.to(local.device)
        return answer(asked, tokenizer, (Turn("user", question),), max_new_tokens=max_new_tokens)

    answers = {"question": question, "base": ask(local.base)}
    if stage is Stage.PPO:
        if local.adapter is not None:
            answers["sft"] = ask(local.base, local.adapter)
        answers["ppo"] = ask(local.base, result)
    elif (result / "adapter_config.json").is_file():
        answers["sft"] = ask(local.base, result)
    else:
        answers["sft"] = ask(result)
    return answers


def _questions(local: Local, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Held-out questions of a single turn, read back from their tokens."""
    pieces = chat_format(tokenizer).prompt_pieces(("user",))
    if pieces is None:
        return
    begin, end = pieces
    for index in range(min(len(local.validation), _SAMPLES_LOOKED_AT)):
        segment = local.validation.fetch([index])[0].segments[0]
        # A dialogue's prompt ends where its first answer begins; a PPO prompt has no targets.
        prompt = itertools.takewhile(lambda pair: not pair[1], zip(segment.ids, segment.target, strict=True))
        text = str(tokenizer.decode([int(token) for token, _ in prompt], skip_special_tokens=False))
        if text.startswith(begin) and text.endswith(end):
            question = text[len(begin) : len(text) - len(end)]
            if begin not in question and end not in question:
                yield question
