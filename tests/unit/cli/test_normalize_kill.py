"""``zhongjing data normalize``, killed at random moments: no stored answer is asked for twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.construct.scripted_server import KEY, Body, ScriptedServer, dialogue_of, polite
from zhongjing.construct.manifest import find_manifest
from zhongjing.storage.objects import ObjectStore

ROOT = Path(__file__).parents[3]
ITEMS = 400
CONCURRENCY = 8


def partly_flattering(body: Body) -> str:
    """Every seventh answer has another dose; half of these models see it when they are told."""
    number = int("".join(character for character in dialogue_of(body)[0]["text"] if character.isdigit()))
    told = len(body["messages"]) > 2
    if number % 7 == 0 and not (told and number % 2):
        return polite(body).replace("0.3g", "0.9g")
    return polite(body)


def command(server: ScriptedServer, source: Path, out: str, log: Path) -> subprocess.Popen[bytes]:
    words = ["data", "normalize", str(source), out, "--endpoint", os.environ["AWS_ENDPOINT_URL"]]
    asked = ["--model", "tiny", "--base-url", server.base_url, "--concurrency", str(CONCURRENCY)]
    more = ["--accept-identifiable", "--ledger", f"{out}-ledger"]
    with log.open("ab") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "zhongjing", *words, *asked, *more],
            cwd=ROOT,
            env={**os.environ, "OPENAI_API_KEY": KEY, "PYTHONPATH": str(ROOT)},
            stdout=file,
            stderr=subprocess.STDOUT,
        )


def contents(store: ObjectStore, out: str) -> dict[str, bytes]:
    """All objects of an output but its manifest, by name."""
    found = {info.uri.removeprefix(out): store.get(info.uri) for info in store.list(out)}
    return {name: data for name, data in found.items() if name != "/_manifest.json"}


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.slow)])
def test_a_command_that_is_killed_goes_on(
    kills: int, bucket_uri: str, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = "布洛芬每次0.3g，一天2次，饭后服。"
    rows = [{"instruction": f"我是第{number}位，头疼怎么办？", "output": answer} for number in range(ITEMS)]
    source = tmp_path / "raw.jsonl"
    source.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    log = tmp_path / "log"

    def finished(server: ScriptedServer, out: str) -> None:
        assert command(server, source, out, log).wait(120) == 0, log.read_text(encoding="utf-8")

    calm, killed = f"{bucket_uri}/calm", f"{bucket_uri}/killed"
    with ScriptedServer(partly_flattering) as server:
        finished(server, calm)
        questions = len(server.bodies)

    chance = random.Random(kills)
    with ScriptedServer(partly_flattering) as server:
        server.delay = 0.1
        for kill in range(1, kills + 1):
            # Some requests after the last kill, so that each finds questions under way.
            at = max(len(server.bodies) + 1, questions * kill // (kills + 1)) + chance.randrange(5)
            process = command(server, source, killed, log)
            server.wait_for(at)
            time.sleep(chance.random() * server.delay)
            process.send_signal(signal.SIGKILL)
            assert process.wait(30) == -signal.SIGKILL
        finished(server, killed)
        repeated = sum(server.seen.values()) - questions

    ours, theirs = find_manifest(store, killed), find_manifest(store, calm)
    assert ours is not None
    assert theirs is not None
    assert contents(store, killed) == contents(store, calm)
    assert (ours.key, ours.counts, ours.quarantined) == (theirs.key, theirs.counts, theirs.quarantined)
    assert [part.digest for part in ours.parts] == [part.digest for part in theirs.parts]
    notes = ours.notes["normalize"]
    assert theirs.notes["normalize"]["repeatedAfterKills"] == 0
    # What the server saw twice is counted; what was noted and not sent yet is counted as well.
    assert 0 < repeated <= notes["repeatedAfterKills"] <= kills * CONCURRENCY
    assert notes["requests"] >= questions
    assert "sk-" not in log.read_text(encoding="utf-8")
    told = f"{questions} questions, {repeated} seen twice, {notes['repeatedAfterKills']} counted"
    sys.stdout.write(f"{kills} kills: {told}\n")
