"""One held-out question answered by the models before and after a stage: the look that no metric replaces."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedTokenizerBase

from zhongjing.config.stages import Stage
from zhongjing.data.records import Role, Turn
from zhongjing.data.samples import SampleSet
from zhongjing.data.templates import chat_format
from zhongjing.model.adapters import load_adapter
from zhongjing.model.base import load_base, load_config
from zhongjing.model.generation import answer
from zhongjing.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from zhongjing.train.programs import Local

# Beyond this the second copy of the base that answering needs may not fit beside the trained model.
_LARGEST_BASE_BYTES = 2 * 2**30
_SAMPLES_LOOKED_AT = 200
_QUESTION_ROLES: tuple[tuple[Role, ...], ...] = (("system", "user"), ("user",))


def sample_answers(
    local: Local, result: Path, *, stage: Stage, dtype: torch.dtype, max_new_tokens: int
) -> dict[str, str]:
    """Greedy answers of base, sft and ppo (as far as they exist) to the first held-out question of one turn.

    Args:
        local: the stage's folders and splits.
        result: the stage's model folder.
        stage: SFT or PPO.
        dtype: number format to answer in.
        max_new_tokens: longest answer; less where the model has no positions for it.

    Returns:
        ``question`` and an answer by model; nothing where the base is large or there is no such question.
    """
    size = sum(file.stat().st_size for file in local.base.glob("*.safetensors"))
    if size > _LARGEST_BASE_BYTES:
        return {}
    tokenizer = load_tokenizer(local.tokenizer)
    question = next(_questions(local.validation, tokenizer), None)
    if question is None:
        return {}
    positions = getattr(load_config(local.base), "max_position_embeddings", None)
    if isinstance(positions, int):
        messages = [{"role": turn.role, "content": turn.content} for turn in question]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        max_new_tokens = min(max_new_tokens, positions - len(ids))  # a look must not end the stage

    def ask(base: Path, adapter: Path | None = None) -> str:
        model = load_base(base, dtype=dtype, device=local.device)
        asked: torch.nn.Module = model if adapter is None else load_adapter(model, adapter, "answer")
        return answer(asked, tokenizer, question, max_new_tokens=max_new_tokens)

    answers = {"question": question[-1].content, "base": ask(local.base)}
    if stage is Stage.PPO:
        if local.adapter is not None:
            answers["sft"] = ask(local.base, local.adapter)
        answers["ppo"] = ask(local.base, result)
    elif (result / "adapter_config.json").is_file():
        answers["sft"] = ask(local.base, result)
    else:
        answers["sft"] = ask(result)
    return answers


def _questions(samples: SampleSet, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Turn, ...]]:
    """Held-out questions of a single turn, with the system turn before them, read back from their tokens."""
    form = chat_format(tokenizer)
    # A template may write the system turn into the user's: so the longer reading comes first.
    kinds = [(roles, form.prompt_pieces(roles)) for roles in _QUESTION_ROLES]
    for index in range(min(len(samples), _SAMPLES_LOOKED_AT)):
        segment = samples.fetch([index])[0].segments[0]
        # A dialogue's prompt ends where its first answer begins; a PPO prompt has no targets.
        prompt = itertools.takewhile(lambda pair: not pair[1], zip(segment.ids, segment.target, strict=True))
        text = str(tokenizer.decode([int(token) for token, _ in prompt], skip_special_tokens=False))
        for roles, pieces in kinds:
            contents = None if pieces is None else _contents(text, pieces)
            if contents is not None:
                yield tuple(Turn(role, content) for role, content in zip(roles, contents, strict=True))
                break


def _contents(text: str, pieces: tuple[str, ...]) -> list[str] | None:
    """What stands between ``pieces`` in ``text``; None where it is not of that form, or of more turns."""
    begin, *between, end = pieces
    if not (text.startswith(begin) and text.endswith(end)) or len(text) < len(begin) + len(end):
        return None
    rest, contents = text[len(begin) : len(text) - len(end)], []
    for piece in between:
        content, found, rest = rest.partition(piece)
        if not found:
            return None
        contents.append(content)
    contents.append(rest)
    return None if any(piece and piece in content for content in contents for piece in pieces) else contents
