"""Model folders on a node's disk: fetched from S3 or a hub once, shared by the node's workers.

They stay for later attempts and stages. Where room is needed, those that were not used for longest and that
no process uses now give way.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from zhongjing.codes import model as codes
from zhongjing.errors import DataError, MissingInputError, NotFoundError
from zhongjing.storage.artifacts import fetch_model
from zhongjing.storage.objects import ObjectStore
from zhongjing.train.scratch import Claim, if_unclaimed

logger = logging.getLogger(__name__)

_MARK = ".complete"


class Folders:
    """Local copies of model folders under a scratch folder.

    Args:
        store: where s3:// folders are.
        scratch: a folder of this node that may be lost at any time.
    """

    def __init__(self, store: ObjectStore, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch / "models"
        self._claims: list[Claim] = []  # of what this process was given, as long as it lives

    def local(self, reference: str, revision: str | None = None) -> Path:
        """A local folder for an s3:// folder, a local folder or a hub id.

        Raises:
            MissingInputError: there is nothing at that place.
            DataError: a hub id that cannot be fetched.
            StorageError: a file is not what the stage that made it wrote, or the disk is full.
        """
        if not reference.startswith("s3://"):
            path = Path(reference).expanduser()
            return path if path.is_dir() else _from_hub(reference, revision)
        name = hashlib.sha256(reference.encode()).hexdigest()[:24]
        folder = self._scratch / name
        with _locked(self._scratch / f"{name}.lock"):
            if not (folder / _MARK).is_file():
                shutil.rmtree(folder, ignore_errors=True)
                unfinished = self._scratch / f"{name}.partial"
                shutil.rmtree(unfinished, ignore_errors=True)
                self._make_room(reference)
                try:
                    fetch_model(self._store, reference, unfinished)
                except NotFoundError:
                    raise MissingInputError(
                        "there is no model here",
                        code=codes.MODEL_NOT_FOUND,
                        where=reference,
                        remedy="run the stage that makes it, or correct the reference",
                    ) from None
                (unfinished / _MARK).touch()
                unfinished.rename(folder)
            self._claims.append(Claim(folder))
            os.utime(folder / _MARK)  # its latest use
        return folder

    def _make_room(self, reference: str) -> None:
        """Removes folders that nobody uses until a model fits on the disk, or there are no more."""
        needed = sum(info.size for info in self._store.list(reference))
        if shutil.disk_usage(self._scratch).free > needed:
            return
        marks = sorted(self._scratch.glob(f"*/{_MARK}"), key=lambda mark: mark.stat().st_mtime)
        for mark in marks:
            if if_unclaimed(mark.parent, partial(shutil.rmtree, mark.parent, ignore_errors=True)):
                logger.info("removed %s: its room is needed for %s", mark.parent, reference)
            if shutil.disk_usage(self._scratch).free > needed:
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


def _from_hub(reference: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(
                reference,
                revision=revision,
                allow_patterns=["*.json", "*.safetensors", "*.bin", "*.model", "*.txt", "*.jinja"],
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
