"""What a step will take, before anything is asked: requests, tokens, money, hours.

The texts of the requests are made as they will be sent. What is assumed: how many tokens a character is, how
long the answers are beside what they rewrite, how many tries fail, how long an answer takes. All of them are
settings, and after a run the account has what it really took.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from zhongjing.construct.llm.limits import Limits
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


def estimate(
    records: Iterable[Record],
    step: ModelStep,
    assumptions: Assumptions = Assumptions(),
) -> Estimate:
    """Estimates a step over records that are read once; nothing is asked and nothing stored."""
    seen = asked = 0
    prompt = completion = 0.0
    growth = step.growth if assumptions.growth is None else assumptions.growth
    shortest = step.shortest_answer if assumptions.shortest_answer is None else assumptions.shortest_answer
    for record in records:
        seen += 1
        messages = step.opening(record)
        if messages is None:
            continue
        asked += 1
        prompt += sum(tokens_of(message["content"], assumptions) + 8 for message in messages)
        text = "".join(record_texts(record))
        per_character = tokens_of(text, assumptions) / max(len(text), 1)
        characters = max(growth * len(text), shortest)
        completion += min(characters * per_character, step.desk.sampling.max_tokens)
    again = 1 + assumptions.failed_tries
    requests = round(asked * again)
    # A second try sends the first answer and the fault along.
    prompt_tokens = round(prompt * again + completion * assumptions.failed_tries)
    completion_tokens = round(completion * again)
    limits = step.desk.limits
    prices = limits.prices
    return Estimate(
        records=seen,
        asked=asked,
        requests=requests,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        money=None
        if prices is None
        else (prompt_tokens * prices.prompt + completion_tokens * prices.completion) / 1e6,
        currency=None if prices is None else prices.currency,
        hours=_minutes(requests, prompt_tokens + completion_tokens, limits, assumptions) / 60,
    )


def _minutes(requests: int, tokens: int, limits: Limits, assumptions: Assumptions) -> float:
    """The slowest of what bounds the pace."""
    bounds = [requests * assumptions.seconds / 60 / limits.concurrency]
    if limits.requests_per_minute is not None:
        bounds.append(requests / limits.requests_per_minute)
    if limits.tokens_per_minute is not None:
        bounds.append(tokens / limits.tokens_per_minute)
    return max(bounds)
