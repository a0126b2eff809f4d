"""Requests, manifests, the result in use and models in a real store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.manifests import stage_manifest
from zhongjing.config.stages import Stage
from zhongjing.errors import ConflictError, StorageError
from zhongjing.storage import artifacts
from zhongjing.storage.documents import record_bytes
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import ModelArtifact, StageManifest
from zhongjing.storage.objects import ObjectStore

pytestmark = pytest.mark.integration


@pytest.fixture
def layout(bucket_uri: str) -> Layout:
    return Layout(f"{bucket_uri}/prefix", "local", "tiny")


@pytest.fixture
def stage(layout: Layout) -> StageLayout:
    return layout.stage(Stage.SFT, "abc123")


def manifest(attempt: int, **changes: Any) -> StageManifest:
    model = ModelArtifact(uri="s3://bucket/model", format="adapter", base_uri="s3://bucket/base")
    submission = f"tiny-01234567-sft-a{attempt}"
    return stage_manifest(
        Stage.SFT, pipeline="tiny", attempt=attempt, submission_id=submission, model=model, **changes
    )


def test_manifest_is_written_once(store: ObjectStore, stage: StageLayout) -> None:
    assert store.find_record(stage.manifest, StageManifest) is None
    first = artifacts.write_manifest(store, stage, manifest(1))
    assert store.find_record(stage.manifest, StageManifest) == first
    # The same attempt again, at another time of day: the answer to the first write was lost.
    again = artifacts.write_manifest(store, stage, manifest(1, finished_at="2026-11-22T20:10:05Z"))
    assert again == first
    with pytest.raises(ConflictError, match=r"attempt 1 .* completed this stage before attempt 2") as caught:
        artifacts.write_manifest(store, stage, manifest(2))
    assert caught.value.where == stage.manifest
    assert store.find_record(stage.manifest, StageManifest) == first


def test_manifest_of_a_newer_release(store: ObjectStore, stage: StageLayout) -> None:
    document = json.loads(record_bytes(manifest(1)))
    store.put_json(stage.manifest, {**document, "version": 2, "novelty": {}})
    with pytest.raises(StorageError, match="version 2; this program knows 1") as caught:
        store.find_record(stage.manifest, StageManifest)
    assert caught.value.where == stage.manifest


def test_damaged_manifest(store: ObjectStore, stage: StageLayout) -> None:
    store.put(stage.manifest, record_bytes(manifest(1))[:-20])
    with pytest.raises(StorageError, match="not valid JSON") as caught:
        store.find_record(stage.manifest, StageManifest)
    assert caught.value.where == stage.manifest


def test_stop_mark(store: ObjectStore, stage: StageLayout) -> None:
    assert not store.exists(stage.stop(1))
    artifacts.request_stop(store, stage.stop(1), "Suspended", "the pipeline is suspended")
    artifacts.request_stop(store, stage.stop(1), "Superseded", "another result is wanted")
    assert store.exists(stage.stop(1))
    assert not store.exists(stage.stop(2))
    assert store.get_record(stage.stop(1), artifacts.StopMark).reason == "Suspended"


def test_model_round_trip(store: ObjectStore, stage: StageLayout, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(StorageError, match="empty"):
        artifacts.upload_model(store, folder, stage.model, format="full")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    store.put(f"{stage.model}/left-by-a-dead-attempt.bin", b"x")
    model = artifacts.upload_model(store, folder, stage.model, format="adapter", base_uri="s3://b/base")
    assert [file.name for file in model.files] == ["adapter_config.json", "adapter_model.safetensors"]
    assert not store.exists(f"{stage.model}/left-by-a-dead-attempt.bin")
    copy = tmp_path / "copy"
    store.download_folder(model.uri, copy, model.files)
    assert (copy / "adapter_model.safetensors").read_bytes() == b"weights"
    store.put(f"{stage.model}/adapter_model.safetensors", b"Weights")
    with pytest.raises(StorageError, match="damaged"):
        store.download_folder(model.uri, tmp_path / "other", model.files)
