"""The client against real HTTP: what passes is borne, what cannot pass ends the run, and nothing leaks."""

from __future__ import annotations

import asyncio
import random
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.construct.llm_support import IMPATIENT, KEY_NAME, set_key
from tests.unit.construct.scripted_server import KEY, Body, Fault, Script, ScriptedServer, error
from zhongjing.codes import Code
from zhongjing.codes import language_model as codes
from zhongjing.construct.llm.client import (
    ChatClient,
    Completion,
    Form,
    Patience,
    RequestRefusedError,
)
from zhongjing.construct.llm.limits import Limits, Pace, Tokens
from zhongjing.construct.llm.refusals import retry_after
from zhongjing.construct.llm.server import KeySource, Sampling, Server
from zhongjing.errors import ConfigError, LanguageModelError, LanguageModelUnavailableError

MESSAGES = ({"role": "system", "content": "你是医生"}, {"role": "user", "content": "患者：我头疼"})
SCHEMA = {"title": "replies", "type": "object"}


def fine(body: Body) -> str:
    return '{"a": 1}'


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    set_key(monkeypatch)


def first(*faults: Fault | None) -> Script:
    """These faults for the first requests, then answers."""
    return lambda number, _: faults[number] if number < len(faults) else None


def ask(
    script: Script | None = None, times: int = 1, patience: Patience = IMPATIENT, **server: Any
) -> tuple[list[Completion], ScriptedServer, ChatClient]:
    """Asks the same thing so often, one after the other."""
    with ScriptedServer(fine, script) as scripted:
        key = KeySource(environment=KEY_NAME)
        where = replace(Server(scripted.base_url, "tiny", key), **server)
        client = ChatClient(where, Sampling(max_tokens=64, seed=7), Pace(Limits()), patience)

        async def run() -> list[Completion]:
            async with client:
                return [await client.complete(MESSAGES, SCHEMA) for _ in range(times)]

        return asyncio.run(run()), scripted, client


def test_what_is_sent_and_what_comes_back() -> None:
    (answer,), server, _ = ask()
    assert answer == Completion('{"a": 1}', "tiny-2026-08-06", "stop", Tokens(200, 50), True, Form.SCHEMA)
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": list(MESSAGES),
            "max_tokens": 64,
            "temperature": 0.3,
            "seed": 7,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "replies", "strict": True, "schema": SCHEMA},
            },
        }
    ]


@pytest.mark.parametrize(
    "fault",
    [
        *(Fault(status) for status in (408, 429, 500, 502, 503, 504, 529)),
        Fault(429, {"code": "rate_limit_exceeded", "type": "requests"}),
        Fault(reset=True),
        Fault(cut=True),
        Fault(raw="<html>welcome</html>"),
        Fault(raw='{"choices": []}'),
    ],
    ids=str,
)
def test_what_may_pass_is_tried_again(fault: Fault) -> None:
    (answer,), server, client = ask(first(fault, fault))
    assert answer.text == '{"a": 1}'
    assert len(server.bodies) == client.counts["requests"] == 3
    assert sum(count for name, count in client.counts.items() if name.startswith("failed: ")) == 2


def test_a_server_that_hangs_is_given_up_and_asked_again() -> None:
    (answer,), server, client = ask(
        first(Fault(hang=5)), patience=Patience(seconds=20, request=0.3, first=0.01)
    )
    assert (answer.text, len(server.bodies), client.counts["failed: timeout"]) == ('{"a": 1}', 2, 1)


@pytest.mark.parametrize("header", [{"Retry-After": "1"}, {"retry-after-ms": "900"}], ids=str)
def test_retry_after_is_kept(header: dict[str, str]) -> None:
    begun = time.monotonic()
    ask(first(Fault(429, {"code": "rate_limit_exceeded"}, header)))
    assert 0.85 < time.monotonic() - begun < 5


