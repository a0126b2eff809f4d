"""data deidentify, on a real S3 server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from zhongjing.construct.manifest import find_manifest
from zhongjing.storage.objects import ObjectStore

PHONE = "13912345678"


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    talks = [
        {
            "instruction": f"我头痛{number}天了，电话{PHONE}，能回电吗？",
            "output": f"请到神经内科就诊，第{number}天复查。",
        }
        for number in range(4)
    ]
    path = tmp_path / "raw.jsonl"
    path.write_text("".join(json.dumps(each, ensure_ascii=False) + "\n" for each in talks))
    return path


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


def test_identifiers_are_replaced_and_reviewed_by_count(
    command: CommandLine, raw: Path, store: ObjectStore, bucket_uri: str
) -> None:
    out = f"{bucket_uri}/clean"
    words = ("data", "deidentify", raw.name, out, "--local", "--processes", "1")
    result = command(*words, "--review")
    assert result.exit_code == 0, result.output
    assert "4 of 4 records" in result.stdout
    assert ["PHONE", "4"] in [line.split() for line in result.stdout.splitlines()]
    assert f"uri: {out}/, kind: dialogue" in result.stdout
    assert PHONE not in result.output
    written = store.get(f"{out}/part-00000.jsonl").decode()
    assert "神经内科" in written
    assert PHONE not in written
    assert raw.name not in written
    manifest = find_manifest(store, out)
    assert manifest is not None
    assert manifest.has_passed("deidentify")
    again = command(*words, "-o", "json")
    assert again.exit_code == 0
    told = json.loads(again.stdout)
    assert (told["key"], told["written"], told["uri"]) == (manifest.key, 4, out)


def test_a_plan_writes_nothing_and_needs_no_store_for_local_files(
    command: CommandLine, raw: Path, session: MemorySession
) -> None:
    words = ("data", "deidentify", raw.name, "s3://none/clean", "--local", "--plan", "--processes", "2")
    result = command(*words)
    assert result.exit_code == 0, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines()}
    assert lines["records"].split()[1] == "4"
    assert "2 processes" in lines["time"]
    assert not command.workdirs
    told = json.loads(command(*words, "-o", "json").stdout)
    assert told["exact"] is True
    assert told["hours"] > 0


def test_a_source_of_a_document_and_a_policy_are_taken(
    command: CommandLine, raw: Path, tmp_path: Path, bucket_uri: str, store: ObjectStore
) -> None:
    (tmp_path / "my.yaml").write_text(
        "metadata: {name: my}\nspec:\n  base: {tiny: {}}\n  sources:\n"
        f"    - {{name: talks, uri: {raw}, kind: dialogue}}\n"
        "  stages: {sft: {data: [{source: talks}]}}\n"
    )
    shipped = Path("zhongjing/construct/deidentify/policy.yaml")
    text = (Path(__file__).parents[3] / shipped).read_text(encoding="utf-8")
    kept = text.replace("action: placeholder", "action: keep").replace("action: relative", "action: keep")
    (tmp_path / "policy.yaml").write_text(kept, encoding="utf-8")
    out = f"{bucket_uri}/clean"
    words = ("data", "deidentify", "talks", out, "-f", "my.yaml", "--local", "--policy", "policy.yaml")
    result = command(*words, "--processes", "1")
    assert result.exit_code == 0, result.output
    assert PHONE in store.get(f"{out}/part-00000.jsonl").decode()
    other = command("data", "deidentify", "none", out, "-f", "my.yaml", "--local")
    assert other.exit_code == 2
    assert "talks" in other.stderr
    # The same place with the shipped policy: another key.
    refused = command("data", "deidentify", raw.name, out, "--local", "--processes", "1")
    assert refused.exit_code == 2
    assert "OutputInUse" in refused.stderr


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("raw.jsonl", "s3://b/clean"), "NoCluster"),
        (("raw.jsonl", "./clean", "--local"), "InvalidOption"),
        (("raw.jsonl", "s3://b", "--local"), "InvalidOption"),
        (("none.jsonl", "s3://b/clean", "--local"), "SourceNotFound"),
        (("raw.jsonl", "s3://b/clean", "--local", "--endpoint", "http://127.0.0.1:1"), "InvalidOption"),
        (("raw.jsonl", "s3://b/clean", "--local", "--policy", "none.yaml"), "DocumentNotFound"),
    ],
)
@pytest.mark.usefixtures("raw")
def test_what_cannot_be_done_is_said_before_anything_is_written(
    command: CommandLine, words: tuple[str, ...], code: str
) -> None:
    result = command("data", "deidentify", *words)
    assert result.exit_code == (3 if code == "NoCluster" else 2), result.output
    assert f"error[{code}]" in result.stderr
