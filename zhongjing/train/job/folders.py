"""Model folders on a node's disk: fetched from S3 or a hub once, shared by the node's workers.

They stay for later attempts and stages. Where room is needed, those that were not used for longest and that
no process uses now give way.

A driver checks a model and never computes with it. It takes an *outline*: the folder with headers in place of
large weight files, which have their true size and no content. On a cluster that saves the head tens of
gigabytes, and the GPUs the wait for them.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

from zhongjing.codes import model as codes
from zhongjing.errors import DataError, MissingInputError, NotFoundError
from zhongjing.storage.artifacts import fetch_model, model_files
from zhongjing.storage.documents import damaged
from zhongjing.storage.files import disk_error, path_inside
from zhongjing.storage.heartbeat import beat
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.job.scratch import FolderLock, if_unlocked, room

logger = logging.getLogger(__name__)

_MARK = ".complete"
OUTLINE_BYTES = 1 << 30
"""Weight files up to this size are part of an outline: adapters, small models."""
_LONGEST_HEADER = 100_000_000  # bytes; the format's own limit


class Folders:
    """Local copies of model folders under a scratch folder.

    Args:
        store: where s3:// folders are.
        scratch: a folder of this node that may be lost at any time.
        watch: is told how much of a download is there, 0 to 1; what it raises ends the download.
    """

    def __init__(self, store: ObjectStore, scratch: Path, watch: Callable[[float], None] = beat) -> None:
        self._store = store
        self._watch = watch
        self._scratch = scratch / "models"
        self._locks: list[FolderLock] = []  # of what this process was given, as long as it lives

    def local(self, reference: str, revision: str | None = None) -> Path:
        """A local folder for an s3:// folder, a local folder or a hub id.

        Raises:
            MissingInputError: there is nothing at that place.
            DataError: a hub id that cannot be fetched.
            StorageError: a file is not what the stage that made it wrote, or the disk is full.
        """
        if not reference.startswith("s3://"):
            path = Path(reference).expanduser()
            return path if path.is_dir() else _from_hub(reference, revision, self._watch)
        return self._fetched(
            reference, _name(reference), partial(fetch_model, self._store, watch=self._watch)
        )

    def outline(self, reference: str, revision: str | None = None) -> Path:
        """Like :meth:`local`, to look at and not to compute with: large weight files lack their content.

        Raises:
            StorageError: also if a weight file is shorter or longer than its maker wrote.
        """
        if not reference.startswith("s3://") or (self._scratch / _name(reference) / _MARK).is_file():
            return self.local(reference, revision)
        fetch = partial(fetch_outline, self._store, watch=self._watch)
        return self._fetched(reference, f"{_name(reference)}-outline", fetch)

    def _fetched(self, reference: str, name: str, fetch: Callable[[str, Path], None]) -> Path:
        folder = self._scratch / name
        with _locked(self._scratch / f"{name}.lock"):
            if not (folder / _MARK).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                unfinished = self._scratch / f"{name}.partial"
                shutil.rmtree(unfinished, ignore_errors=True)
                if not name.endswith("-outline"):
                    self._make_room(reference)
                try:
                    fetch(reference, unfinished)
                except NotFoundError:
                    raise MissingInputError(
                        "there is no model here",
                        code=codes.MODEL_NOT_FOUND,
                        where=reference,
                        remedy="run the stage that makes it, or correct the reference",
                    ) from None
                (unfinished / _MARK).touch()
                unfinished.rename(folder)
            self._locks.append(FolderLock(folder))
            os.utime(folder / _MARK)  # its latest use
        return folder

    def _make_room(self, reference: str) -> None:
        """Removes folders that are not in use until a model fits, or there are no more."""
        needed = sum(info.size for info in self._store.list(reference))
        if room(self._scratch) > needed:
            return
        marks = sorted(self._scratch.glob(f"*/{_MARK}"), key=lambda mark: mark.stat().st_mtime)
        for mark in marks:
            if if_unlocked(mark.parent, partial(shutil.rmtree, mark.parent, ignore_errors=True)):
                logger.info("removed %s: its room is needed for %s", mark.parent, reference)
            if room(self._scratch) > needed:
                return

    def base_of(self, adapter: Path) -> str | None:
        """Reference of the full model that an adapter stands on; None if the folder is a full model."""
        config = adapter / "adapter_config.json"
        if not config.is_file():
            return None
        try:
            content = json.loads(config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(
                f"the adapter cannot be read: {error}", code=codes.UNUSABLE_ADAPTER, where=str(config)
            ) from error
        reference = content.get("base_model_name_or_path") if isinstance(content, dict) else None
        if not reference:
            raise DataError(
                "the adapter does not name its base", code=codes.UNUSABLE_ADAPTER, where=str(config)
            )
        return str(reference)


class DownloadStoppedError(Exception):
    """A stop was asked for before a download was complete."""


def until(stop_requested: Callable[[], bool]) -> Callable[[float], None]:
    """A ``watch`` of :class:`Folders`: every piece that arrives is a heartbeat, and a stop is heard there."""

    def watch(fraction: float) -> None:
        beat(fraction)
        if stop_requested():
            raise DownloadStoppedError

    return watch


def fetch_outline(store: ObjectStore, uri: str, folder: Path, watch: Callable[[float], None] = beat) -> None:
    """Downloads a model folder, of large safetensors files the header only; ``watch`` is told how much.

    Raises:
        NotFoundError: there is nothing at that place.
        StorageError: a file is missing or damaged, or the disk is full.
    """
    files = model_files(store, uri)
    sizes = {info.uri.removeprefix(f"{uri.rstrip('/')}/"): info.size for info in store.list(uri)}
    known = sizes if files is None else {file.name: file.size for file in files}
    large = [name for name in known if name.endswith(".safetensors") and sizes.get(name, 0) > OUTLINE_BYTES]
    if not large:
        fetch_model(store, uri, folder, watch)
        return
    for name in large:
        if sizes[name] != known[name]:
            raise damaged(f"it has {sizes[name]} bytes, its maker wrote {known[name]}", f"{uri}/{name}")
        _write_outline(store, f"{uri}/{name}", sizes[name], path_inside(folder, name, uri))
    if files is None:
        for name in sizes.keys() - set(large):
            store.get_file(f"{uri}/{name}", path_inside(folder, name, uri))
        return
    try:
        store.download_folder(uri, folder, [file for file in files if file.name not in large], watch)
    except NotFoundError as error:
        raise damaged("a file of the model is missing", error.where or uri) from error


def _write_outline(store: ObjectStore, uri: str, size: int, path: Path) -> None:
    """A file of the object's size that holds its header; the rest takes no room on the disk."""
    length = int.from_bytes(store.get_range(uri, 0, 8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise damaged("this is no safetensors file", uri)
    header = store.get_range(uri, 0, 8 + length)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(header)
            file.truncate(size)
    except OSError as error:
        raise disk_error(error, path) from error


def _name(reference: str) -> str:
    return hashlib.sha256(reference.encode()).hexdigest()[:24]


def _from_hub(reference: str, revision: str | None, watch: Callable[[float], None]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.utils.tqdm import tqdm

    class Watched(tqdm):
        """The hub client's bar; it is one over the bytes of all files (snapshot_download, 1.0 and later)."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)  # type: ignore[no-untyped-call]
            self._counts_bytes = options.get("unit") == "B"
            self._arrived = float(options.get("initial") or 0)

        def update(self, n: float | None = 1) -> bool | None:
            self._arrived += n or 0
            if self._counts_bytes and self.total:  # also where bars are switched off
                watch(min(1.0, self._arrived / self.total))
            return cast("bool | None", super().update(n))

    try:
        return Path(
            snapshot_download(
                reference,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"],
                tqdm_class=Watched,
            )
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise DataError(
            f"neither a folder nor a model that the hub gives: {error}",
            code=codes.MODEL_NOT_FOUND,
            where=reference,
            remedy="correct the name, set HF_TOKEN for a gated model, or name a folder in S3",
        ) from None


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