def test_the_three_forms_of_retry_after() -> None:
    # RFC 9110, 10.2.3: an HTTP date or seconds.
    assert retry_after({"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}, now=946684739.0) == 60.0
    assert retry_after({"Retry-After": "120"}) == 120.0
    assert retry_after({"Retry-After": "soon"}) is None
    assert retry_after({}) is None


def test_pauses_double_and_are_spread() -> None:
    patience = Patience(first=1, longest=8)
    chance = random.Random(0)
    for failures, full in ((1, 1), (2, 2), (3, 4), (4, 8), (60, 8)):
        pauses = [patience.pause(failures, chance) for _ in range(200)]
        assert full / 2 <= min(pauses) < full * 0.55 < full * 0.95 < max(pauses) <= full


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(401), codes.API_KEY_REFUSED),
        (Fault(403), codes.API_KEY_REFUSED),
        (error(404, "model_not_found"), codes.UNKNOWN_LANGUAGE_MODEL),
        (Fault(404), codes.UNKNOWN_LANGUAGE_MODEL),
        (Fault(429, {"code": "insufficient_quota", "type": "insufficient_quota"}), codes.OUT_OF_FUNDS),
        (Fault(429, {"code": "credit_balance_exhausted", "type": "insufficient_quota"}), codes.OUT_OF_FUNDS),
        (Fault(402), codes.OUT_OF_FUNDS),
        (Fault(400, {"code": "Arrearage"}), codes.OUT_OF_FUNDS),
        (error(400, "unsupported_value", param="temperature"), codes.PARAMETER_REFUSED),
        (Fault(302, headers={"Location": "http://127.0.0.1:9/steal"}), codes.INVALID_MODEL_SERVER),
    ],
    ids=str,
)
def test_what_cannot_pass_ends_the_run_at_the_first_request(fault: Fault, code: Code) -> None:
    with pytest.raises(LanguageModelError) as caught:
        ask(first(*[fault] * 5))
    assert caught.value.code is code
    assert str(fault.status) in caught.value.message
    assert not isinstance(caught.value, LanguageModelUnavailableError)


def test_a_wrong_key_is_named_by_its_place_and_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(0)
    monkeypatch.setenv(KEY_NAME, "sk-wrong-fedcba9876543210")
    with pytest.raises(LanguageModelError) as caught:
        ask()
    shown = f"{caught.value!s} {caught.value!r} {caught.value.as_dict()} {caplog.text}"
    assert f"(key: ${KEY_NAME})" in shown
    # The server's own message quotes a key, as OpenAI's does.
    assert not re.search(r"sk-(wrong|scripted)|给患者的话|我头疼", shown)


def test_a_missing_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(KEY_NAME)
    with pytest.raises(LanguageModelError) as caught:
        ask()
    assert (caught.value.code, caught.value.where) == (codes.API_KEY_MISSING, f"${KEY_NAME}")
    with pytest.raises(LanguageModelError):
        KeySource(file=tmp_path / "none").read()
    (tmp_path / "key").write_text(f"{KEY}\n")
    (answer,), _, _ = ask(key=KeySource(file=tmp_path / "key"))
    assert answer.text
    with pytest.raises(ConfigError):
        KeySource()


def without(*forms: str) -> Script:
    """Refuses these forms of response_format, as servers do that do not know them (vLLM: 400)."""

    def script(_: int, body: Body) -> Fault | None:
        form = body.get("response_format", {}).get("type")
        return error(400, "invalid_request", param=None) if form in forms else None

    return script


@pytest.mark.parametrize(
    ("forms", "left"), [(("json_schema",), Form.OBJECT), (("json_schema", "json_object"), Form.TEXT)]
)
def test_a_form_that_is_refused_is_not_asked_for_again(forms: tuple[str, ...], left: Form) -> None:
    answers, server, _ = ask(without(*forms), times=3)
    assert {answer.form for answer in answers} == {left}
    assert len(server.bodies) == 3 + len(forms)


