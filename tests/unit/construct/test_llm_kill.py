"""A process is killed again and again: no stored answer is asked for twice, and the output is the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.unit.construct.llm_child import CONCURRENCY
from tests.unit.construct.llm_support import KEY_NAME
from tests.unit.construct.scripted_server import KEY, Body, ScriptedServer, dialogue_of, polite

ROOT = Path(__file__).parents[3]
ITEMS = 200


def partly_flattering(body: Body) -> str:
    """Every seventh answer has another dose; half of these models see it when they are told."""
    number = int("".join(character for character in dialogue_of(body)[0]["text"] if character.isdigit()))
    told = len(body["messages"]) > 2
    if number % 7 == 0 and not (told and number % 2):
        return polite(body).replace("0.3g", "0.9g")
    return polite(body)


def child(server: ScriptedServer, uri: str, output: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.construct.llm_child"]
    return subprocess.Popen(
        [*command, server.base_url, uri, str(ITEMS), str(output)],
        cwd=ROOT,
        env={**os.environ, KEY_NAME: KEY, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )


def finished(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    report: dict[str, Any] = json.loads(out)
    return report


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_repeat_no_more_than_was_under_way(kills: int, bucket_uri: str, tmp_path: Path) -> None:
    with ScriptedServer(partly_flattering) as server:
        calm = finished(child(server, f"{bucket_uri}/calm", tmp_path / "calm"))
        questions = len(server.bodies)
        assert (calm["asked"], calm["repeated"]) == (questions, 0)

    chance = random.Random(kills)
    with ScriptedServer(partly_flattering) as server:
        server.delay = 0.05
        for kill in range(1, kills + 1):
            # Some requests after the last kill, so that each finds questions under way.
            at = max(len(server.bodies) + 1, questions * kill // (kills + 1)) + chance.randrange(5)
            process = child(server, f"{bucket_uri}/killed", tmp_path / "killed")
            server.wait_for(at)
            process.send_signal(signal.SIGKILL)
            process.communicate()
            assert process.returncode == -signal.SIGKILL
        report = finished(child(server, f"{bucket_uri}/killed", tmp_path / "killed"))
        repeated = sum(server.seen.values()) - questions

    assert (tmp_path / "killed").read_bytes() == (tmp_path / "calm").read_bytes()
    # What the server saw twice is counted; what was noted and not sent yet is counted as well.
    assert 0 < repeated <= report["repeated"] <= kills * CONCURRENCY
    # An answer whose request a kill has cost is paid for twice, and the account says so.
    assert report["completion_tokens"] >= questions * 50
