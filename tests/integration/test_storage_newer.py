"""Checkpoints of a newer release are told and left alone; damaged ones are not confused with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.checkpoint_records import MANIFEST
from zhongjing.storage.checkpoints import CheckpointStore
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore

pytestmark = pytest.mark.integration


def write(folder: Path) -> None:
    (folder / "trainer.json").write_text("{}")


def test_a_newer_checkpoint_is_not_removed(store: ObjectStore, layout: StageLayout, tmp_path: Path) -> None:
    first = CheckpointStore(store, layout, tmp_path / "one", keep=3, attempt=1)
    for step in (10, 20):
        first.save(step, write)
    first.wait()
    uri = f"{layout.checkpoint(20)}/{MANIFEST}"
    store.put_json(uri, {**store.get_json(uri), "version": 3, "novelty": 1})
    second = CheckpointStore(store, layout, tmp_path / "two", keep=3, attempt=2)
    with pytest.raises(StorageError) as caught:
        second.restore(tmp_path / "part")
    assert (caught.value.code, caught.value.where) == (codes.NEWER_VERSION, uri)
    assert json.loads(store.get(uri))["version"] == 3, "who wrote it can still use it"
    # A version that nobody writes is damage: the checkpoint before is used, and then none.
    for step, left in ((20, 10), (10, None)):
        broken = f"{layout.checkpoint(step)}/{MANIFEST}"
        store.put_json(broken, {**store.get_json(broken), "version": 0})
        again = CheckpointStore(store, layout, tmp_path / f"before-{step}", keep=3, attempt=3)
        assert again.restore(tmp_path / "part") == left