def test_a_field_that_the_server_does_not_know_is_answered_422() -> None:
    # Servers made with FastAPI: a field outside their model is HTTPException 422.
    script: Script = lambda _, body: Fault(422) if "response_format" in body else None  # noqa: E731
    answers, server, _ = ask(script, times=2)
    assert ([answer.form for answer in answers], len(server.bodies)) == ([Form.TEXT, Form.TEXT], 4)


def test_a_request_that_is_refused_in_every_form_is_the_records_own_fault() -> None:
    bad = error(400, "invalid_request")
    with pytest.raises(RequestRefusedError, match="invalid_request"):
        ask(first(bad, bad, bad))
    with pytest.raises(RequestRefusedError, match="context_length_exceeded"):
        ask(first(error(400, "context_length_exceeded")))


def test_a_server_that_refuses_everything_is_not_asked_for_every_record() -> None:
    def run(script: Script, times: int) -> list[str]:
        with ScriptedServer(fine, script) as scripted:
            server = Server(scripted.base_url, "tiny", KeySource(environment=KEY_NAME))
            client = ChatClient(server, Sampling(), Pace(Limits()), IMPATIENT)

            async def refused() -> list[str]:
                reasons: list[str] = []
                async with client:
                    for _ in range(times):
                        try:
                            await client.complete(MESSAGES, SCHEMA)
                        except RequestRefusedError as error:
                            reasons.append(error.reason)
                return reasons

            return asyncio.run(refused())

    with pytest.raises(LanguageModelError, match="every request") as caught:
        run(lambda *_: Fault(400), 30)
    assert caught.value.code is codes.INVALID_MODEL_SERVER
    # One answer shows that it is the records.
    assert len(run(lambda number, _: Fault(400) if number else None, 30)) == 29


def test_the_newer_name_of_the_length_is_found() -> None:
    def script(_: int, body: Body) -> Fault | None:
        return error(400, "unsupported_parameter", param="max_tokens") if "max_tokens" in body else None

    answers, server, _ = ask(script, times=2)
    assert len(answers) == 2
    assert [body.get("max_completion_tokens") for body in server.bodies] == [None, 64, 64]


def test_patience_ends() -> None:
    patience = Patience(seconds=0.3, request=5, first=0.05, longest=0.1)
    with pytest.raises(LanguageModelUnavailableError) as caught:
        ask(first(*[Fault(503)] * 99), patience=patience)
    assert (caught.value.code, caught.value.exit_code) == (codes.LANGUAGE_MODEL_UNAVAILABLE, 3)
    assert re.search(r"after \d+ tries: HTTP 503", caught.value.message)
    with pytest.raises(LanguageModelUnavailableError, match="no connection"):
        ask(base_url="http://127.0.0.1:9/v1", patience=patience)


def test_addresses() -> None:
    assert Server("http://h:1", "m").endpoint == "http://h:1/v1/chat/completions"
    assert (
        Server("https://h/compatible-mode/v1/", "m").endpoint
        == "https://h/compatible-mode/v1/chat/completions"
    )
    for wrong in ("h:80/v1", "ftp://h/v1", "https://me:secret@h/v1", "https://h/v1?key=secret"):
        with pytest.raises(ConfigError) as caught:
            Server(wrong, "m")
        assert "secret" not in str(caught.value)


def test_proxies_are_for_the_world_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(fine) as proxy:
        address = proxy.base_url.removesuffix("/v1")
        monkeypatch.setenv("http_proxy", address)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        (answer,), _, _ = ask()  # on loopback: straight
        assert (answer.text, len(proxy.bodies)) == ('{"a": 1}', 0)
        # RFC 9112, 3.2.2: a proxy gets the whole address, and the scripted server is one that answers itself.
        (answer,), server, _ = ask(base_url="http://model.invalid/v1")
        assert (answer.text, len(proxy.bodies), len(server.bodies)) == ('{"a": 1}', 1, 0)
