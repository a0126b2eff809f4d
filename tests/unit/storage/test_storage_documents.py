from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.documents import parse_json, parse_record, record_bytes
from zhongjing.storage.files import describe_folder, path_inside
from zhongjing.storage.layout import made_by
from zhongjing.storage.manifest import ModelFile, Record

URI = "s3://bucket/some/manifest.json"


class Sample(Record):
    version: Literal[1, 2] = 2
    some_text: str


def test_round_trip_and_equal_bytes() -> None:
    record = Sample(some_text="咳嗽三天")
    data = record_bytes(record)
    assert "咳嗽三天".encode() in data
    assert b'"someText"' in data
    assert parse_record(parse_json(data, URI), Sample, URI) == record
    assert record_bytes(Sample(some_text="咳嗽三天")) == data


@pytest.mark.parametrize("data", [b"", b'{"version": 1', b"\xff\xfe{}", b"not json"])
def test_damage_names_the_object(data: bytes) -> None:
    with pytest.raises(StorageError, match="not valid JSON") as caught:
        parse_json(data, URI)
    assert caught.value.where == URI


def test_newer_version_is_told_apart_from_damage() -> None:
    with pytest.raises(StorageError, match=r"version 3; this program knows 1, 2") as caught:
        parse_record({"version": 3, "unknownKey": []}, Sample, URI)
    assert caught.value.code is codes.NEWER_VERSION
    assert "upgrade" in caught.value.remedy


@pytest.mark.parametrize("version", [0, -1, "3", 1.5, [], {}, "patient"])
def test_a_version_that_nobody_writes_is_damage(version: object) -> None:
    with pytest.raises(StorageError) as caught:
        parse_record({"version": version, "someText": "a"}, Sample, URI)
    assert caught.value.code is codes.DAMAGED_OBJECT
    assert caught.value.where == URI


@pytest.mark.parametrize(
    ("uri", "stage"),
    [
        ("s3://b/p/local/demo/sft/0a1b/manifest.json", "sft"),
        ("s3://b/local/demo/pretrain/0a1b/model/model-00001.safetensors", "pretrain"),
        ("s3://b/local/demo/ppo/0a1b/model", "ppo"),
        ("s3://b/local/demo/sft/0a1b/checkpoints/step-00000010/manifest.json", None),
        ("s3://b/local/demo/sft/0a1b/progress.json", None),
        ("s3://b/local/demo/pipeline.json", None),
        ("s3://sft/model", None),
    ],
)
def test_damaged_results_name_the_stage_to_run_again(uri: str, stage: str | None) -> None:
    assert made_by(uri) == stage
    with pytest.raises(StorageError) as caught:
        parse_json(b"{", uri)
    assert ("zhongjing submit --pipeline" in caught.value.remedy) is (stage is not None)
    assert stage is None or caught.value.remedy.endswith(f"--rerun {stage}`")


@pytest.mark.parametrize("value", [[], None, {"version": 1}, {"someText": "a", "extra": 1}])
def test_wrong_shape_names_the_place_and_no_values(value: object) -> None:
    with pytest.raises(StorageError, match="not a valid Sample") as caught:
        parse_record(value, Sample, URI)
    assert caught.value.where == URI


def test_values_stay_out_of_messages() -> None:
    with pytest.raises(StorageError) as caught:
        parse_record({"someText": "a", "patient": "李某，男，四十岁"}, Sample, URI)
    assert "李某" not in str(caught.value)


def test_describe_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.bin").write_bytes(b"abc")
    (tmp_path / "a.txt").write_bytes(b"")
    files = describe_folder(tmp_path)
    assert [(file.name, file.size) for file in files] == [("a.txt", 0), ("sub/b.bin", 3)]
    assert files[1].sha256 == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(StorageError, match="no such folder"):
        describe_folder(tmp_path / "none")


@pytest.mark.parametrize("name", ["../escape", "/etc/passwd", "a/../../b", ""])
def test_stored_names_cannot_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    file = ModelFile(name=name, size=0, sha256="")
    with pytest.raises(StorageError, match="leads out"):
        path_inside(tmp_path, file.name, URI)
