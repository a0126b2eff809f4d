"""Asks an OpenAI-compatible server for chat completions, patiently.

What may pass (429, 5xx, 529, a timeout, a connection that breaks, a body that is cut) is tried again with
growing pauses until ``Patience.seconds`` are over; Retry-After holds for all requests. What cannot pass
(key, model, funds) ends the run at once. The structured form is asked for where the server takes it: JSON
schema, else any JSON object, else plain text; what a server refused is not asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import TracebackType
from typing import Any

import aiohttp

from zhongjing.codes import language_model as codes
from zhongjing.construct.llm.limits import Pace, Tokens, most_tokens
from zhongjing.construct.llm.refusals import Refusal, refusal
from zhongjing.construct.llm.server import Sampling, Server
from zhongjing.errors import LanguageModelError, LanguageModelUnavailableError

_REFUSALS = 20  # records that are refused before any is answered: then it is not the records
UNPROVEN_SECONDS = 60.0
"""How long a server may fail (HTTP 500) that has not answered once: some fail so for want of the model."""
_MOST_BYTES = 8 << 20  # of a body: a server that sends more than this is none

Message = Mapping[str, str]


class Form(IntEnum):
    """How an answer is asked for, the strictest first (``response_format`` of the API)."""

    SCHEMA = 0
    OBJECT = 1
    TEXT = 2


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request is tried. All in seconds.

    ``seconds``: from its first failure to its last try; ``request``: one try; ``first``, ``longest``: pauses.
    """

    seconds: float = 900.0
    request: float = 180.0
    connect: float = 15.0
    first: float = 1.0
    longest: float = 60.0

    def pause(self, failures: int, chance: random.Random) -> float:
        """The pause after so many failures: doubled each time, half of it by chance, so tries spread out."""
        full = min(self.longest, self.first * 2.0 ** min(failures - 1, 20))
        return full * (0.5 + 0.5 * chance.random())


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer as it came.

    ``model``: as the server named it; ``counted``: whether the server told usage; ``failed``: tries before it
    that came to nothing, by reason.
    """

    text: str
    model: str
    finish_reason: str
    usage: Tokens
    counted: bool
    form: Form
    failed: Mapping[str, int] = field(default_factory=dict)


class StoppedError(Exception):
    """The run is ending: nothing new is asked, and nothing is tried again."""


class RequestRefusedError(Exception):
    """The server does not take the request for this record; the reason has none of its text."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Failure:
    """A try that may be repeated."""

    reason: str
    retry_after: float | None = None
    is_error: bool = False  # HTTP 500


