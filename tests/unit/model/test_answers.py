"""Answers in batches: as the chat command gives them, and independent of what is asked beside them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.ppo_support import shake
from zhongjing.config.stages import Lora
from zhongjing.data.records import Turn
from zhongjing.errors import DataError
from zhongjing.model.adapters import add_lora, load_adapter, save_adapter
from zhongjing.model.answers import Answerer
from zhongjing.model.base import load_base
from zhongjing.model.generation import answer
from zhongjing.model.questions import Answer, Question
from zhongjing.model.tokenizer import load_tokenizer

ASKED = ["感冒应当怎么办？", "高血压吃什么？", "胃炎患者常有上腹痛，可到哪里做胃镜检查？"]
HISTORY = (Turn("user", "我咳嗽。"), Turn("assistant", "多久了？"), Turn("user", "两天。"))


def turns(text: str) -> tuple[Turn, ...]:
    return (Turn("user", text),)


@pytest.fixture(scope="module")
def folders(
    base_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    base = base_folder("qwen2")
    adapter = tmp_path_factory.mktemp("adapter")
    lora = Lora.model_validate({"rank": 4, "alpha": 8.0, "dropout": 0.0})
    model = add_lora(load_base(base, dtype=torch.float32), lora, "default", 5)
    shake(model, 6)
    save_adapter(model, adapter, str(base))
    return base, adapter


def answerer(
    base: Path, adapter: Path | None, new: int = 12, length: int = 128, system: str | None = None
) -> Answerer:
    return Answerer(
        base,
        adapter,
        base,
        device=torch.device("cpu"),
        dtype=torch.float32,
        max_length=length,
        max_new_tokens=new,
        system_prompt=system,
    )


@pytest.mark.parametrize("with_adapter", [True, False])
def test_greedy_answers_are_those_of_chat(folders: tuple[Path, Path], with_adapter: bool) -> None:
    base, adapter = folders
    model, tokenizer = load_base(base, dtype=torch.float32), load_tokenizer(base)
    asked = load_adapter(model, adapter, "answer") if with_adapter else model
    prompts = [*map(turns, ASKED), HISTORY]
    expected = [answer(asked, tokenizer, prompt, max_new_tokens=12) for prompt in prompts]
    made = answerer(base, adapter if with_adapter else None).answer([Question(p, 0, 0.0) for p in prompts])
    assert [each.text if each else None for each in made] == expected
    assert len(set(expected)) > 1 or not with_adapter  # a random base says the same to everybody


def test_an_answer_depends_on_its_own_seed_and_temperature_alone(folders: tuple[Path, Path]) -> None:
    model = answerer(*folders)
    asked = [
        Question(turns(text), seed, temperature)
        for text in ASKED
        for seed, temperature in [(1, 0.7), (2, 1.0), (3, 1.3)]
    ]
    together = model.answer(asked)
    assert together == [model.answer([question])[0] for question in asked]
    assert together[::-1] == model.answer(asked[::-1])
    assert len({each.text for each in together if each}) == len(asked)


def test_the_earliest_turns_give_way_and_what_cannot_fit_has_no_answer(folders: tuple[Path, Path]) -> None:
    base, adapter = folders
    long = (*HISTORY[:2], *HISTORY[:2], Turn("user", ASKED[0]))
    model = answerer(base, adapter, length=56)
    short, cut = model.answer([Question(turns(ASKED[0]), 4), Question(long, 4)])
    assert isinstance(short, Answer)
    assert cut == short
    unanswerable = (Turn("system", "你是一位医生。" * 9), *turns(ASKED[0]))
    assert model.answer([Question(unanswerable, 4)]) == [None]
    with pytest.raises(DataError, match="leave a prompt fewer than 8 of the 16 tokens"):
        answerer(base, adapter, length=16)


def test_the_system_turn_is_shown(folders: tuple[Path, Path]) -> None:
    question = [Question(turns(ASKED[0]), 0, 0.0)]
    assert answerer(*folders).answer(question) != answerer(*folders, system="你是医生。").answer(question)
