"""What a step will take, before anything is asked: requests, tokens, money, hours.

The texts of the requests are made as they will be sent. What is assumed: how many tokens a character is, how
long the answers are beside what they rewrite, how many tries fail, how long an answer takes. All of them are
settings, and after a run the account has what it really took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zhongjing.construct.llm.limits import Limits, Tokens
from zhongjing.construct.llm.model_step import ModelStep
from zhongjing.data.records import Record, record_texts


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Seconds are of one answer. How long an answer is the step says, unless ``growth`` does.

    ``growth``: characters of an answer for each of the record's; ``shortest_answer``: at least.
    """

    tokens_per_wide_character: float = 1.0  # of Chinese; newer tokenizers need 0.6 to 0.8
    tokens_per_narrow_character: float = 0.3
    growth: float | None = None
    shortest_answer: int | None = None
    failed_tries: float = 0.1  # of the requests, asked again
    seconds: float = 6.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """``records`` that were read, and of them ``asked`` for. ``money`` is None without prices."""

    records: int
    asked: int
    requests: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None
    currency: str | None
    hours: float


def tokens_of(text: str, assumptions: Assumptions) -> float:
    """About how many tokens a text is."""
    wide = sum(not character.isascii() for character in text)
    narrow = len(text) - wide
    return wide * assumptions.tokens_per_wide_character + narrow * assumptions.tokens_per_narrow_character


class Estimator:
    """Estimates a step over records that are read once; nothing is asked and nothing stored.

    Args:
        step: that will be run.
        assumptions: what is not known beforehand.
    """

    def __init__(self, step: ModelStep, assumptions: Assumptions = Assumptions()) -> None:
        self.step = step
        self._assumptions = assumptions
        self._growth = step.growth if assumptions.growth is None else assumptions.growth
        shortest = assumptions.shortest_answer
        self._shortest = step.shortest_answer if shortest is None else shortest
        self._seen = self._asked = self._questions = 0
        self._prompt = self._completion = 0.0

    def add(self, record: Record) -> None:
        """Takes the next record."""
        self._seen += 1
        openings = self.step.openings(record)
        if not openings:
            return
        self._asked += 1
        self._questions += len(openings)
        for messages in openings:
            self._prompt += sum(tokens_of(message["content"], self._assumptions) + 8 for message in messages)
        text = "".join(record_texts(record))
        per_character = tokens_of(text, self._assumptions) / max(len(text), 1)
        characters = max(self._growth * len(text), self._shortest)
        one = min(characters * per_character, self.step.desk.sampling.max_tokens)
        self._completion += len(openings) * one

    def result(self, scale: float = 1.0) -> Estimate:
        """What the records will take, times ``scale``: that of all for a part of them."""
        again = 1 + self._assumptions.failed_tries
        requests = round(scale * self._questions * again)
        # A second try sends the first answer and the fault along.
        prompt = round(scale * (self._prompt * again + self._completion * self._assumptions.failed_tries))
        completion = round(scale * self._completion * again)
        limits = self.step.desk.limits
        prices = limits.prices
        return Estimate(
            records=round(scale * self._seen),
            asked=round(scale * self._asked),
            requests=requests,
            prompt_tokens=prompt,
            completion_tokens=completion,
            money=None if prices is None else prices.of(Tokens(prompt, completion)),
            currency=None if prices is None else prices.currency,
            hours=_minutes(requests, prompt + completion, limits, self._assumptions) / 60,
        )


def estimate(
    records: Iterable[Record],
    step: ModelStep,
    assumptions: Assumptions = Assumptions(),
) -> Estimate:
    """Estimates a step over records that are read once; nothing is asked and nothing stored."""
    estimator = Estimator(step, assumptions)
    for record in records:
        estimator.add(record)
    return estimator.result()


def _minutes(requests: int, tokens: int, limits: Limits, assumptions: Assumptions) -> float:
    """The slowest of what bounds the pace."""
    bounds = [requests * assumptions.seconds / 60 / limits.concurrency]
    if limits.requests_per_minute is not None:
        bounds.append(requests / limits.requests_per_minute)
    if limits.tokens_per_minute is not None:
        bounds.append(tokens / limits.tokens_per_minute)
    return max(bounds)
