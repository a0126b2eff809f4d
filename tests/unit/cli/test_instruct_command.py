"""data instruct, on a real S3 server: files as published become sources that stages read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from tests.unit.construct import published_tasks as tasks
from zhongjing.config.sources import Kind, Source
from zhongjing.construct.manifest import find_manifest
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, TextRecord
from zhongjing.storage.objects import ObjectStore


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


def write(folder: Path) -> None:
    (folder / "cmeee.json").write_text(
        json.dumps([tasks.cmeee() for _ in range(3)] + [{"text": "坏"}], ensure_ascii=False, indent=1)
    )
    (folder / "cmeie.json").write_text(json.dumps(tasks.cmeie(), ensure_ascii=False) + "\n")
    (folder / "cdee.json").write_text(json.dumps([tasks.cdee()], ensure_ascii=False))
    (folder / "imcs.json").write_text(tasks.imcs_file(3))
    (folder / "records.csv").write_bytes(
        "姓名,主诉,诊断\n王小明,头晕3天,高血压\n李小红,咳嗽,肺炎\n".encode("gb18030")
    )
    (folder / "graph.csv").write_text("肺炎,临床表现,咳嗽\n肺炎,药物治疗,阿莫西林\n")


@pytest.mark.parametrize(
    ("layout", "place", "kind", "written"),
    [
        ("cmeee", "cmeee.json", Kind.DIALOGUE, 3),
        ("cmeie", "cmeie.json", Kind.DIALOGUE, 1),
        ("cdee", "cdee.json", Kind.DIALOGUE, 1),
        ("imcs", "imcs.json", Kind.DIALOGUE, 18),
        ("records", "records.csv", Kind.TEXT, 2),
        ("kg", "graph.csv", Kind.TEXT, 3),
        ("kg-dialogue", "graph.csv", Kind.DIALOGUE, 1),
    ],
)
def test_a_published_file_becomes_a_source(
    command: CommandLine,
    store: ObjectStore,
    bucket_uri: str,
    tmp_path: Path,
    layout: str,
    place: str,
    kind: Kind,
    written: int,
) -> None:
    write(tmp_path)
    out = f"{bucket_uri}/{layout}"
    words = ("data", "instruct", place, out, "--as", layout, "--local", "--processes", "1")
    planned = command(*words, "--plan")
    assert planned.exit_code == 0, planned.output
    assert not list(store.list(out))
    result = command(*words, "--review")
    assert result.exit_code == 0, result.output
    assert f"uri: {out}/, kind: {kind}" in result.stdout
    assert not any(word in result.output for word in ("王小明", "头晕", "咳嗽"))
    manifest = find_manifest(store, out)
    assert manifest is not None
    assert (manifest.written, manifest.kind, manifest.complete) == (written, kind, False)
    source = Source(name="made", uri=out, kind=kind)
    found = list(read_object(f"{out}/part-00000.jsonl", source, store))
    assert len(found) == written
    assert all(isinstance(each, TextRecord if kind is Kind.TEXT else Dialogue) for each in found)
    if layout == "cmeee":
        assert manifest.quarantined == {"instruct: the item has no list of entities": 1}
    if layout == "records":
        assert "王小明" not in store.get(f"{out}/part-00000.jsonl").decode()
    again = command(*words, "-o", "json")
    assert json.loads(again.stdout)["created"] == manifest.created
    other = command(*words, "--seed", "1")
    assert other.exit_code == 2, other.output


def test_self_cognition_has_no_input(command: CommandLine, store: ObjectStore, bucket_uri: str) -> None:
    out = f"{bucket_uri}/self"
    words = ("data", "instruct", out, "--as", "self-cognition", "--local", "--count", "50")
    refused = command(*words, "--model-name", "仲景")
    assert refused.exit_code == 2
    assert "--author" in refused.output
    result = command(*words, "--model-name", "仲景", "--author", "某某团队", "--processes", "1")
    assert result.exit_code == 0, result.output
    manifest = find_manifest(store, out)
    assert manifest is not None
    assert manifest.written == 50
    assert "某某团队" in store.get(f"{out}/part-00000.jsonl").decode()
    assert command("data", "instruct", "a.json", *words[2:]).exit_code == 2
