"""One question answered by the models before and after a stage: the look that no metric replaces.

The document gives the question. None is taken from the data: manifests are kept, copied and shown, and a
held-out question may be a patient's.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from zhongjing.config.stages import Stage
from zhongjing.data.records import Turn
from zhongjing.model.adapters import load_adapter
from zhongjing.model.base import load_base, load_config
from zhongjing.model.generation import answer
from zhongjing.model.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from zhongjing.train.stages.inputs import StageInputs

# Beyond this the second copy of the base that answering needs may not fit beside the trained model.
_LARGEST_BASE_BYTES = 2 * 2**30


def sample_answers(
    inputs: StageInputs,
    result: Path,
    question: str,
    system_prompt: str | None,
    *,
    stage: Stage,
    dtype: torch.dtype,
    max_new_tokens: int,
) -> dict[str, str]:
    """Greedy answers of base, sft and ppo (as far as they exist) to ``question``.

    Args:
        inputs: the stage's folders and device.
        result: the stage's model folder.
        question: the user's turn.
        system_prompt: the system turn before it, if the stage has one.
        stage: SFT or PPO.
        dtype: number format to answer in.
        max_new_tokens: longest answer; less where the model has no positions for it.

    Returns:
        ``question`` and an answer by model; nothing where the base is large or the question leaves no
        position for an answer.
    """
    size = sum(file.stat().st_size for file in inputs.base.glob("*.safetensors"))
    if size > _LARGEST_BASE_BYTES:
        return {}
    tokenizer = load_tokenizer(inputs.tokenizer)
    turns = (*([Turn("system", system_prompt)] if system_prompt else []), Turn("user", question))
    positions = getattr(load_config(inputs.base), "max_position_embeddings", None)
    if isinstance(positions, int):
        messages = [{"role": turn.role, "content": turn.content} for turn in turns]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        max_new_tokens = min(max_new_tokens, positions - len(ids))
        if max_new_tokens <= 0:
            return {}  # a look must not end the stage

    def ask(base: Path, adapter: Path | None = None) -> str:
        model = load_base(base, dtype=dtype, device=inputs.device)
        asked: torch.nn.Module = model if adapter is None else load_adapter(model, adapter, "answer")
        return answer(asked, tokenizer, turns, max_new_tokens=max_new_tokens)

    answers = {"question": question, "base": ask(inputs.base)}
    if stage is Stage.PPO:
        if inputs.adapter is not None:
            answers["sft"] = ask(inputs.base, inputs.adapter)
        answers["ppo"] = ask(inputs.base, result)
    elif (result / "adapter_config.json").is_file():
        answers["sft"] = ask(inputs.base, result)
    else:
        answers["sft"] = ask(result)
    return answers
