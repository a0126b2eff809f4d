"""A chat-completions server of ours on loopback: real HTTP, answers by rule, faults by script.

The layouts of requests, answers and errors are OpenAI's (https://platform.openai.com/docs/api-reference/chat,
https://platform.openai.com/docs/guides/error-codes). An answer follows from the request alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from aiohttp import web

Body = dict[str, Any]
Answer = Callable[[Body], str]
KEY = "sk-scripted-0123456789abcdef"


@dataclass(frozen=True)
class Fault:
    """What the server does instead of answering."""

    status: int = 200
    error: dict[str, Any] | None = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: float = 0.0  # seconds before anything
    reset: bool = False  # the connection is closed without an answer
    cut: bool = False  # the body ends in its middle
    body: str | None = None  # the text of the completion
    raw: str | None = None  # the whole body


def error(status: int, code: str, **more: Any) -> Fault:
    return Fault(status, {"code": code, "type": "invalid_request_error", "message": "给患者的话", **more})


Script = Callable[[int, Body], Fault | None]
"""Of the number of the request, from 0, and its body: a fault, or None for the answer."""


def dialogue_of(body: Body) -> list[dict[str, Any]]:
    """The turns in the user message of our prompts."""
    found = re.search(r"\[\{.*\}\]", body["messages"][1]["content"], re.DOTALL)
    assert found is not None
    turns: list[dict[str, Any]] = json.loads(found[0])
    return turns


def polite(body: Body) -> str:
    """Normalizes: every answer of the doctor's in a friendly frame, its words kept."""
    replies = [
        {"turn": turn["turn"], "text": f"您好，根据您的描述，{turn['text']}请您注意休息，祝您早日康复。"}
        for turn in dialogue_of(body)
        if turn["role"] == "医生"
    ]
    return json.dumps({"replies": replies}, ensure_ascii=False)


def inquiring(body: Body) -> str:
    """Expands: one inquiry, its answer, and what the doctor said."""
    turns = [
        {"role": "doctor", "text": "您好，请问这种情况持续多久了？有没有其他不舒服？"},
        {"role": "patient", "text": "有一阵子了，没有别的不舒服。"},
        {"role": "doctor", "text": f"好的，明白了。{dialogue_of(body)[-1]['text']}"},
    ]
    return json.dumps({"turns": turns}, ensure_ascii=False)


class ScriptedServer:
    """Runs in a thread. ``seen`` counts requests by their messages, ``bodies`` keeps them in order."""

    def __init__(self, answer: Answer = polite, script: Script | None = None, key: str | None = KEY) -> None:
        self.answer = answer
        self.script = script
        self.key = key
        self.delay = 0.0
        self.seen: Counter[str] = Counter()
        self.bodies: list[Body] = []
        self.under_way = 0
        self.most_under_way = 0
        self.completed = 0
        self.started = threading.Condition()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.base_url = ""

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)
        return self

    async def _start(self) -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", self._handle)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        port = self._runner.addresses[0][1]
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_for(self, requests: int, timeout: float = 60.0) -> None:
        """Returns when so many requests have come in."""
        with self.started:
            assert self.started.wait_for(lambda: len(self.bodies) >= requests, timeout), len(self.bodies)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        with self.started:
            number = len(self.bodies)
            self.bodies.append(body)
            asked = json.dumps(body["messages"], ensure_ascii=False, sort_keys=True)
            self.seen[hashlib.sha256(asked.encode()).hexdigest()] += 1
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
            self.started.notify_all()
        try:
            await asyncio.sleep(self.delay)
            return await self._respond(request, number, body)
        finally:
            self.under_way -= 1

    async def _respond(self, request: web.Request, number: int, body: Body) -> web.StreamResponse:
        if self.key is not None and request.headers.get("Authorization") != f"Bearer {self.key}":
            shown = {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key", "type": KEY}
            return web.json_response({"error": shown}, status=401)
        fault = self.script(number, body) if self.script is not None else None
        if fault is not None:
            await asyncio.sleep(fault.hang)
            if fault.reset:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if fault.raw is not None:
                return web.Response(text=fault.raw)
            if fault.status != 200:
                return web.json_response({"error": fault.error}, status=fault.status, headers=fault.headers)
        text = self.answer(body) if fault is None or fault.body is None else fault.body
        value = {
            "id": f"chatcmpl-{number}",
            "object": "chat.completion",
            "created": 1767225600,
            "model": f"{body['model']}-2026-08-06",
            "choices": [
                {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            ],
            "usage": {"prompt_tokens": 200, "completion_tokens": 50, "total_tokens": 250},
        }
        data = json.dumps(value, ensure_ascii=False).encode()
        if fault is not None and fault.cut:
            response = web.StreamResponse(headers={"Content-Type": "application/json"})
            response.content_length = len(data)
            await response.prepare(request)
            await response.write(data[: len(data) // 2])
            assert request.transport is not None
            request.transport.abort()
            return response
        self.completed += 1
        return web.Response(body=data, content_type="application/json")
