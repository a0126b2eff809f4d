"""Answers to rank: as many as asked for, unlike each other, the same however the work is cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from zhongjing.config.sampled import Sampled
from zhongjing.data.records import Turn
from zhongjing.feedback.prompts import Asked
from zhongjing.feedback.sampling import TRIES, make_tasks, similarity
from zhongjing.model.questions import Answer, Question


def prompts(count: int) -> list[Asked]:
    return [
        Asked(f"{index:016x}", (Turn("user", f"第{index}个问题"),), "in_distribution", "内科")
        for index in range(count)
    ]


def sampled(**fields: Any) -> Sampled:
    return Sampled.model_validate({"from": "sft", **fields})


def by_seed(questions: Sequence[Question]) -> list[Answer | None]:
    """A model whose answers share nothing but their first character."""
    return [Answer(f"答{question.seed:020d}"[:24], 7, ended=question.seed % 2 == 0) for question in questions]


def test_the_same_answers_however_the_work_is_cut() -> None:
    asked = prompts(6)
    whole = make_tasks(asked, by_seed, sampled(maxSimilarity=1.0), 3)
    parts = [make_tasks([each], by_seed, sampled(maxSimilarity=1.0), 3) for each in reversed(asked)]
    assert whole.tasks == [task for part in reversed(parts) for task in part.tasks]
    assert whole.counts["answers"] == 24
    assert whole.counts["tokens"] == 24 * 7
    other = make_tasks(asked, by_seed, sampled(maxSimilarity=1.0), 4)
    assert {task.id for task in whole.tasks}.isdisjoint(task.id for task in other.tasks)


def test_temperatures_take_turns_and_the_order_tells_nothing() -> None:
    settings = sampled(k=4, temperatures=[0.5, 1.5], maxSimilarity=1.0)
    made = make_tasks(prompts(200), by_seed, settings, 0)
    first = [task.answers[0].temperature for task in made.tasks]
    assert all(sorted(a.temperature for a in task.answers) == [0.5, 0.5, 1.5, 1.5] for task in made.tasks)
    assert 70 < first.count(0.5) < 130
    assert all([answer.id for answer in task.answers] == list("abcd") for task in made.tasks)


def test_what_is_shown_tells_neither_seed_nor_temperature_nor_origin() -> None:
    task = make_tasks(prompts(1), by_seed, sampled(maxSimilarity=1.0), 0).tasks[0]
    shown = json.dumps(task.shown())
    assert set(task.shown()) == {"id", "prompt", "answers"}
    assert set(task.shown()["answers"][0]) == {"id", "text"}
    assert "temperature" not in shown


def test_answers_that_are_alike_are_drawn_again_and_given_up_after_some_tries() -> None:
    asked: list[int] = []

    def stubborn(questions: Sequence[Question]) -> list[Answer | None]:
        asked.append(len(questions))
        texts = ["多喝水，注意休息。", "多喝水，注意休息！", "建议到呼吸内科就诊。"]
        return [Answer(texts[min(place, 2)], 5, ended=True) for place, _ in enumerate(questions)]

    made = make_tasks(prompts(1), stubborn, sampled(k=3, maxSimilarity=0.7), 0)
    assert asked == [3, 1, 1, 1]
    assert len(asked) == TRIES
    assert sorted(answer.text for answer in made.tasks[0].answers) == [
        "多喝水，注意休息。",
        "建议到呼吸内科就诊。",
    ]
    assert made.counts == {"tokens": 30, "resampled": 3, "missing": 1, "answers": 2, "unended": 0}


def test_an_empty_answer_is_none_and_a_prompt_with_one_answer_is_left_out() -> None:
    def mute(questions: Sequence[Question]) -> list[Answer | None]:
        return [Answer("" if place else "一个答案", 1, ended=True) for place, _ in enumerate(questions)]

    made = make_tasks(prompts(1), mute, sampled(k=2), 0)
    assert made.tasks == []
    assert made.counts["dropped"] == 1


def test_a_prompt_that_does_not_fit_is_left_out() -> None:
    def short(questions: Sequence[Question]) -> list[Answer | None]:
        return [None if "第1个" in q.turns[0].content else by_seed([q])[0] for q in questions]

    made = make_tasks(prompts(3), short, sampled(maxSimilarity=1.0), 0)
    assert [task.prompt[0].content for task in made.tasks] == ["第0个问题", "第2个问题"]
    assert made.counts["dropped"] == 1


@pytest.mark.parametrize(
    ("one", "other", "low", "high"),
    [
        ("多喝水，注意休息。", "多 喝 水，注意休息。", 1.0, 1.0),
        ("多喝水，注意休息。", "多喝水，注意休息！", 0.8, 0.95),
        ("多喝水，注意休息。", "建议到呼吸内科就诊。", 0.0, 0.1),
        ("", "", 1.0, 1.0),
        ("是", "是", 1.0, 1.0),
        ("是", "否", 0.0, 0.0),
    ],
)
def test_similarity(one: str, other: str, low: float, high: float) -> None:
    assert low <= similarity(one, other) <= high
