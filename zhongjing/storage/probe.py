"""Tries a store with one small object, as ``zhongjing doctor`` and ``helm test`` do."""

from __future__ import annotations

import os
import time

from zhongjing.codes.storage import DAMAGED_OBJECT, STORAGE_REFUSED
from zhongjing.errors import StorageError
from zhongjing.storage.objects import ObjectStore


def try_object(store: ObjectStore, folder: str) -> str:
    """Writes, reads back, lists and deletes one object; says where, and how long a request took.

    Args:
        store: the store.
        folder: URI of a folder that nothing else uses.

    Raises:
        ZhongjingError: the store refused, or read or listed something else.
    """
    uri, data = f"{folder}/object", os.urandom(1024)
    began = time.monotonic()
    store.put(uri, data)
    try:
        if store.get(uri) != data:
            raise StorageError("other bytes are read than were written", code=DAMAGED_OBJECT, where=uri)
        if [info.uri for info in store.list(folder)] != [uri]:
            raise StorageError(
                "the listing lacks an object that was just written", code=STORAGE_REFUSED, where=uri
            )
    finally:
        store.delete(uri)
    if store.exists(uri):
        raise StorageError("a deleted object is still there", code=STORAGE_REFUSED, where=uri)
    milliseconds = (time.monotonic() - began) / 6 * 1000
    at = f"{store.storage.uri} at {store.connection.name}"
    return f"{at}: write, read, list and delete, {milliseconds:.0f} ms a request"
