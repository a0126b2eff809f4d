"""K answers to each prompt, unlike each other, in an order that tells nothing: tasks for those who rank.

Every draw has a seed of its own, made of the set's seed, the prompt, the answer's place and the try. So a
prompt gets the same answers in whichever part of the work it is, on however many workers.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from zhongjing.config.sampled import Sampled
from zhongjing.data.split import normalise
from zhongjing.feedback.prompts import Asked
from zhongjing.feedback.tasks import CandidateAnswer, FeedbackTask, Message
from zhongjing.model.questions import Answer, Question

TRIES = 4
"""Draws of one answer before it is given up: the first, and three for one that is like another."""
LEAST_ANSWERS = 2

Ask = Callable[[Sequence[Question]], Sequence[Answer | None]]
"""Answers questions, one each; None where a question does not fit the model."""


@dataclass(slots=True)
class Tasks:
    """Tasks of some prompts, in the prompts' order, and what became of the rest.

    ``counts``: answers, resampled, missing, dropped, unended (:class:`zhongjing.feedback.tasks.TaskSet`), and
    tokens.
    """

    tasks: list[FeedbackTask] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Draw:
    """One answer on its way: of which prompt, which place among its answers, which try."""

    prompt: int
    place: int
    tried: int
    question: Question


def make_tasks(asked: Sequence[Asked], ask: Ask, sampled: Sampled, seed: int) -> Tasks:
    """Answers prompts.

    Args:
        asked: the prompts.
        ask: the model.
        sampled: how many answers, how warm, how different.
        seed: of answers and orders.
    """
    made = Tasks()
    kept: list[dict[int, tuple[Answer, Question]]] = [{} for _ in asked]
    fits = [True] * len(asked)

    def draw(prompt: int, place: int, tried: int) -> _Draw:
        temperature = sampled.temperatures[place % len(sampled.temperatures)]
        question = Question(asked[prompt].turns, _seed(seed, asked[prompt].key, place, tried), temperature)
        return _Draw(prompt, place, tried, question)

    draws = [draw(prompt, place, 0) for prompt in range(len(asked)) for place in range(sampled.k)]
    while draws:
        again: list[_Draw] = []
        for drawn, answer in zip(draws, ask([each.question for each in draws]), strict=True):
            if answer is None:
                fits[drawn.prompt] = False
                continue
            made.counts["tokens"] += answer.tokens
            others = [other.text for other, _ in kept[drawn.prompt].values()]
            if answer.text and not any(similarity(answer.text, o) > sampled.max_similarity for o in others):
                kept[drawn.prompt][drawn.place] = answer, drawn.question
            elif drawn.tried + 1 < TRIES:
                made.counts["resampled"] += 1
                again.append(draw(drawn.prompt, drawn.place, drawn.tried + 1))
            else:
                made.counts["missing"] += 1
        draws = again
    for prompt, answers, fitting in zip(asked, kept, fits, strict=True):
        if not fitting or len(answers) < LEAST_ANSWERS:
            made.counts["dropped"] += 1
            continue
        made.tasks.append(_task(prompt, [answers[place] for place in sorted(answers)], seed))
        made.counts["answers"] += len(answers)
        made.counts["unended"] += sum(not answer.ended for answer, _ in answers.values())
    return made


def similarity(one: str, other: str) -> float:
    """How like two texts are, 0 to 1: the part of their pairs of characters that they share (Dice).

    White space, width and case do not count.
    """
    first, second = _pairs(one), _pairs(other)
    size = first.total() + second.total()
    return 2 * (first & second).total() / size if size else 1.0


def _pairs(text: str) -> Counter[str]:
    plain = normalise(text)
    if len(plain) < 2:
        return Counter([plain])
    return Counter(plain[place : place + 2] for place in range(len(plain) - 1))


def _seed(*parts: int | str) -> int:
    digest = hashlib.blake2b(" ".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1  # as torch takes it


def _task(asked: Asked, answers: list[tuple[Answer, Question]], seed: int) -> FeedbackTask:
    order = list(answers)
    random.Random(_seed(seed, asked.key, "order")).shuffle(order)
    shown = [
        CandidateAnswer(
            id="abcdefgh"[place], text=answer.text, seed=question.seed, temperature=question.temperature
        )
        for place, (answer, question) in enumerate(order)
    ]
    prompt = [Message(role=turn.role, content=turn.content) for turn in asked.turns]
    return FeedbackTask.make(prompt, shown, asked.origin, asked.department)
