from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from zhongjing.data.records import Turn
from zhongjing.errors import DataError
from zhongjing.model.base import load_base
from zhongjing.model.generation import answer, stream_answer
from zhongjing.model.tokenizer import load_tokenizer

QUESTION = [Turn("user", "感冒应当怎么办？")]


@pytest.fixture(scope="module")
def model_and_tokenizer(
    base_folder: Callable[[str], Path],
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model that has learnt one answer by heart, in a few steps."""
    folder = base_folder("llama")
    model, tokenizer = load_base(folder, dtype=torch.float32), load_tokenizer(folder)
    messages = [
        {"role": "user", "content": QUESTION[0].content},
        {"role": "assistant", "content": "多喝水😀，注意休息。"},
    ]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    batch = torch.tensor([ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    torch.manual_seed(0)
    for _ in range(60):
        optimizer.zero_grad()
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
    return model, tokenizer


def test_it_answers_and_stops_at_the_turns_end(
    model_and_tokenizer: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    assert answer(*model_and_tokenizer, QUESTION, max_new_tokens=60) == "多喝水😀，注意休息。"


def test_the_stream_has_whole_characters_and_the_same_text(
    model_and_tokenizer: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    pieces = list(stream_answer(*model_and_tokenizer, QUESTION, max_new_tokens=60))
    assert "".join(pieces) == "多喝水😀，注意休息。"
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_greedy_equals_transformers_generate(
    model_and_tokenizer: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = model_and_tokenizer
    turns = [Turn("user", "高血压"), Turn("assistant", "是"), Turn("user", "胃炎？")]
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    ids = torch.tensor(
        [tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)]
    )
    generating: Any = model
    theirs = generating.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False,
        eos_token_id=[0, 2],
    )  # fmt: skip
    wanted = str(tokenizer.decode(theirs[0, ids.shape[1] :], skip_special_tokens=True)).strip()
    assert answer(model, tokenizer, turns, max_new_tokens=20) == wanted.rstrip("\ufffd")


def test_sampling_is_a_function_of_the_seed(
    model_and_tokenizer: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    def sample(seed: int) -> str:
        return answer(*model_and_tokenizer, QUESTION, max_new_tokens=20, temperature=5.0, seed=seed)

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(4)}) > 1


def test_a_small_nucleus_is_greedy(
    model_and_tokenizer: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    sampled = answer(*model_and_tokenizer, QUESTION, max_new_tokens=60, temperature=1.5, top_p=1e-6, seed=3)
    assert sampled == "多喝水😀，注意休息。"


def test_the_earliest_turns_go_first_and_the_mode_is_kept(
    model_and_tokenizer: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    model, tokenizer = model_and_tokenizer
    history = [Turn("user", "胃" * 10), Turn("assistant", "好" * 10)] * 20
    model.train()
    try:
        text = answer(model, tokenizer, [*history, *QUESTION], max_new_tokens=30)
        assert model.training
    finally:
        model.eval()
    assert isinstance(text, str)
    with pytest.raises(DataError, match="room for 98"):
        answer(model, tokenizer, [Turn("user", "龘" * 200)], max_new_tokens=30)
    with pytest.raises(DataError, match="last turn"):
        answer(model, tokenizer, [Turn("user", "问"), Turn("assistant", "答")])
