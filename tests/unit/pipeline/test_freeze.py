"""Sources are fixed at their first use: hashed, uploaded once, listed."""

from __future__ import annotations

import hashlib
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import LAYOUT, MemoryStore
from zhongjing.config.resolve import resolve
from zhongjing.errors import ConfigError, MissingInputError
from zhongjing.pipeline.freeze import FrozenInputs, absolute, freeze, is_local_folder
from zhongjing.storage.listing import local_files


def document(*sources: dict[str, Any], base: str = "owner/base") -> Any:
    listed = [{"name": f"s{number}", "kind": "text", **source} for number, source in enumerate(sources)]
    return resolve({"metadata": {"name": "demo"}, "spec": {"base": {"uri": base}, "sources": listed}})


def run(store: MemoryStore, *sources: dict[str, Any], **options: Any) -> FrozenInputs:
    base = options.pop("base", "owner/base")
    return freeze(cast(Any, store), LAYOUT, document(*sources, base=base), **options)


def uploads(store: MemoryStore) -> list[str]:
    return sorted(uri for uri in store.objects if "/uploads/" in uri)


def test_a_local_file_is_uploaded_once_by_its_content(tmp_path: Path) -> None:
    file = tmp_path / "corpus.txt"
    file.write_text("text")
    store, told = MemoryStore(), []
    frozen = run(
        store, {"uri": str(file)}, on_upload=lambda name, done, size: told.append((name, done, size))
    )
    sha256 = hashlib.sha256(b"text").hexdigest()
    [source] = frozen.sources
    [item] = source.objects
    assert (item.digest, item.size) == (sha256, 4)
    assert item.uri == f"s3://bucket/local/uploads/{sha256[:32]}/corpus.txt"
    assert store.objects[item.uri] == b"text"
    assert told == [("corpus.txt", 0, 4), ("corpus.txt", 4, 4)]
    told.clear()
    assert run(store, {"uri": str(file)}, on_upload=lambda *args: told.append(args)).sources == frozen.sources
    assert told == [("corpus.txt", 4, 4)], "it is there already"
    elsewhere = tmp_path / "copy" / "corpus.txt"
    elsewhere.parent.mkdir()
    elsewhere.write_text("text")
    assert run(store, {"uri": str(elsewhere)}).sources == frozen.sources


def test_a_dry_run_uploads_nothing_and_finds_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    store = MemoryStore()
    dry = run(store, {"uri": str(tmp_path)}, upload=False)
    assert uploads(store) == []
    assert run(store, {"uri": str(tmp_path)}).sources == dry.sources


