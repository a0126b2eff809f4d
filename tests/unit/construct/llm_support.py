"""What tests of language-model steps share: dialogues, a desk at the scripted server."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.unit.construct.scripted_server import KEY, ScriptedServer
from zhongjing.config.sources import Storage
from zhongjing.construct.llm.batch import Desk
from zhongjing.construct.llm.client import Patience
from zhongjing.construct.llm.limits import Limits
from zhongjing.construct.llm.server import KeySource, Server
from zhongjing.data.records import Dialogue, Position, Turn

KEY_NAME = "SCRIPTED_API_KEY"
IMPATIENT = Patience(seconds=20, request=10, connect=2, first=0.01, longest=0.05)


def dialogue(number: int, *texts: str) -> Dialogue:
    """User and assistant in turn; without texts a question and a terse answer of that number."""
    texts = texts or (f"医生您好，我是第{number}位，头疼怎么办？", "布洛芬每次0.3g，一天2次，饭后服。")
    roles = ("user", "assistant")
    turns = tuple(Turn(roles[at % 2], text) for at, text in enumerate(texts))  # type: ignore[arg-type]
    return Dialogue(turns, Position("raw", "s3://raw/a.jsonl", number, number + 1), "神经内科")


def desk_at(server: ScriptedServer, storage: Storage, **changes: Any) -> Desk:
    """A desk that asks the scripted server with little patience."""
    desk = Desk(
        server=Server(server.base_url, "tiny", KeySource(environment=KEY_NAME)),
        storage=storage,
        ledger=f"{storage.uri}/ledger",
        account="work",
        limits=Limits(concurrency=4),
        patience=IMPATIENT,
    )
    return replace(desk, **changes)


def set_key(monkeypatch: Any) -> None:
    """The right key, in the environment of this process."""
    monkeypatch.setenv(KEY_NAME, KEY)
