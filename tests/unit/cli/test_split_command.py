"""data split, on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from zhongjing.construct.manifest import find_manifest
from zhongjing.storage.objects import ObjectStore


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


def test_a_test_set_and_the_rest_are_two_sources(
    command: CommandLine, store: ObjectStore, bucket_uri: str, tmp_path: Path
) -> None:
    talks = [
        {"instruction": f"第{number}个病人的问题是什么？请回答。", "output": "答"} for number in range(9)
    ]
    (tmp_path / "talks.jsonl").write_text("".join(json.dumps(each) + "\n" for each in talks))
    out = f"{bucket_uri}/drawn"
    words = ("data", "split", "talks.jsonl", out, "--local", "--processes", "1")
    assert command(*words, "--count", "10").exit_code == 2
    planned = command(*words, "--count", "3", "--plan")
    assert planned.exit_code == 0, planned.output
    assert ["records", "9"] in [line.split() for line in planned.stdout.splitlines()]
    assert not list(store.list(out))
    result = command(*words, "--count", "3")
    assert result.exit_code == 0, result.output
    assert "3 records for the test, 6 are left" in result.stdout
    assert f"uri: {out}/test/, kind: dialogue, split: test" in result.stdout
    manifest = find_manifest(store, f"{out}/rest")
    assert manifest is not None
    assert manifest.written == 6
    told = json.loads(command(*words, "--count", "3", "-o", "json").stdout)
    assert told["test"] == {"uri": f"{out}/test", "written": 3}
