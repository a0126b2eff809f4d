"""How fast and how much may be asked: requests and tokens a minute, concurrency, money.

The pace is a token bucket of a minute's allowance that starts with a tenth of it: no server sees a minute's
requests in its first second. A budget is checked with what a request can cost at most, so it is never
exceeded; what requests really cost is put in once they are answered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from zhongjing.codes import language_model as codes
from zhongjing.errors import ConfigError, LanguageModelError

_BURST = 0.1  # part of a minute's allowance that may be used at once
_FRAMING = 16  # tokens that a chat template puts around a message, at most


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of a request (``prompt``) and of its answer (``completion``), or sums of them."""

    prompt: int = 0
    completion: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt + other.prompt, self.completion + other.completion)

    def __sub__(self, other: Tokens) -> Tokens:
        return Tokens(self.prompt - other.prompt, self.completion - other.completion)

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt + self.completion


@dataclass(frozen=True, slots=True)
class Prices:
    """Money for a million tokens, as the server's operator charges; the user gives them."""

    prompt: float
    completion: float
    currency: str = "USD"

    def __post_init__(self) -> None:
        if min(self.prompt, self.completion) < 0:
            raise ConfigError("a price is below 0", code=codes.INVALID_MODEL_SERVER, where="prices")

    def of(self, tokens: Tokens) -> float:
        """What the tokens cost."""
        return (tokens.prompt * self.prompt + tokens.completion * self.completion) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """What one process may ask. ``None`` is no limit.

    ``budget``: money for this work, resumed runs and requests lost by kills included; needs ``prices``.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    budget: float | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        positive = {
            "concurrency": self.concurrency,
            "requests a minute": self.requests_per_minute,
            "tokens a minute": self.tokens_per_minute,
        }
        for name, value in positive.items():
            if value is not None and value <= 0:
                raise ConfigError("the limit is not above 0", code=codes.INVALID_MODEL_SERVER, where=name)
        if self.budget is not None and self.prices is None:
            raise ConfigError(
                "a budget needs the prices of a million tokens, in and out",
                code=codes.INVALID_MODEL_SERVER,
                where="budget",
            )

    def shared_by(self, processes: int) -> Limits:
        """The share of one of several processes that ask at the same time."""
        divided = {
            name: None if value is None else value / processes
            for name, value in (
                ("requests_per_minute", self.requests_per_minute),
                ("tokens_per_minute", self.tokens_per_minute),
                ("budget", self.budget),
            )
        }
        return replace(self, concurrency=max(1, self.concurrency // processes), **divided)  # type: ignore[arg-type]


def most_tokens(texts: list[str]) -> int:
    """A bound on the tokens of a request: no tokenizer of bytes makes more tokens than there are bytes."""
    return sum(len(text.encode()) + _FRAMING for text in texts)


class _Bucket:
    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._rate = per_minute / 60
        # A request that is larger than the burst must get through as well: the level may go below 0.
        self._size = max(per_minute * _BURST, 1.0)
        self._level = self._size
        self._clock = clock
        self._at = clock()

    def wait(self, amount: float) -> float:
        """Takes ``amount`` out; seconds until it is covered."""
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._at) * self._rate) - amount
        self._at = now
        return max(0.0, -self._level / self._rate)


class Pace:
    """Lets requests through at the rates allowed, and none while the server wants a pause."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._requests = _bucket(limits.requests_per_minute, clock)
        self._tokens = _bucket(limits.tokens_per_minute, clock)
        self._paused_until = clock()

    def delay(self, tokens: int) -> float:
        """Books a request of about ``tokens``; seconds until it may be sent."""
        waits = [self._paused_until - self._clock(), 0.0]
        if self._requests is not None:
            waits.append(self._requests.wait(1))
        if self._tokens is not None:
            waits.append(self._tokens.wait(tokens))
        return max(waits)

    async def admit(self, tokens: int, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep) -> None:
        """Returns when a request of about ``tokens`` may be sent; what ``sleep`` raises ends the wait."""
        await sleep(self.delay(tokens))
        while (left := self._paused_until - self._clock()) > 0:
            await sleep(left)

    def correct(self, tokens: int) -> None:
        """Books what a request took beyond what was booked for it (below 0: what it did not take)."""
        if self._tokens is not None:
            self._tokens.wait(tokens)

    def pause(self, seconds: float) -> None:
        """Nothing is sent for so long: the server has asked for it."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)


def _bucket(per_minute: float | None, clock: Callable[[], float]) -> _Bucket | None:
    return None if per_minute is None else _Bucket(per_minute, clock)


class Budget:
    """Reserves what a request can cost before it is sent. For the tasks of one event loop."""

    def __init__(self, limits: Limits, spent: Tokens = Tokens()) -> None:
        self._limits = limits
        self._spent = spent
        self._reserved = Tokens()
        self._settled = asyncio.Condition()

    @property
    def spent(self) -> Tokens:
        """What answered and lost requests of this work took."""
        return self._spent

    def _fits(self, tokens: Tokens) -> bool:
        budget, prices = self._limits.budget, self._limits.prices
        return budget is None or prices is None or prices.of(tokens) <= budget + 1e-9

    async def reserve(self, most: Tokens) -> None:
        """Returns when a request of at most ``most`` fits in; requests under way may make room for it.

        Raises:
            LanguageModelError: it does not fit in (``BudgetSpent``).
        """
        async with self._settled:
            while not self._fits(self._spent + self._reserved + most):
                if self._reserved == Tokens():
                    prices, budget = self._limits.prices, self._limits.budget
                    assert prices is not None
                    raise LanguageModelError(
                        f"{prices.of(self._spent):.4f} of {budget:.4f} {prices.currency} are spent, "
                        f"and the next request may cost {prices.of(most):.4f}",
                        code=codes.BUDGET_SPENT,
                        where="budget",
                    )
                await self._settled.wait()
            self._reserved += most

    async def settle(self, most: Tokens, used: Tokens) -> None:
        """Puts what a request took in place of what was reserved for it."""
        async with self._settled:
            self._reserved -= most
            self._spent += used
            self._settled.notify_all()
