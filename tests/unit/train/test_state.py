"""The JSON part of a checkpoint: damage, and versions that this program does not know."""

from __future__ import annotations

from pathlib import Path

import pytest

from zhongjing.codes import Code
from zhongjing.codes import storage as codes
from zhongjing.errors import StorageError
from zhongjing.train.state import TRAINER_FILE, read_trainer


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", codes.DAMAGED_CHECKPOINT),
        (b'{"version": 1', codes.DAMAGED_CHECKPOINT),
        (b"\xff", codes.DAMAGED_CHECKPOINT),
        (b"[]", codes.DAMAGED_CHECKPOINT),
        (b"{}", codes.DAMAGED_OBJECT),
        (b'{"version": 0}', codes.DAMAGED_OBJECT),
        (b'{"version": 1}', codes.DAMAGED_CHECKPOINT),
        (b'{"version": 3, "novelty": 1}', codes.NEWER_VERSION),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, content: bytes, code: Code) -> None:
    (tmp_path / TRAINER_FILE).write_bytes(content)
    with pytest.raises(StorageError) as caught:
        read_trainer(tmp_path)
    assert caught.value.code is code
    assert caught.value.where == str(tmp_path / TRAINER_FILE)


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    with pytest.raises(StorageError) as caught:
        read_trainer(tmp_path)
    assert caught.value.code is codes.DAMAGED_CHECKPOINT
