"""Runs many questions at a time behind an interface of plain, synchronous steps.

A thread has the event loop. Records go in and outcomes come out in the same order; only a window of them is
in memory. When the run cannot go on, what is under way is still answered and stored before the error is told.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

from zhongjing.config.sources import Storage
from zhongjing.construct.access import opened
from zhongjing.construct.llm.author import Author
from zhongjing.construct.llm.client import ChatClient, Patience, StoppedError
from zhongjing.construct.llm.ledger import Account, Ledger
from zhongjing.construct.llm.limits import Limits, Pace
from zhongjing.construct.llm.server import Sampling, Server

R = TypeVar("R")
O = TypeVar("O")  # noqa: E741
_WINDOW = 4  # records in memory for each question that may be under way


@dataclass(frozen=True, slots=True)
class Desk:
    """All that a process needs to have answers written; may be pickled, and holds no secret.

    Attributes:
        server, sampling: which model, and how it is asked.
        limits, patience: of this process.
        storage: settings of the object store.
        ledger: where answers are (``s3://...``); may be shared by all work.
        account: names the piece of work whose money the budget is about.
        tries: answers asked for one record before it is quarantined.
        most_unusable: fraction of the records asked for that may be quarantined for want of a usable answer;
            above it the run stops.
        accept_identifiable: whether text may be sent that was not de-identified; stands in the manifest.
    """

    server: Server
    storage: Storage
    ledger: str
    account: str
    sampling: Sampling = Sampling()  # noqa: RUF009
    limits: Limits = Limits()  # noqa: RUF009
    patience: Patience = Patience()  # noqa: RUF009
    tries: int = 3
    most_unusable: float = 0.2
    accept_identifiable: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """What a process did at its desk, for manifests and people.

    ``requests`` were sent, ``failures`` of them came to nothing, by reason; ``looked_up`` answers were stored
    already. ``repeated``: questions that a killed process had asked already, over the whole account.
    """

    requests: int
    failures: dict[str, int]
    looked_up: int
    asked: int
    repeated: int
    prompt_tokens: int
    completion_tokens: int
    money: float | None


class Batch:
    """An open desk. A context manager; one at a time in a process is enough.

    Attributes:
        records: of this process that a step has had written or given up, by the step's name.
        unusable: of those, what was given up, by step and reason.
    """

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="language-model", daemon=True)
        self._client: ChatClient
        self._account: Account
        self._author: Author
        self.records: Counter[str] = Counter()
        self.unusable: dict[str, Counter[str]] = {}

    def __enter__(self) -> Batch:
        desk = self._desk
        ledger = Ledger(opened(desk.storage), desk.ledger)
        self._client = ChatClient(desk.server, desk.sampling, Pace(desk.limits), desk.patience)
        self._account = ledger.account(desk.account)
        self._thread.start()
        try:
            self._author = self._run(self._open(ledger))
        except BaseException:
            self._end_loop()
            raise
        return self

    async def _open(self, ledger: Ledger) -> Author:
        desk = self._desk
        await self._client.__aenter__()
        return Author(
            self._client,
            ledger,
            self._account,
            server=desk.server,
            sampling=desk.sampling,
            limits=desk.limits,
            tries=desk.tries,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disconnect()
        self._author.close()

    def disconnect(self) -> None:
        """Ends connections and thread; the account stays as the slots have left it, which loses nothing."""
        try:
            self._run(self._close())
        finally:
            self._end_loop()

    async def _close(self) -> None:
        await self._client.__aexit__(None, None, None)
        await asyncio.sleep(0)  # transports close in the next turn of the loop

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def map(self, records: Iterable[R], write: Callable[[Author, R], Awaitable[O]]) -> Generator[O]:
        """What ``write`` makes of each record, in order.

        Raises:
            ZhongjingError: of the first record that stops the run, once all that was under way is stored.
        """
        window: deque[Future[O]] = deque()
        most = _WINDOW * self._desk.limits.concurrency

        async def one(record: R) -> O:
            return await write(self._author, record)

        try:
            for record in records:
                if len(window) >= most:
                    yield window.popleft().result()
                window.append(asyncio.run_coroutine_threadsafe(one(record), self._loop))
            while window:
                yield window.popleft().result()
        except StoppedError:
            assert self._author.failure is not None, "nothing stops before an error does"
            raise self._author.failure from None
        finally:
            # Reached with a full window by an error, or when the rest is not wanted.
            if window:
                self._loop.call_soon_threadsafe(self._author.stop)
                wait(window)

    def report(self) -> Report:
        """What was done up to now."""
        counts, spent, prices = self._client.counts, self._author.spent, self._desk.limits.prices
        failed = {
            name.removeprefix("failed: "): count
            for name, count in sorted(counts.items())
            if name.startswith("failed: ")
        }
        return Report(
            requests=counts["requests"],
            failures=failed,
            looked_up=self._author.counts["looked up"],
            asked=self._author.counts["asked"],
            repeated=self._account.repeated,
            prompt_tokens=spent.prompt,
            completion_tokens=spent.completion,
            money=None if prices is None else prices.of(spent),
        )


_open: dict[str, Batch] = {}


def shared_batch(desk: Desk) -> Batch:
    """The process's open batch at a desk, opened at the first use.

    A part of a source is short beside the time to connect, and every session leaves an object in the account.
    """
    name = repr(desk)
    if name not in _open:
        _open[name] = Batch(desk).__enter__()
    return _open[name]


def close_batch(desk: Desk) -> None:
    """Closes the process's batch at a desk, if one is open; it is opened again when it is needed."""
    batch = _open.pop(repr(desk), None)
    if batch is not None:
        batch.__exit__(None, None, None)


@atexit.register
def _disconnect_all() -> None:
    # The store is not asked any more: it may have gone before this process.
    while _open:
        _open.popitem()[1].disconnect()


# A forked process has its parent's batches without their threads: it opens its own.
os.register_at_fork(after_in_child=_open.clear)
