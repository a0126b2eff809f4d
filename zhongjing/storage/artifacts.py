"""Documents and models of a stage in the store: requests, manifests, stop marks.

What makes a result is the existence of its manifest, written last and once. Everything else may be
incomplete at any time and misleads no reader.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from zhongjing.codes import storage as codes
from zhongjing.errors import ConflictError, NotFoundError, StorageError
from zhongjing.storage.documents import damaged, parse_record, record_bytes
from zhongjing.storage.heartbeat import beat
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.manifest import ModelArtifact, ModelFile, Record, StageManifest
from zhongjing.storage.objects import ObjectStore

MADE = "made.json"  # stands in the folder of a base that is complete, and lists its files


class StopMark(Record):
    """``stop/aN.json``: its existence asks attempt N to stop with a checkpoint."""

    reason: str
    message: str


def write_manifest(store: ObjectStore, layout: StageLayout, manifest: StageManifest) -> StageManifest:
    """Completes a stage and returns the manifest that stands.

    If one is there already and names this very attempt, the answer to one's own write was lost: that one
    stands, and all is well.

    Raises:
        ConflictError: another attempt completed the stage first.
    """
    try:
        store.put(layout.manifest, record_bytes(manifest), if_none_match=True)
    except ConflictError:
        standing = store.get_record(layout.manifest, StageManifest)
        if (standing.attempt, standing.submission_id) != (manifest.attempt, manifest.submission_id):
            raise ConflictError(
                f"attempt {standing.attempt} ({standing.submission_id}) completed this stage before "
                f"attempt {manifest.attempt} did",
                code=codes.SUPERSEDED,
                where=layout.manifest,
            ) from None
        return standing
    return manifest


def request_stop(store: ObjectStore, uri: str, reason: str, message: str) -> None:
    """Asks an attempt to stop with a checkpoint; asking twice is harmless, the first reason stands.

    Args:
        store: of the pipeline.
        uri: of the attempt's stop mark (:meth:`zhongjing.storage.layout.StageLayout.stop`).
        reason: why, as a value of :class:`zhongjing.pipeline.state.StopReason`.
        message: the same for people.
    """
    try:
        store.put_record(uri, StopMark(reason=reason, message=message), if_none_match=True)
    except ConflictError:
        return


def upload_model(
    store: ObjectStore,
    folder: Path,
    uri: str,
    *,
    format: Literal["full", "adapter"],
    base_uri: str | None = None,
) -> ModelArtifact:
    """Uploads a model folder, removes what a dead attempt left there, and describes the result.

    Args:
        store: where to.
        folder: local folder in Hugging Face or PEFT format.
        uri: the stored folder.
        format: full weights or an adapter.
        base_uri: the full model that an adapter stands on.

    Raises:
        StorageError: the folder is empty or cannot be read.
    """
    files = store.upload_folder(folder, uri)
    if not files:
        raise StorageError("the model folder is empty", code=codes.UNUSABLE_FILE, where=str(folder))
    store.delete_folder(uri, keep=[file.name for file in files])
    return ModelArtifact(uri=uri, format=format, base_uri=base_uri, files=files)


def model_files(store: ObjectStore, uri: str) -> list[ModelFile] | None:
    """What a stored model folder should hold, as its writer noted; None without such a note.

    Args:
        store: where it is.
        uri: folder of a stage's result, of a base that was made once, or any other.

    Raises:
        StorageError: what was written down is damaged, or of a newer release.
    """
    if uri.endswith("/model"):
        manifest = store.find_record(StageLayout(uri.removesuffix("/model")).manifest, StageManifest)
        model = manifest.model if manifest is not None else None
        return model.files or None if model is not None and model.uri == uri else None
    mark = f"{uri}/{MADE}"
    try:
        listed = store.get_json(mark)
    except NotFoundError:
        return None
    if not isinstance(listed, list):
        raise damaged("the list of the folder's files is no list", mark)
    return [parse_record(item, ModelFile, mark) for item in listed]


def fetch_model(store: ObjectStore, uri: str, folder: Path, watch: Callable[[float], None] = beat) -> None:
    """Downloads a model folder, each file checked against what its maker wrote down.

    Args:
        store: where it is.
        uri: the stored folder.
        folder: the local one.
        watch: see :meth:`ObjectStore.download_folder`.

    Raises:
        NotFoundError: there is nothing at that place.
        StorageError: a file is missing or damaged, or the disk is full.
    """
    files = model_files(store, uri)
    try:
        store.download_folder(uri, folder, files, watch)
    except NotFoundError as error:
        if files is None:
            raise
        raise damaged("a file of the model is missing", error.where or uri) from error
