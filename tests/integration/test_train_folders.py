"""Model folders in the store are checked against what their maker wrote down, when they are fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.manifests import stage_manifest
from tests.training_support import tiny_base
from zhongjing.codes import model as codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.stages import Stage
from zhongjing.errors import DataError, MissingInputError, StorageError
from zhongjing.model.tokenizer import load_tokenizer
from zhongjing.model.weights import WeightReader
from zhongjing.storage.artifacts import MADE, upload_model, write_manifest
from zhongjing.storage.heartbeat import HEARTBEAT
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.job.folders import DownloadStoppedError, Folders, until

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture
def result(store: ObjectStore, bucket_uri: str, base: Path) -> StageLayout:
    """A finished pretrain stage."""
    layout = Layout(bucket_uri, "local", "x").stage(Stage.PRETRAIN, "abc123")
    model = upload_model(store, base, layout.model, format="full")
    write_manifest(store, layout, stage_manifest(Stage.PRETRAIN, model=model))
    return layout


def test_a_stop_ends_a_download_and_the_next_attempt_begins_it_again(
    store: ObjectStore, result: StageLayout, tmp_path: Path
) -> None:
    asked: list[bool] = []

    def stop_requested() -> bool:
        asked.append(len(asked) == 1)
        return asked[-1]

    with pytest.raises(DownloadStoppedError):
        Folders(store, tmp_path, until(stop_requested)).local(result.model)
    assert asked == [False, True]
    assert HEARTBEAT.fraction is not None
    assert 0 < HEARTBEAT.fraction < 1
    told: list[float] = []
    folder = Folders(store, tmp_path, told.append).local(result.model)
    assert (folder / "model.safetensors").is_file()
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_a_result_is_checked_when_it_is_fetched(
    store: ObjectStore, result: StageLayout, tmp_path: Path
) -> None:
    folder = Folders(store, tmp_path / "good").local(result.model)
    assert (folder / "model.safetensors").is_file()
    name = f"{result.model}/model.safetensors"
    content = store.get(name)
    store.put(name, content[:500] + bytes([content[500] ^ 1]) + content[501:])
    with pytest.raises(StorageError) as caught:
        Folders(store, tmp_path / "flipped").local(result.model)
    assert caught.value.code is storage_codes.DAMAGED_OBJECT
    assert caught.value.where == name
    assert "zhongjing submit --pipeline NAME --rerun pretrain" in caught.value.remedy
    store.delete(name)
    with pytest.raises(StorageError, match="a file of the model is missing") as caught:
        Folders(store, tmp_path / "missing").local(result.model)
    assert (caught.value.code, caught.value.where) == (storage_codes.DAMAGED_OBJECT, name)
    assert "--rerun pretrain" in caught.value.remedy
    store.delete(result.manifest)
    store.delete_folder(result.model)
    with pytest.raises(MissingInputError) as gone:
        Folders(store, tmp_path / "gone").local(result.model)
    assert gone.value.code is codes.MODEL_NOT_FOUND


def test_manifests_of_models(store: ObjectStore, result: StageLayout, tmp_path: Path) -> None:
    content = store.get_json(result.manifest)
    store.put_json(result.manifest, {**content, "version": 2, "novelty": 1})
    with pytest.raises(StorageError) as caught:
        Folders(store, tmp_path / "newer").local(result.model)
    assert caught.value.code is storage_codes.NEWER_VERSION
    store.put(result.manifest, b"{")
    with pytest.raises(StorageError) as caught:
        Folders(store, tmp_path / "damaged").local(result.model)
    assert caught.value.code is storage_codes.DAMAGED_OBJECT
    assert caught.value.where == result.manifest
    assert "--rerun pretrain" in caught.value.remedy


def test_a_base_that_was_made_once_is_checked(
    store: ObjectStore, bucket_uri: str, base: Path, tmp_path: Path
) -> None:
    uri = Layout(bucket_uri, "local", "x").base("abc")
    files = store.upload_folder(base, uri)
    store.put_json(f"{uri}/{MADE}", [file.model_dump(mode="json") for file in files])
    assert (Folders(store, tmp_path / "good").local(uri) / "config.json").is_file()
    store.put(f"{uri}/config.json", b"{}")
    with pytest.raises(StorageError) as caught:
        Folders(store, tmp_path / "damaged").local(uri)
    assert caught.value.code is storage_codes.DAMAGED_OBJECT
    assert caught.value.where == f"{uri}/config.json"


def test_models_that_nobody_uses_give_way_where_room_is_needed(
    store: ObjectStore, bucket_uri: str, full_disk: Path
) -> None:
    # The disk holds 8 MiB.
    for name in ("a", "b", "c", "d"):
        store.put(f"{bucket_uri}/{name}/weights", bytes(3 << 20))
    longest = Folders(store, full_disk)
    first = longest.local(f"{bucket_uri}/a")
    other = Folders(store, full_disk)
    second = other.local(f"{bucket_uri}/b")
    with pytest.raises(StorageError) as caught:
        Folders(store, full_disk).local(f"{bucket_uri}/c")  # both are in use
    assert caught.value.code is storage_codes.DISK_FULL
    assert (first / "weights").is_file()
    assert (second / "weights").is_file()
    del longest, other
    Folders(store, full_disk).local(f"{bucket_uri}/a")  # the latest use
    third = Folders(store, full_disk).local(f"{bucket_uri}/c")
    assert (third / "weights").is_file()
    assert (first / "weights").is_file()
    assert not second.exists()


def test_an_outline_has_the_shape_of_a_model_and_none_of_its_weight(
    store: ObjectStore, result: StageLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zhongjing.train.job.folders.OUTLINE_BYTES", 1000)
    name = f"{result.model}/model.safetensors"
    weights = store.get(name)
    folders = Folders(store, tmp_path)
    outline = folders.outline(result.model)
    whole = folders.local(result.model)
    assert outline != whole
    assert sorted(file.name for file in outline.iterdir()) == sorted(file.name for file in whole.iterdir())
    file = outline / "model.safetensors"
    assert file.stat().st_size == len(weights)
    assert file.read_bytes() != weights
    with WeightReader(outline) as thin, WeightReader(whole) as full:
        assert {tensor: thin.shape(tensor) for tensor in thin} == {
            tensor: full.shape(tensor) for tensor in full
        }
    assert load_tokenizer(outline).get_vocab() == load_tokenizer(whole).get_vocab()
    assert folders.outline(result.model) == whole  # where it is there anyway

    store.put(name, weights[:-1])
    with pytest.raises(StorageError) as caught:
        Folders(store, tmp_path / "cut").outline(result.model)
    assert (caught.value.code, caught.value.where) == (storage_codes.DAMAGED_OBJECT, name)
    # A folder that nobody described: its header tells.
    copied = result.model.replace("/model", "/copy")
    for info in list(store.list(result.model)):
        store.put(info.uri.replace("/model/", "/copy/"), store.get(info.uri))
    with pytest.raises(DataError) as unusable:
        WeightReader(Folders(store, tmp_path / "copy").outline(copied))
    assert unusable.value.code is codes.UNUSABLE_MODEL
    store.put(f"{copied}/model.safetensors", b"no weights at all" * 100)
    with pytest.raises(StorageError, match="no safetensors file"):
        Folders(store, tmp_path / "text").outline(copied)
