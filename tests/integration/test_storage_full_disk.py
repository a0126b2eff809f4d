"""Checkpoints on a disk that is really full."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.storage.checkpoints import CheckpointStore
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.objects import ObjectStore

pytestmark = pytest.mark.integration


def writing(text: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "state.bin").write_bytes(os.urandom(1000))
        (folder / "trainer.json").write_text(text)

    return write


def test_safetensors_on_a_full_disk_is_a_full_disk(
    store: ObjectStore, layout: StageLayout, full_disk: Path, tmp_path: Path
) -> None:
    """safetensors removes its file before it tells: afterwards the disk does not look full any more."""
    checkpoints = CheckpointStore(store, layout, full_disk / "spool", keep=2)
    checkpoints.save(10, writing("fits"))
    tensors = {"large": torch.zeros(4 << 20)}
    with pytest.raises(StorageError) as caught:
        checkpoints.save(20, lambda folder: save_file(tensors, folder / "state.safetensors"))
    assert caught.value.code is codes.DISK_FULL
    assert str(full_disk / "spool") in str(caught.value.where)
    checkpoints.save(30, writing("fits again"))
    checkpoints.wait()
    assert checkpoints.steps() == [10, 30], "no torn checkpoint of step 20"
    assert list((full_disk / "spool").iterdir()) == []
    second = CheckpointStore(store, layout, tmp_path / "spool", keep=2, attempt=2)
    assert second.restore(tmp_path / "part") == 30
