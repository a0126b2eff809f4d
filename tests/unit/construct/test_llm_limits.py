"""Pace and budget, by a clock of the test's."""

from __future__ import annotations

import asyncio

import pytest

from zhongjing.codes import language_model as codes
from zhongjing.construct.llm.limits import Budget, Limits, Pace, Prices, Tokens
from zhongjing.errors import ConfigError, LanguageModelError

PRICES = Prices(prompt=1.0, completion=2.0, currency="CNY")


def sent_within(pace: Pace, now: list[float], seconds: float, tokens: int) -> int:
    """How many requests a sender that waits as it is told gets through."""
    start, sent = now[0], 0
    while True:
        now[0] += pace.delay(tokens)
        if now[0] - start > seconds:
            return sent
        sent += 1


@pytest.mark.parametrize(
    ("limits", "tokens", "most"),
    [
        (Limits(requests_per_minute=60), 10, 60),
        (Limits(tokens_per_minute=6000), 100, 60),
        (Limits(requests_per_minute=600, tokens_per_minute=6000), 1000, 6),
    ],
)
def test_no_more_is_sent_than_allowed(limits: Limits, tokens: int, most: int) -> None:
    now = [0.0]
    pace = Pace(limits, lambda: now[0])
    sent = sent_within(pace, now, 60, tokens)
    assert most * 0.9 <= sent <= most * 1.1 + 1  # the burst is a tenth of a minute
    assert most * 0.9 <= sent_within(pace, now, 60, tokens) <= most + 1


def test_tokens_of_answers_count_as_well() -> None:
    now = [0.0]
    pace = Pace(Limits(tokens_per_minute=6000), lambda: now[0])
    sent = 0
    while now[0] <= 120:
        now[0] += pace.delay(100)
        pace.correct(200)  # it took 300
        sent += 1
    assert 36 <= sent <= 44  # 12,000 tokens in two minutes


def test_a_pause_holds_for_every_request() -> None:
    now = [0.0]
    pace = Pace(Limits(), lambda: now[0])
    assert pace.delay(1) == 0
    pace.pause(7)
    pace.pause(3)
    assert pace.delay(1) == 7


def test_a_budget_is_never_exceeded_and_room_is_waited_for() -> None:
    async def run() -> None:
        budget = Budget(Limits(budget=10, prices=PRICES), Tokens(4_000_000, 0))
        most = Tokens(1_000_000, 1_000_000)  # 3.0
        await budget.reserve(most)
        await budget.reserve(most)  # 4 + 6 = 10: just fits
        third = asyncio.ensure_future(budget.reserve(most))
        await asyncio.sleep(0)
        assert not third.done()
        await budget.settle(most, Tokens(0, 0))  # it cost nothing
        await third
        await budget.settle(most, most)
        await budget.settle(most, most)
        assert PRICES.of(budget.spent) == 10
        with pytest.raises(LanguageModelError) as caught:
            await budget.reserve(Tokens(1, 0))
        assert caught.value.code is codes.BUDGET_SPENT
        assert "10.0000 of 10.0000 CNY" in caught.value.message

    asyncio.run(run())


def test_limits_that_cannot_be() -> None:
    for wrong in ({"concurrency": 0}, {"requests_per_minute": -1.0}, {"budget": 5.0}):
        with pytest.raises(ConfigError):
            Limits(**wrong)


def test_processes_share_what_is_allowed() -> None:
    share = Limits(concurrency=8, requests_per_minute=60, budget=9, prices=PRICES).shared_by(3)
    assert (share.concurrency, share.requests_per_minute, share.budget, share.prices) == (2, 20, 3, PRICES)
