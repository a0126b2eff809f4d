"""data dedup, on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from zhongjing.cli.commands.dedup import name_of
from zhongjing.construct.manifest import find_manifest
from zhongjing.storage.objects import ObjectStore


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


def write(path: Path, *questions: str) -> None:
    talks = [{"instruction": each, "output": f"关于{each}的回答，请到医院就诊。"} for each in questions]
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in talks))


def test_two_sources_and_a_test_set_are_told_apart(
    command: CommandLine, store: ObjectStore, bucket_uri: str, tmp_path: Path
) -> None:
    write(
        tmp_path / "talks.jsonl", "最近三天一直头痛要紧吗", "孩子夜里咳嗽怎么办", "最近三天一直头痛，要紧吗？"
    )
    write(tmp_path / "more.jsonl", "孩子夜里咳嗽怎么办", "老人血压高吃什么药好")
    write(tmp_path / "test.jsonl", "老人血压高吃什么药好")
    out = f"{bucket_uri}/unique"
    words = ("data", "dedup", "talks.jsonl", "more.jsonl", out, "--local", "--processes", "1")
    planned = command(*words, "--plan")
    assert planned.exit_code == 0, planned.output
    assert "5" in planned.stdout
    assert not list(store.list(out))
    result = command(*words, "--against", "test.jsonl")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["talks", "3", "2", "33.3%", f"{out}/talks/"] in lines
    assert ["more", "2", "0", "100.0%", f"{out}/more/"] in lines
    assert ["test", "1", "1"] in lines
    assert "头痛" not in result.output
    manifest = find_manifest(store, f"{out}/talks")
    assert manifest is not None
    assert manifest.counts == {"dedup": {"equal: talks": 1}}
    told = json.loads(command(*words, "--against", "test.jsonl", "-o", "json").stdout)
    assert told["uris"] == [f"{out}/talks", f"{out}/more"]
    assert command("data", "dedup", out, "--local").exit_code == 2
    assert command(*words, "--threshold", "2").exit_code == 2


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("s3://corpus/Clean_talks/", "clean-talks"),
        ("raw/CMtMedQA_sample.json", "cmtmedqa-sample"),
        ("s3://corpus/a/*.jsonl", "a"),
        ("/数据/对话.jsonl", "source"),
    ],
)
def test_a_source_is_named_by_its_uri(uri: str, name: str) -> None:
    assert name_of(uri) == name
