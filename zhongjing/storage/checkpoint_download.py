"""Downloads what one rank needs of a checkpoint, and checks it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from zhongjing.codes import storage as codes
from zhongjing.errors import NotFoundError, StorageError
from zhongjing.storage.checkpoint_records import BLOCK_BYTES, CheckpointFile, Wanted
from zhongjing.storage.client import in_parallel
from zhongjing.storage.documents import damaged
from zhongjing.storage.files import disk_error, is_intact, path_inside, write_at
from zhongjing.storage.objects import ObjectStore


def download(
    store: ObjectStore, uri: str, files: Sequence[CheckpointFile], folder: Path, wanted: Wanted | None
) -> str | None:
    """Fetches whole files, then the parts of the others.

    Args:
        store: has the checkpoint.
        uri: the checkpoint's folder.
        files: of its manifest.
        folder: where to. Files that are read in parts have their true size, and nothing where nothing was
            asked for.
        wanted: the parts; None for everything.

    Returns:
        What is missing or damaged; None: nothing is.

    Raises:
        StorageError: the store cannot give it, or the local disk is full.
    """
    for file in files:
        if file.blocks:
            continue
        path = path_inside(folder, file.name, uri)
        try:
            store.get_file(f"{uri}/{file.name}", path)
        except NotFoundError:
            return f"{file.name} is missing"
        if not is_intact(path, file):
            return f"{file.name} is damaged"
    ranges = None if wanted is None else wanted(folder)
    for file in files:
        parts = [(0, file.size)] if ranges is None else ranges.get(file.name, [])
        if not file.blocks or not parts:
            continue
        try:
            _blocks(store, f"{uri}/{file.name}", file, path_inside(folder, file.name, uri), parts)
        except NotFoundError:
            return f"{file.name} is missing"
        except StorageError as error:
            if error.code is not codes.DAMAGED_OBJECT:
                raise
            return f"{file.name} is damaged"
    return None


def _blocks(
    store: ObjectStore, uri: str, file: CheckpointFile, path: Path, parts: Sequence[tuple[int, int]]
) -> None:
    """Fetches the blocks that ``parts`` touch into a file of the true size."""

    def fetch(block: int) -> None:
        start = block * BLOCK_BYTES
        data = store.get_range(uri, start, min(BLOCK_BYTES, file.size - start))
        if hashlib.sha256(data).hexdigest() != file.blocks[block]:
            raise damaged(f"block {block} is not what its manifest says", uri)
        write_at(descriptor, data, start)

    blocks = {block for start, end in parts for block in range(start // BLOCK_BYTES, -(-end // BLOCK_BYTES))}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as out:
            out.truncate(file.size)
            descriptor = out.fileno()
            for _ in in_parallel(fetch, sorted(blocks)):
                pass
    except OSError as error:
        raise disk_error(error, path) from error
