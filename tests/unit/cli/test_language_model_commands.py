"""data normalize, expand and check: the scripted server, real HTTP, a real S3 server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from tests.unit.construct.scripted_server import KEY, Body, Fault, ScriptedServer, error, inquiring, polite
from zhongjing.construct.manifest import find_manifest
from zhongjing.storage.objects import ObjectStore

COUNT = 6


def rows(count: int = COUNT, answer: str = "布洛芬每次0.3g，一天2次，饭后服。") -> str:
    talks = ({"instruction": f"我是第{n}位，头疼怎么办？", "output": answer} for n in range(count))
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in talks)


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedServer() as server:
        yield server


@pytest.fixture
def clean(command: CommandLine, tmp_path: Path, bucket_uri: str) -> str:
    """A source that was de-identified."""
    (tmp_path / "raw.jsonl").write_text(rows(), encoding="utf-8")
    out = f"{bucket_uri}/clean"
    made = command("data", "deidentify", "raw.jsonl", out, "--local", "--processes", "1")
    assert made.exit_code == 0, made.output
    return out


def model(server: ScriptedServer, bucket_uri: str) -> tuple[str, ...]:
    at = ("--model", "tiny", "--base-url", server.base_url)
    return "--local", *at, "--concurrency", "2", "--ledger", f"{bucket_uri}/ledger"


def test_normalize_asks_writes_and_reports(
    command: CommandLine, clean: str, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    server.script = lambda number, _: error(429, "rate_limit", param=None) if number == 2 else None
    out = f"{bucket_uri}/normal"
    prices = ("--price-in", "1", "--price-out", "2")
    words = ("data", "normalize", clean, out, *model(server, bucket_uri), *prices)
    result = command(*words)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert f"{COUNT} of {COUNT} records" in result.stdout
    assert lines["requests"].split()[1:3] == [str(COUNT), "answered;"]
    assert "HTTP 429 (rate_limit, invalid_request_error): 1" in lines["retries"]
    assert "1,200 in, 300 out" in lines["tokens"]
    assert "0.0018 USD" in lines["cost"]
    assert "您好，根据您的描述" in store.get(f"{out}/part-00000.jsonl").decode()
    manifest = find_manifest(store, out)
    assert manifest is not None
    assert manifest.has_passed("deidentify")
    assert manifest.has_passed("normalize")
    assert manifest.notes["normalize"]["requests"] == COUNT
    kept = b"".join(store.get(info.uri) for info in store.list(bucket_uri))
    assert b"sk-" not in kept
    assert "sk-" not in result.output
    # The same again asks nothing; another output takes the stored answers.
    asked = len(server.bodies)
    told = json.loads(command(*words, "-o", "json").stdout)
    assert told["notes"]["normalize"]["completionTokens"] == COUNT * 50
    other = command("data", "normalize", clean, f"{bucket_uri}/other", *model(server, bucket_uri))
    assert other.exit_code == 0, other.output
    assert len(server.bodies) == asked


def test_expand_and_check_follow(
    command: CommandLine,
    clean: str,
    store: ObjectStore,
    bucket_uri: str,
    server: ScriptedServer,
) -> None:
    server.answer = inquiring
    longer = f"{bucket_uri}/longer"
    result = command("data", "expand", clean, longer, *model(server, bucket_uri))
    assert result.exit_code == 0, result.output
    assert ["expanded", str(COUNT)] in [line.split() for line in result.stdout.splitlines()]
    statements = [
        *(("布洛芬", "适应症", "头疼"), ("布洛芬", "禁忌", "胃溃疡"), ("布洛芬", "适应症", "胃溃疡")),
        *(("布洛芬", "用法用量", "一次0.1~0.2g"), ("甲", "别名", "乙"), ("乙", "别名", "甲")),
    ]
    graph = json.dumps([dict(zip(("head", "relation", "tail"), each, strict=True)) for each in statements])
    store.put(f"{bucket_uri}/kg/cmekg.json", graph.encode())
    asked = len(server.bodies)
    words = ("data", "check", longer, f"{bucket_uri}/checked", "--kg", f"{bucket_uri}/kg", "--local")
    result = command(*words, "--processes", "1")
    assert result.exit_code == 0, result.output
    assert f"0 of {COUNT} records" in result.stdout
    assert len(server.bodies) == asked
    lines = result.stdout.splitlines()
    assert ["overdose", str(COUNT)] in [line.split() for line in lines]
    assert any("against (布洛芬, 用法用量, 一次0.1~0.2g)" in line for line in lines)
    assert "conflict: 1, alias-cycle: 1" in result.stdout
    assert "(布洛芬, 适应症, 胃溃疡), (布洛芬, 禁忌, 胃溃疡)" in result.stdout
    # With a model: it judges what the rules let through, and has the facts before it.
    server.answer = lambda _: '{"problems": []}'
    judged = ("data", "check", longer, f"{bucket_uri}/judged", "--kg", f"{bucket_uri}/kg")
    result = command(*judged, "--rule", "contraindication", *model(server, bucket_uri))
    assert result.exit_code == 0, result.output
    assert f"{COUNT} of {COUNT} records" in result.stdout
    assert "布洛芬｜用法用量｜一次0.1~0.2g" in server.bodies[-1]["messages"][1]["content"]


def test_a_plan_tells_tokens_cost_and_hours_and_asks_nothing(
    command: CommandLine, clean: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    out = f"{bucket_uri}/normal"
    words = ("data", "normalize", clean, out, "--local", "--model", "gpt-4o", "--plan")
    known = command(*words, "--base-url", "https://api.openai.com/v1", "--budget", "0.001")
    assert known.exit_code == 0, known.output
    assert f"{COUNT} of {COUNT} records, by gpt-4o" in known.stdout
    assert "by the prices of May 2026; the budget of 0.00 does not reach" in known.stdout
    unknown = command(*words, "--base-url", "http://10.0.0.1:8000", "--requests-per-minute", "1")
    assert "not known" in unknown.stdout
    assert "1 requests a minute" in unknown.stdout
    found = json.loads(command(*words, "--base-url", "http://10.0.0.1:8000", "-o", "json").stdout)
    (asking,) = found["asking"]
    assert (asking["records"], asking["cost"]) == (COUNT, None)
    assert asking["promptTokens"] > COUNT * 300
    assert found["hours"] > 0


def test_what_was_not_deidentified_is_refused(
    command: CommandLine, tmp_path: Path, bucket_uri: str, store: ObjectStore, server: ScriptedServer
) -> None:
    (tmp_path / "raw.jsonl").write_text(rows(), encoding="utf-8")
    store.put(f"{bucket_uri}/raw/a.jsonl", rows().encode())
    out = f"{bucket_uri}/normal"
    for place in ("raw.jsonl", f"{bucket_uri}/raw"):
        words = ("data", "normalize", place, out, *model(server, bucket_uri))
        refused = command(*words)
        assert refused.exit_code == 2
        assert "error[NotDeidentified]" in refused.stderr
        assert "--accept-identifiable" in refused.stderr
        planned = command(*words, "--plan")
        assert planned.exit_code == 1
        assert "refused: " in planned.stdout
    assert not server.bodies
    assert not list(store.list(out))
    accepted = command(*words, "--accept-identifiable")
    assert accepted.exit_code == 0, accepted.output
    manifest = find_manifest(store, out)
    assert manifest is not None
    assert manifest.notes["normalize"]["acceptIdentifiable"] is True


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault(401, {"code": "invalid_api_key"}), "ApiKeyRefused"),
        (Fault(402, {"message": "Insufficient Balance"}), "OutOfFunds"),
        (Fault(429, {"code": "insufficient_quota"}), "OutOfFunds"),
        (Fault(404, {"code": "model_not_found"}), "UnknownLanguageModel"),
    ],
)
def test_a_run_that_is_stopped_keeps_what_is_done_and_goes_on(
    command: CommandLine, clean: str, bucket_uri: str, server: ScriptedServer, fault: Fault, code: str
) -> None:
    server.script = lambda number, _: None if number < 3 else fault
    words = ("data", "normalize", clean, f"{bucket_uri}/normal", *model(server, bucket_uri))
    stopped = command(*words)
    assert stopped.exit_code == 2
    assert f"error[{code}]" in stopped.stderr
    if code == "ApiKeyRefused":
        assert "$OPENAI_API_KEY" in stopped.stderr
    assert "给患者的话" not in stopped.output
    planned = command(*words, "--plan")
    assert "paid        3 requests, 600 tokens in, 150 out: of these nothing is asked again" in planned.stdout
    server.script = None
    answered = server.completed
    done = command(*words)
    assert done.exit_code == 0, done.output
    assert server.completed == COUNT
    assert answered == 3


def test_a_key_that_is_missing_is_said_before_anything(
    command: CommandLine, clean: str, bucket_uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    words = ("data", "normalize", clean, f"{bucket_uri}/x", "--local", "--model", "m", "--base-url")
    missing = command(*words, "http://models.example:1/v1")
    assert missing.exit_code == 2
    assert "error[ApiKeyMissing]: $OPENAI_API_KEY" in missing.stderr
    assert "--no-key" in missing.stderr
    named = command(*words, "http://127.0.0.1:1/v1", "--key-variable", "MY_KEY")
    assert "$MY_KEY" in named.stderr


def test_a_model_that_never_meets_the_schema_stops_the_run(
    command: CommandLine, clean: str, bucket_uri: str, store: ObjectStore, server: ScriptedServer
) -> None:
    def nonsense(body: Body) -> str:
        return "好的" if "第1位" in body["messages"][1]["content"] else polite(body)

    out = f"{bucket_uri}/normal"
    server.answer = nonsense
    words = ("data", "normalize", clean, out, *model(server, bucket_uri))
    stopped = command(*words, "--max-unusable", "0.1")
    assert stopped.exit_code == 2
    assert "error[TooManyUnusableAnswers]" in stopped.stderr
    assert f"1 of {COUNT} records" in stopped.stderr
    assert "no whole JSON (after 3 tries): 1" in stopped.stderr
    assert find_manifest(store, out) is None
    asked = len(server.bodies)
    allowed = command(*words)
    assert allowed.exit_code == 0, allowed.output
    assert len(server.bodies) == asked
    assert "normalize: the answer is no whole JSON (after 3 tries)  " in allowed.stdout
    assert ["fault:", "no", "json", "3"] in [line.split() for line in allowed.stdout.splitlines()]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("normalize", "a.jsonl", "s3://b/x", "--local"), "InvalidOption"),
        (("normalize", "a.jsonl", "s3://b/x", "--local", "--model", "m"), "InvalidOption"),
        (
            ("normalize", "a.jsonl", "./x", "--local", "--model", "m", "--base-url", "http://127.0.0.1:1"),
            "InvalidOption",
        ),
        (
            ("normalize", "a.jsonl", "s3://b/x", "--local", "--model", "m", "--base-url", "ftp://h"),
            "InvalidModelServer",
        ),
        (
            ("expand", "a.jsonl", "s3://b/x", "--model", "m", "--base-url", "http://127.0.0.1:1"),
            "NoCluster",
        ),
        (
            (
                *("expand", "a.jsonl", "s3://b/x", "--local", "--budget", "3"),
                *("--model", "m", "--base-url", "http://127.0.0.1:1"),
            ),
            "InvalidModelServer",
        ),
        (("check", "a.jsonl", "s3://b/x", "--local", "--kg", "none"), "GraphUnreadable"),
        (("check", "a.jsonl", "s3://b/x", "--local", "--kg", "a.jsonl", "--rule", "dose"), "InvalidOption"),
    ],
)
def test_what_cannot_be_done_is_said(
    command: CommandLine, tmp_path: Path, words: tuple[str, ...], code: str
) -> None:
    (tmp_path / "a.jsonl").write_text(rows(), encoding="utf-8")
    result = command("data", *words)
    assert result.exit_code == (3 if code == "NoCluster" else 2), result.output
    assert f"error[{code}]" in result.stderr


def test_limits_hold_over_all_processes() -> None:
    from zhongjing.construct.catalog import StepSettings, build_steps
    from zhongjing.construct.llm.limits import Limits, Prices
    from zhongjing.construct.llm.model_step import ModelStep

    def desk(processes: int, **more: Any) -> tuple[int, Limits]:
        limits = Limits(concurrency=8, requests_per_minute=600, **more)
        settings = StepSettings(steps=("normalize",), model="m", base_url="http://h/v1", limits=limits)
        count = settings.processes(processes)
        (step,) = build_steps(settings, "s3://b/out", processes=count)
        assert isinstance(step, ModelStep)
        return count, step.desk.limits

    assert desk(4) == (4, Limits(2, 150))
    assert desk(100)[0] == 8
    # One process asks where there is a budget: no other spends it as well.
    assert desk(4, budget=5.0, prices=Prices(1, 1))[0] == 1


def test_several_processes_share_the_limits_and_the_account(
    command: CommandLine,
    tmp_path: Path,
    bucket_uri: str,
    store: ObjectStore,
    server: ScriptedServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("zhongjing.construct.parts.PART_RECORDS", 10)
    (tmp_path / "raw.jsonl").write_text(rows(60), encoding="utf-8")
    server.delay = 0.1
    asked = ("--local", "--accept-identifiable", "--model", "tiny", "--base-url", server.base_url)
    words = ("data", "normalize", "raw.jsonl")
    shared = ("--processes", "2", "--concurrency", "4", "--ledger", f"{bucket_uri}/first")
    result = command(*words, f"{bucket_uri}/two", *asked, *shared)
    assert result.exit_code == 0, result.output
    assert 2 < server.most_under_way <= 4
    two = find_manifest(store, f"{bucket_uri}/two")
    assert two is not None
    assert (two.written, len(two.parts)) == (60, 6)
    assert (two.notes["normalize"]["requests"], len(server.bodies)) == (60, 60)
    alone = ("--concurrency", "16", "--ledger", f"{bucket_uri}/second")
    assert command(*words, f"{bucket_uri}/one", *asked, *alone).exit_code == 0
    one = find_manifest(store, f"{bucket_uri}/one")
    assert one is not None
    assert [part.digest for part in one.parts] == [part.digest for part in two.parts]
