"""Test sets by a hash of their questions."""

from __future__ import annotations

import json

import pytest

from zhongjing.config.sources import Kind, Source
from zhongjing.construct.draw import draw
from zhongjing.construct.manifest import SourceManifest
from zhongjing.errors import ConfigError
from zhongjing.storage.objects import ObjectStore


def line(question: str, answer: str, *more: str) -> str:
    turns = [question, answer, *more]
    messages = [
        {"role": "assistant" if place % 2 else "user", "content": each} for place, each in enumerate(turns)
    ]
    return json.dumps({"messages": messages}, ensure_ascii=False) + "\n"


def questions(store: ObjectStore, made: SourceManifest) -> list[str]:
    lines = [each for part in made.parts for each in store.get(part.uri).decode().splitlines()]
    return [json.loads(each)["messages"][0]["content"] for each in lines]


def test_so_many_questions_are_drawn_whatever_their_order(store: ObjectStore, bucket_uri: str) -> None:
    lines = [line(f"这是第{number}个很长的问题，请医生回答一下。", f"答{number}") for number in range(60)]
    twice = [line("这是第7个很长的问题，请医生回答一下。", "另一个答"), *lines]
    store.put(f"{bucket_uri}/a/1.jsonl", "".join(twice).encode())
    store.put(f"{bucket_uri}/b/1.jsonl", "".join(reversed(twice)).encode())
    a, b = (Source(name=name, uri=f"{bucket_uri}/{name}", kind=Kind.DIALOGUE) for name in ("a", "b"))
    test, rest = draw(store, a, f"{bucket_uri}/one", 20)
    drawn = set(questions(store, test))
    assert len(drawn) == 20
    assert test.written + rest.written == 61
    assert not drawn & set(questions(store, rest))
    assert set(questions(store, draw(store, b, f"{bucket_uri}/two", 20)[0])) == drawn
    assert set(questions(store, draw(store, a, f"{bucket_uri}/three", 20, seed=1)[0])) != drawn
    more = set(questions(store, draw(store, a, f"{bucket_uri}/four", 30)[0]))
    assert drawn < more
    assert draw(store, a, f"{bucket_uri}/one", 20) == (test, rest)
    with pytest.raises(ConfigError, match="60 different questions"):
        draw(store, a, f"{bucket_uri}/five", 61)


def test_only_long_dialogues_are_drawn(store: ObjectStore, bucket_uri: str) -> None:
    lines = [
        line(
            f"这是第{number}个很长的问题，请医生回答一下。",
            "答",
            *(("再问", "再答") if number % 3 == 0 else ()),
        )
        for number in range(30)
    ]
    store.put(f"{bucket_uri}/a/1.jsonl", "".join(lines).encode())
    source = Source(name="a", uri=f"{bucket_uri}/a", kind=Kind.DIALOGUE)
    test, rest = draw(store, source, f"{bucket_uri}/one", 10, least_turns=2)
    assert test.written == 10
    assert rest.written == 20
    with pytest.raises(ConfigError, match="10 different"):
        draw(store, source, f"{bucket_uri}/two", 11, least_turns=2)