def test_folders_and_globs_in_order_without_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.txt", "a.txt", "deep/c.txt", ".hidden", ".git/config"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = [path.relative_to(tmp_path).as_posix() for path in local_files(str(tmp_path))]
    assert names == ["a.txt", "b.txt", "deep/c.txt"]
    assert [path.name for path in local_files(f"{tmp_path}/*.txt")] == ["a.txt", "b.txt"]
    assert [path.name for path in local_files(f"{tmp_path}/**/*.txt")] == ["a.txt", "b.txt", "c.txt"]
    monkeypatch.setenv("CORPUS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_files("$CORPUS/a.txt") == local_files("~/a.txt") == [tmp_path / "a.txt"]
    assert local_files(f"file://{tmp_path}/a.txt") == [tmp_path / "a.txt"]


def test_the_digest_follows_content_and_order(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("x")
    (tmp_path / "2.txt").write_text("y")
    before = run(MemoryStore(), {"uri": str(tmp_path)}).sources[0].digest
    (tmp_path / "1.txt").write_text("y")
    (tmp_path / "2.txt").write_text("x")
    assert run(MemoryStore(), {"uri": str(tmp_path)}).sources[0].digest != before


def test_a_missing_path_is_named_unless_it_is_waited_for(tmp_path: Path) -> None:
    gone = str(tmp_path / "gone.jsonl")
    with pytest.raises(MissingInputError, match=r"gone\.jsonl") as missing:
        run(MemoryStore(), {"uri": gone})
    assert missing.value.exit_code == 2
    assert missing.value.where == "spec.sources.s0.uri"
    waited = run(MemoryStore(), {"uri": gone, "wait": True})
    assert (waited.sources, waited.waiting) == ([], ["s0"])
    with pytest.raises(MissingInputError, match="s3://data/none"):
        run(MemoryStore(), {"uri": "s3://data/none.jsonl"})


def test_objects_of_the_store_are_listed() -> None:
    store = MemoryStore()
    store.objects = {"s3://data/a/1.jsonl": b"1", "s3://data/a/2.jsonl": b"22", "s3://data/b.jsonl": b"3"}
    one = run(store, {"uri": "s3://data/b.jsonl"}).sources[0]
    assert [(item.uri, item.size) for item in one.objects] == [("s3://data/b.jsonl", 1)]
    for pattern in ("s3://data/a/*.jsonl", "s3://data/a/", "s3://data/a"):
        found = run(store, {"uri": pattern}).sources[0]
        assert [item.uri for item in found.objects] == ["s3://data/a/1.jsonl", "s3://data/a/2.jsonl"]
    store.objects["s3://data/a/2.jsonl"] = b"33"
    assert run(store, {"uri": "s3://data/a/"}).sources[0].digest != found.digest
    assert uploads(store) == []


def test_hub_data_is_fixed_by_its_revision() -> None:
    first, second = (
        run(MemoryStore(), {"uri": f"hf://datasets/owner/name@{revision}"}).sources[0].digest
        for revision in ("v1", "v2")
    )
    assert first != second


def test_other_schemes_are_refused() -> None:
    with pytest.raises(ConfigError, match="ftp://"):
        run(MemoryStore(), {"uri": "ftp://host/file"})


def test_a_listing_stays_frozen_and_a_change_is_noted(tmp_path: Path) -> None:
    (tmp_path / "1.txt").write_text("x")
    store = MemoryStore()
    first = run(store, {"uri": str(tmp_path)})
    known = {"s0": (str(tmp_path), first.sources[0])}
    assert run(store, {"uri": str(tmp_path)}, known=known).notes == []
    (tmp_path / "2.txt").write_text("y")
    again = run(store, {"uri": str(tmp_path)}, known=known)
    assert again.sources == first.sources
    assert "--refresh-data" in again.notes[0]
    refreshed = run(store, {"uri": str(tmp_path)})
    assert len(refreshed.sources[0].objects) == 2
    # Another uri is another source, whatever its name.
    moved = run(store, {"uri": str(tmp_path / "2.txt")}, known=known)
    assert len(moved.sources[0].objects) == 1
    for file in tmp_path.iterdir():
        file.unlink()
    assert "its own copy" in run(store, {"uri": str(tmp_path)}, known=known).notes[0]


def test_a_corrected_file_of_the_same_size_is_noted(tmp_path: Path) -> None:
    file = tmp_path / "rank.csv"
    file.write_text("1,1")
    store = MemoryStore()
    known = {"s0": (str(file), run(store, {"uri": str(file)}).sources[0])}
    later = datetime(2028, 1, 1, tzinfo=UTC).timestamp()  # than the upload, by the store's clock
    os.utime(file, (later, later))
    assert run(store, {"uri": str(file)}, known=known).notes == [], "touched, not changed"
    file.write_text("1,2")
    os.utime(file, (later, later))
    again = run(store, {"uri": str(file)}, known=known, upload=False)
    assert again.sources == [known["s0"][1]]
    [note] = again.notes
    assert "source s0" in note
    assert "--refresh-data" in note
    store.objects.clear()
    assert run(store, {"uri": str(file)}, known=known).notes == [note], "no upload to compare with"


def test_a_local_base_is_uploaded_as_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    store = MemoryStore()
    [reference] = run(store, base=str(tmp_path)).references
    assert reference.reference == str(tmp_path)
    assert reference.uri == LAYOUT.base(reference.digest)
    assert store.objects[f"{reference.uri}/model.safetensors"] == b"weights"
    (tmp_path / "model.safetensors").write_bytes(b"others!")
    assert run(store, base=str(tmp_path)).references[0].digest != reference.digest
    with pytest.raises(MissingInputError, match="no model"):
        run(store, base=str(tmp_path / "none"))
    assert run(store, base="owner/model").references == []


def test_a_model_in_the_store_has_to_be_there() -> None:
    store = MemoryStore()
    with pytest.raises(MissingInputError, match="there is no model at s3://models/base") as missing:
        run(store, base="s3://models/base/")
    assert missing.value.where == "spec.base.uri"
    store.objects["s3://models/base/config.json"] = b"{}"
    assert run(store, base="s3://models/base/").references == []


def test_what_means_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert is_local_folder("./x")
    assert is_local_folder("/x")
    assert is_local_folder("owner/name"), "as from_pretrained takes it"
    assert not is_local_folder("owner/other")
    assert not is_local_folder("s3://bucket/x")
    assert absolute("a.txt", tmp_path) == str(tmp_path / "a.txt")
    assert absolute("/a.txt", tmp_path) == "/a.txt"
    assert absolute("s3://b/a.txt", tmp_path) == "s3://b/a.txt"
