"""A store is tried with one object, which does not stay, and each wrong answer has its name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import MemoryStore
from zhongjing.codes import Code
from zhongjing.codes.storage import DAMAGED_OBJECT, STORAGE_REFUSED
from zhongjing.errors import StorageError
from zhongjing.storage.objects import ObjectStore
from zhongjing.storage.probe import try_object

FOLDER = "s3://bucket/.try"


class Store(MemoryStore):
    """A store that may answer wrongly."""

    storage = SimpleNamespace(uri="s3://bucket")
    connection = SimpleNamespace(name="127.0.0.1")

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)


def test_a_store_that_answers_well_keeps_nothing() -> None:
    store = Store()
    said = try_object(cast(ObjectStore, store), FOLDER)
    assert said.startswith("s3://bucket at 127.0.0.1: write, read, list and delete, ")
    assert store.objects == {}


@pytest.mark.parametrize(
    ("method", "answer", "code", "message"),
    [
        ("get", b"other", DAMAGED_OBJECT, "other bytes are read"),
        ("list", iter(()), STORAGE_REFUSED, "the listing lacks an object"),
        ("exists", True, STORAGE_REFUSED, "a deleted object is still there"),
    ],
)
def test_a_wrong_answer_is_named(
    method: str, answer: Any, code: Code, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store()
    monkeypatch.setattr(store, method, lambda uri: answer)
    with pytest.raises(StorageError, match=message) as wrong:
        try_object(cast(ObjectStore, store), FOLDER)
    assert wrong.value.code is code
    assert store.objects == {}
