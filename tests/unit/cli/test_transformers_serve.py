"""data normalize against a real server of language models: ``transformers serve`` with a tiny model.

What a model of random weights writes is no answer. So what is tested is the way: requests and answers of a
server that is not ours, the ledger, the quarantine and the report. That server ignores ``response_format``,
refuses fields that it does not know (422), and names models by their folder
(https://huggingface.co/docs/transformers/main/en/serving).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.training_support import free_port
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from tests.unit.model.conftest import make_base
from zhongjing.construct.llm.ledger import StoredAnswer
from zhongjing.construct.manifest import find_manifest
from zhongjing.storage.objects import ObjectStore

pytestmark = pytest.mark.slow  # 15 seconds: torch is loaded, and a server started
COUNT = 5
START_SECONDS = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    make_base(folder, "llama")
    return folder


@pytest.fixture(scope="module")
def base_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    with log.open("wb") as file:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"],
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "TRANSFORMERS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"},
        )
    try:
        end = time.monotonic() + START_SECONDS
        while not is_up(f"http://127.0.0.1:{port}/health"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < end, log.read_text(errors="replace")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except (urllib.error.URLError, TimeoutError):
        return False


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


@pytest.fixture
def words(tmp_path: Path, bucket_uri: str, base_url: str) -> Callable[[str, Path], tuple[str, ...]]:
    rows = [
        {"instruction": f"第{number}个问题：头疼怎么办？", "output": "请多休息。"} for number in range(COUNT)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (tmp_path / "raw.jsonl").write_text(lines, encoding="utf-8")

    def words_of(out: str, model: Path) -> tuple[str, ...]:
        asked = ("--model", str(model), "--base-url", base_url, "--max-tokens", "24", "--tries", "2")
        more = ("--local", "--accept-identifiable", "--ledger", f"{bucket_uri}/ledger")
        return ("data", "normalize", "raw.jsonl", f"{bucket_uri}/{out}", *asked, *more)

    return words_of


def test_the_way_to_a_real_server_and_back(
    command: CommandLine,
    words: Callable[[str, Path], tuple[str, ...]],
    model: Path,
    store: ObjectStore,
    bucket_uri: str,
) -> None:
    """A random model's words are cut JSON at best: all in quarantine with the reason, all in the ledger."""
    stopped = command(*words("strict", model))
    assert stopped.exit_code == 2
    assert "error[TooManyUnusableAnswers]" in stopped.stderr
    assert f"{COUNT} of {COUNT} records" in stopped.stderr
    answers = list(store.list(f"{bucket_uri}/ledger/answers"))
    assert len(answers) == 2 * COUNT
    for info in answers:
        answer = store.get_record(info.uri, StoredAnswer)
        assert answer.counted
        assert answer.prompt_tokens > 400
        assert 0 < answer.completion_tokens <= 24
        assert answer.model.startswith(str(model))

    done = command(*words("lenient", model), "--max-unusable", "1")
    assert done.exit_code == 0, done.output
    manifest = find_manifest(store, f"{bucket_uri}/lenient")
    assert manifest is not None
    assert (manifest.read, manifest.written) == (COUNT, 0)
    assert sum(manifest.quarantined.values()) == COUNT
    assert all(
        reason.startswith("normalize: ") and "after 2 tries" in reason for reason in manifest.quarantined
    )
    assert manifest.counts["normalize"]["answers"] == 2 * COUNT
    assert manifest.notes["normalize"]["retries"] == {}
    assert "0 of 5 records" in done.stdout
    # The answers of the first run were taken: the server was asked for none again.
    assert manifest.notes["normalize"]["requests"] == 0
    assert len(list(store.list(f"{bucket_uri}/ledger/answers"))) == len(answers)


def test_a_model_that_it_does_not_have(
    command: CommandLine,
    words: Callable[[str, Path], tuple[str, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers 500 to that, as a server that fails does: it gets a minute, not a quarter of an hour."""
    monkeypatch.setattr("zhongjing.construct.llm.client.UNPROVEN_SECONDS", 3.0)
    result = command(*words("none", tmp_path / "none"))
    assert result.exit_code == 3, result.output
    assert "error[LanguageModelUnavailable]" in result.stderr
    assert "HTTP 500" in result.stderr
    assert "it has not answered once" in result.stderr
