"""Has answers written: looked up or asked for, stored, checked, and asked for again with the fault named.

The conversation with the model is part of the key, so a second try has a key of its own and is stored too.
From the same stored answers the same result follows, no matter who asked for them and when.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from zhongjing.codes import Code
from zhongjing.codes import language_model as codes
from zhongjing.construct.llm.checks import Fault
from zhongjing.construct.llm.client import ChatClient, Completion, Message, RequestRefusedError, StoppedError
from zhongjing.construct.llm.ledger import Account, Ledger, StoredAnswer, work_key
from zhongjing.construct.llm.limits import Budget, Limits, Tokens, most_tokens
from zhongjing.construct.llm.prompt import Prompt
from zhongjing.construct.llm.server import Sampling, Server
from zhongjing.errors import ZhongjingError

T = TypeVar("T")
S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Question(Generic[T]):
    """One piece of work. ``read`` makes the value of an answer, or tells its fault; it is pure.

    ``schema``: JSON schema of the answer.
    """

    prompt: Prompt
    values: Mapping[str, str]
    schema: Mapping[str, Any]
    read: Callable[[StoredAnswer], T | Fault]


@dataclass(frozen=True, slots=True)
class Written(Generic[T]):
    """What came of a question. ``value`` is None where no try passed; then ``reason`` and ``code`` say why.

    ``counts``: tries by what was wrong with them, and tokens; the same however often the work was resumed.
    """

    value: T | None
    counts: Mapping[str, int]
    reason: str = ""
    code: Code = codes.UNUSABLE_ANSWER


class Author:
    """Asks one model for the tasks of one event loop, each stored answer once.

    Attributes:
        counts: ``looked up`` and ``asked``: answers of this process that were stored, or had to be asked for.
        failure: the error that ended the run, if one did.
    """

    def __init__(
        self,
        client: ChatClient,
        ledger: Ledger,
        account: Account,
        *,
        server: Server,
        sampling: Sampling,
        limits: Limits,
        tries: int = 3,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._account = account
        self._server = server
        self._sampling = sampling
        self._tries = tries
        self._budget = Budget(limits, account.before)
        # The store is asked in threads: a slot's own, and some that look keys up.
        self._threads = ThreadPoolExecutor(2 * limits.concurrency, thread_name_prefix="ledger")
        self._slots: asyncio.LifoQueue[int] = asyncio.LifoQueue()
        for slot in reversed(range(limits.concurrency)):
            self._slots.put_nowait(slot)
        self._under_way: dict[str, asyncio.Task[StoredAnswer]] = {}
        self._stopped = False
        self.failure: ZhongjingError | None = None
        self.counts: Counter[str] = Counter()

    @property
    def spent(self) -> Tokens:
        """What this work took so far, earlier processes included."""
        return self._budget.spent

    def stop(self) -> None:
        """Asks nothing more. What is under way is still answered and stored: it is paid for."""
        self._stopped = True
        self._client.stop()

    def close(self) -> None:
        """Stores the account. Not from the event loop: threads have ended where a process ends."""
        self._threads.shutdown()
        self._account.close()

    async def write(self, question: Question[T]) -> Written[T]:
        """Asks until an answer passes, at most ``tries`` times.

        Raises:
            LanguageModelError: no question will be answered (key, model, funds, budget, server away).
            StorageError: the ledger cannot be read or written.
            StoppedError: :meth:`stop` was called, and this would have to be asked for.
        """
        prompt = question.prompt
        messages = prompt.opening(question.values)
        counts: Counter[str] = Counter()
        fault: Fault | None = None
        for attempt in range(1, self._tries + 1):
            try:
                key = work_key(prompt, self._server.model, self._sampling.as_json(), messages, attempt)
                answer = await self._answer(key, prompt, messages, question.schema)
            except RequestRefusedError as error:
                counts["refused"] += 1
                return Written(None, counts, error.reason, codes.REQUEST_REFUSED)
            counts["answers"] += 1
            counts["prompt tokens"] += answer.prompt_tokens
            counts["completion tokens"] += answer.completion_tokens
            read = question.read(answer)
            if not isinstance(read, Fault):
                return Written(read, counts)
            fault = read
            counts[f"fault: {fault.name}"] += 1
            messages = (*prompt.opening(question.values), *prompt.again(answer.text, fault.told))
        assert fault is not None, "at least one try"
        return Written(None, counts, f"{fault.reason} (after {self._tries} tries)")

    async def _answer(
        self, key: str, prompt: Prompt, messages: tuple[Message, ...], schema: Mapping[str, Any]
    ) -> StoredAnswer:
        # Records that are the same are one question, also while it is under way.
        task = self._under_way.get(key)
        if task is None:
            task = asyncio.ensure_future(self._found_or_asked(key, prompt, messages, schema))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        return await asyncio.shield(task)

    async def _found_or_asked(
        self, key: str, prompt: Prompt, messages: tuple[Message, ...], schema: Mapping[str, Any]
    ) -> StoredAnswer:
        found = await self._in_thread(self._ledger.find, key)
        if found is not None:
            self.counts["looked up"] += 1
            self._client.has_answered = True
            return found
        slot = await self._slots.get()
        try:
            return await self._ask(slot, key, prompt, messages, schema)
        except ZhongjingError as error:
            self.failure = self.failure or error
            self.stop()
            raise
        finally:
            self._slots.put_nowait(slot)

    async def _ask(
        self, slot: int, key: str, prompt: Prompt, messages: tuple[Message, ...], schema: Mapping[str, Any]
    ) -> StoredAnswer:
        if self._stopped:
            raise StoppedError
        most = Tokens(most_tokens([message["content"] for message in messages]), self._sampling.max_tokens)
        await self._budget.reserve(most)
        used = Tokens()
        failed: Mapping[str, int] = {}
        try:
            if self._stopped:  # the budget may have kept it waiting
                raise StoppedError
            await self._in_thread(self._account.asking, slot, key, most)
            try:
                completion: Completion = await self._client.complete(messages, schema)
                used, failed = completion.usage, completion.failed
                answer = await self._in_thread(self._ledger.keep, key, prompt, completion)
            finally:
                self._account.answered(slot, used, failed)
        finally:
            await self._budget.settle(most, used)
        self.counts["asked"] += 1
        return answer

    async def _in_thread(self, call: Callable[..., S], *arguments: object) -> S:
        result: Awaitable[S] = asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)
        return await result