class ChatClient:
    """Asks one model; for the tasks of one event loop. An asynchronous context manager.

    Attributes:
        has_answered: whether this model has answered, now or before (who looks answers up knows). Until then
            many refusals in a row are not the records' fault.
        counts: ``requests`` that were sent, and of those that failed ``failed: REASON``.
    """

    def __init__(
        self,
        server: Server,
        sampling: Sampling,
        pace: Pace,
        patience: Patience = Patience(),
    ) -> None:
        self._server = server
        self._parameters = sampling.as_json()
        self._pace = pace
        self._patience = patience
        self._chance = random.Random()
        self._form = Form.SCHEMA
        self._session: aiohttp.ClientSession | None = None
        self._stopped = asyncio.Event()
        self.has_answered = False
        self._refused = 0
        self.counts: Counter[str] = Counter()

    async def __aenter__(self) -> ChatClient:
        headers = {"Accept": "application/json"}
        if self._server.key is not None:
            headers["Authorization"] = f"Bearer {self._server.key.read()}"
        self._session = aiohttp.ClientSession(
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._patience.request, sock_connect=self._patience.connect),
            connector=aiohttp.TCPConnector(limit=0),
            trust_env=not self._server.is_local,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def complete(self, messages: Sequence[Message], schema: Mapping[str, Any]) -> Completion:
        """Asks once, and again while that may help.

        Args:
            messages: ``role`` and ``content`` of each.
            schema: JSON schema of the answer; its ``title`` names it.

        Raises:
            RequestRefusedError: this request is not taken; others may be.
            LanguageModelError: no request will be taken.
            LanguageModelUnavailableError: the server did not answer within the patience.
            StoppedError: :meth:`stop` was called before a try.
        """
        form = self._form
        first_refusal: Refusal | None = None
        failures = 0
        failed: Counter[str] = Counter()
        since = time.monotonic()
        while True:
            # A Chinese character is three bytes and about one token.
            about = most_tokens([message["content"] for message in messages]) // 3
            await self._pace.admit(about, self._sleep)
            result = await self._try(messages, schema, form)
            if isinstance(result, Completion):
                self._pace.correct(result.usage.total - about)
                self.has_answered = True
                if first_refusal is not None:
                    self._form = max(self._form, form)  # it was the form indeed
                return replace(result, failed=dict(failed))
            failed[result.reason] += 1
            if isinstance(result, Refusal):
                form, first_refusal = self._next_form(result, form, first_refusal)
                continue
            if failures == 0:
                since = time.monotonic()
            failures += 1
            pause = result.retry_after
            if pause is not None:
                self._pace.pause(pause)  # for every request, this one included
            wait = self._patience.pause(failures, self._chance)
            unproven = result.is_error and not self.has_answered
            most = min(self._patience.seconds, UNPROVEN_SECONDS if unproven else self._patience.seconds)
            if time.monotonic() - since + max(wait, pause or 0.0) > most:
                raise LanguageModelUnavailableError(
                    f"no answer after {failures} tries: {result.reason}"
                    + ("; it has not answered once" if unproven else ""),
                    code=codes.LANGUAGE_MODEL_UNAVAILABLE,
                    where=self._server.name,
                    remedy="see the server's log, and whether it has this model" if unproven else None,
                )
            await self._sleep(wait)

    def stop(self) -> None:
        """Requests that were sent are still waited for; none is sent any more."""
        self._stopped.set()

    async def _sleep(self, seconds: float) -> None:
        """Sleeps, unless the run ends.

        Raises:
            StoppedError: :meth:`stop` was called.
        """
        if seconds > 0 and not self._stopped.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), seconds)
        if self._stopped.is_set():
            raise StoppedError

    def _next_form(self, result: Refusal, form: Form, first: Refusal | None) -> tuple[Form, Refusal | None]:
        """What to ask for after a refusal that may be due to the form; raises where it is not."""
        if result.wants_other_length_field and "max_tokens" in self._parameters:
            self._parameters["max_completion_tokens"] = self._parameters.pop("max_tokens")
            return form, first
        if result.wants_other_length_field and "max_completion_tokens" in self._parameters:
            return form, first  # another task has changed it since this request was sent
        if result.may_be_the_form and form < Form.TEXT:
            return Form(form + 1), first or result
        told = first or result
        if told.is_of_the_record:
            self._refused += not told.names_the_record
            if not self.has_answered and self._refused >= _REFUSALS:
                raise LanguageModelError(
                    f"the server refuses every request: {told.reason}",
                    code=codes.INVALID_MODEL_SERVER,
                    where=self._server.name,
                    remedy="see the server's log: a parameter or the chat template may not suit the model",
                )
            raise RequestRefusedError(f"the server does not take the request: {told.reason}")
        raise told.stop(self._server)

    def _body(self, messages: Sequence[Message], schema: Mapping[str, Any], form: Form) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self._server.model, "messages": list(messages), **self._parameters}
        if form is Form.SCHEMA:
            named = {"name": str(schema.get("title", "answer")), "strict": True, "schema": dict(schema)}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        elif form is Form.OBJECT:
            body["response_format"] = {"type": "json_object"}
        return body

    async def _try(
        self, messages: Sequence[Message], schema: Mapping[str, Any], form: Form
    ) -> Completion | Refusal | _Failure:
        result = await self._send(self._body(messages, schema, form), messages, form)
        self.counts["requests"] += 1
        if isinstance(result, _Failure):
            self.counts[f"failed: {result.reason}"] += 1
        elif isinstance(result, Refusal):
            self.counts[f"failed: {result.reason}"] += 1
            if result.is_passing:
                return _Failure(result.reason, result.retry_after, result.status == 500)
        return result

    async def _send(
        self, body: dict[str, Any], messages: Sequence[Message], form: Form
    ) -> Completion | Refusal | _Failure:
        assert self._session is not None, "the client is not open"
        try:
            # A redirect would take the key and the text elsewhere.
            async with self._session.post(
                self._server.endpoint, json=body, allow_redirects=False
            ) as response:
                data = await response.content.read(_MOST_BYTES + 1)
                while len(data) <= _MOST_BYTES and (more := await response.content.read(_MOST_BYTES)):
                    data += more
                if response.status != 200:
                    return refusal(response.status, response.headers, data)
        except TimeoutError:
            return _Failure("timeout")
        except aiohttp.ClientPayloadError:
            return _Failure("body cut")
        except aiohttp.ClientConnectorError as error:
            return _Failure(f"no connection ({type(error.os_error).__name__})")
        except (aiohttp.ClientError, OSError) as error:
            return _Failure(f"connection lost ({type(error).__name__})")
        return _completion(data, messages, self._server.model, form)


def _completion(data: bytes, messages: Sequence[Message], model: str, form: Form) -> Completion | _Failure:
    """Reads a body of status 200: https://platform.openai.com/docs/api-reference/chat/object."""
    try:
        value = json.loads(data)
        choice = value["choices"][0]
        text = choice["message"].get("content") or ""
        finish_reason = str(choice.get("finish_reason") or "stop")
        named = value.get("model")
    except (ValueError, LookupError, TypeError, AttributeError):
        return _Failure("body is no completion")
    if not isinstance(text, str):
        return _Failure("body is no completion")
    usage = value.get("usage")
    counted = isinstance(usage, dict) and all(
        isinstance(usage.get(name), int) and usage[name] >= 0
        for name in ("prompt_tokens", "completion_tokens")
    )
    if counted:
        tokens = Tokens(usage["prompt_tokens"], usage["completion_tokens"])
    else:
        # The dear side: a server that does not count is not taken for a free one.
        tokens = Tokens(most_tokens([message["content"] for message in messages]), most_tokens([text]))
    return Completion(text, named if isinstance(named, str) else model, finish_reason, tokens, counted, form)
