"""The question that the models answer at the end of a stage: the document's, never one of the data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_support import stage_inputs, tiny_base
from zhongjing.config.resolve import recipe, resolve
from zhongjing.config.stages import Stage
from zhongjing.data.records import Turn
from zhongjing.train.job import sample_answers, worker
from zhongjing.train.stages.inputs import StageInputs


class Untouched:
    """Records that a patient may have written: nothing may look at them."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the data was looked at: {name}")

    def __len__(self) -> int:
        raise AssertionError("the data was looked at")


def inputs_of(base: Path) -> StageInputs:
    records: Any = Untouched()
    return stage_inputs(base, records, records)


def rank(question: str | None, base: Path) -> tuple[worker._Rank, StageInputs]:
    """What the last act of a stage needs of a rank."""
    document = resolve(recipe("tiny"))
    spec = document.spec.model_copy(update={"question": question})
    made = object.__new__(worker._Rank)
    request: Any = type("Request", (), {})()
    request.stage, request.document = Stage.SFT, document.model_copy(update={"spec": spec})
    made.request, made.device = request, torch.device("cpu")
    made.settings = document.spec.stages.sft  # type: ignore[assignment]
    return made, inputs_of(base)


def test_the_closing_question_is_the_documents_and_never_a_held_out_patients(tmp_path: Path) -> None:
    base = tiny_base(tmp_path / "base")
    silent, place = rank(None, base)
    assert silent._answers(base, place) == {}
    asking, place = rank("感冒怎么办？", base)
    answers = asking._answers(base, place)["answers"]
    assert answers["question"] == "感冒怎么办？"
    assert set(answers) == {"question", "base", "sft"}


@pytest.mark.parametrize("system", [None, "你是医生"])
def test_the_closing_question_stands_behind_the_stages_system_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, system: str | None
) -> None:
    asked: list[tuple[Turn, ...]] = []
    monkeypatch.setattr(sample_answers, "load_base", lambda *_, **__: torch.nn.Identity())

    def answer(_model: object, _tokenizer: object, turns: tuple[Turn, ...], **_: object) -> str:
        asked.append(turns)
        return ""

    monkeypatch.setattr(sample_answers, "answer", answer)
    base = tiny_base(tmp_path / "base")

    def ask(question: str) -> dict[str, str]:
        return sample_answers.sample_answers(
            inputs_of(base),
            base,
            question,
            system,
            stage=Stage.SFT,
            dtype=torch.float32,
            max_new_tokens=8,
        )

    assert ask("感冒怎么办？")
    assert {tuple(turn.content for turn in turns) for turns in asked} == {
        ("感冒怎么办？",) if system is None else ("你是医生", "感冒怎么办？")
    }
    assert ask("问" * 4000) == {}, "no room for an answer ends no stage"
