"""Sources and folders as they are now, fixed: hashed, listed, and local files uploaded once.

A pipeline reads the very same objects in every re-run. Local files are addressed by their content, so a
second upload of the same bytes is none. Objects of the store are named by size and ETag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from zhongjing.codes.data import INVALID_URI, SOURCE_NOT_FOUND
from zhongjing.codes.model import MODEL_NOT_FOUND
from zhongjing.config.keys import digest
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.errors import ConfigError, DataError, MissingInputError
from zhongjing.pipeline.graph import needs
from zhongjing.pipeline.local_files import LocalFile, OnUpload, hash_files, upload_files
from zhongjing.pipeline.state import FrozenReference
from zhongjing.storage.files import describe_folder
from zhongjing.storage.layout import Layout
from zhongjing.storage.listing import expand, is_hidden, local_files, stored_listing
from zhongjing.storage.manifest import FrozenObject, FrozenSource
from zhongjing.storage.objects import ObjectStore

_CONFIGS = ("config.json", "adapter_config.json")  # one of them makes a folder a model


@dataclass(frozen=True)
class FrozenInputs:
    """What a document reads, fixed. ``notes`` says where a frozen listing is no longer what is there."""

    sources: list[FrozenSource] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    references: list[FrozenReference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def freeze(
    store: ObjectStore,
    layout: Layout,
    document: TrainingPipeline,
    *,
    known: Mapping[str, tuple[str, FrozenSource]] | None = None,
    upload: bool = True,
    on_upload: OnUpload | None = None,
) -> FrozenInputs:
    """Fixes every source and local folder of a document.

    Args:
        store: where files go and objects are listed.
        layout: the pipeline.
        document: resolved.
        known: sources frozen before, by name, each with the uri that it had then. They are kept as they are;
            leave them out to list anew (``--refresh-data``).
        upload: False hashes only (a dry run).
        on_upload: is told of every file.

    Raises:
        MissingInputError: a source that is not waited for, or a model, does not exist (names the place).
        ConfigError: a URI of a scheme that sources cannot have.
    """
    known = known or {}
    inputs = FrozenInputs()
    files: list[LocalFile] = []
    for source in document.spec.sources:
        earlier = known.get(source.name)
        if earlier is not None and earlier[0] == source.place:
            inputs.sources.append(earlier[1])
            inputs.notes.extend(_changes(store, source, earlier[1]))
            continue
        frozen = _freeze_source(store, layout, source, files)
        if frozen is not None:
            inputs.sources.append(frozen)
        elif source.wait:
            inputs.waiting.append(source.name)
        else:
            raise _missing(source)
    _check_stored(store, document)
    for reference, where in local_references(document):
        frozen_model, parts = freeze_model(layout, reference, where)
        inputs.references.append(frozen_model)
        files += parts
    if upload:
        upload_files(store, files, on_upload)
    return inputs


def freeze_source(store: ObjectStore, layout: Layout, source: Source) -> FrozenSource | None:
    """One source as it is now, or None if nothing is there."""
    files: list[LocalFile] = []
    frozen = _freeze_source(store, layout, source, files)
    upload_files(store, files)
    return frozen


def _freeze_source(
    store: ObjectStore, layout: Layout, source: Source, files: list[LocalFile]
) -> FrozenSource | None:
    """One source as it is now; adds to ``files`` what has to be sent for it."""
    scheme = _scheme(source.place)
    if scheme == "s3":
        objects = _list_objects(store, source.place)
    elif scheme == "hf":
        # A dataset of the hub is fixed by its revision; the job records which one it got.
        objects = [FrozenObject(uri=source.place, size=0, digest=digest({"hub": source.place}))]
    elif scheme is None:
        paths = local_files(source.place)
        objects = [
            FrozenObject(uri=layout.upload(sha256, path.name), size=size, digest=sha256)
            for path, (size, sha256) in zip(paths, hash_files(paths), strict=True)
        ]
        files += [LocalFile(path, each.uri, each.size) for path, each in zip(paths, objects, strict=True)]
    else:
        raise unknown_scheme(source)
    if not objects:
        return None
    return FrozenSource(name=source.name, objects=objects, digest=digest([each.digest for each in objects]))


def unknown_scheme(source: Source) -> ConfigError:
    """The error for a source that nothing here can read."""
    return ConfigError(
        f"sources cannot be read from {_scheme(source.place)}://",
        code=INVALID_URI,
        where=f"spec.sources.{source.name}.{source.place_field}",
        remedy="give a local path, an s3:// URI or hf://datasets/owner/name",
    )


def absolute(uri: str, folder: Path) -> str:
    """A source's uri as it stays right in another process: local paths made absolute, from ``folder``."""
    if _scheme(uri) is not None:
        return uri
    return str(folder.absolute() / expand(uri))


def is_local_folder(reference: str) -> bool:
    """Whether ``from``, ``reward`` or a base means a folder of this machine rather than a hub id."""
    if _scheme(reference) is not None:
        return False
    return reference.startswith(("/", "./", "../", "~", "$")) or Path(expand(reference)).is_dir()


def _scheme(uri: str) -> str | None:
    scheme, separator, _ = uri.partition("://")
    return scheme if separator and scheme != "file" else None


def _list_objects(store: ObjectStore, uri: str) -> list[FrozenObject]:
    return [
        FrozenObject(uri=info.uri, size=info.size, digest=f"{info.etag.strip(chr(34))}-{info.size}")
        for info in stored_listing(store, uri)[0]
    ]


def freeze_model(layout: Layout, reference: str, where: str) -> tuple[FrozenReference, list[LocalFile]]:
    """A model's local folder, addressed by its files' names and contents, and what has to be sent for it.

    Args:
        layout: the pipeline.
        reference: the folder, in Hugging Face format; hidden files in it are left out.
        where: the field that names it.

    Raises:
        MissingInputError: there is no model.
    """
    folder = Path(expand(reference))
    if not any((folder / name).is_file() for name in _CONFIGS):
        raise _no_model(f"there is no model in the folder {folder}", where)
    files = [file for file in describe_folder(folder) if not is_hidden(Path(file.name))]
    key = digest([[file.name, file.sha256] for file in files])
    uri = layout.base(key)
    parts = [LocalFile(folder / file.name, f"{uri}/{file.name}", file.size) for file in files]
    return FrozenReference(reference=reference, uri=uri, digest=key), parts


def local_references(document: TrainingPipeline) -> list[tuple[str, str]]:
    """The local folders that a document starts from, each with its place in the document."""
    return [(name, where) for name, where in _references(document) if is_local_folder(name)]


def _check_stored(store: ObjectStore, document: TrainingPipeline) -> None:
    """Refuses models that are not in the store before a worker is started for them."""
    for reference, where in _references(document):
        if _scheme(reference) != "s3":
            continue
        folder = reference.rstrip("/")
        if not any(store.exists(f"{folder}/{name}") for name in _CONFIGS):
            raise _no_model(f"there is no model at {reference}", where)


def _no_model(message: str, where: str) -> MissingInputError:
    return MissingInputError(
        message,
        code=MODEL_NOT_FOUND,
        where=where,
        remedy=f"name a folder with {' or '.join(_CONFIGS)}, an s3:// URI or a hub id",
    )


def _references(document: TrainingPipeline) -> list[tuple[str, str]]:
    """The models that a document starts from, each with its first place in the document."""
    base = document.spec.base
    named = [(base.uri, "spec.base.uri"), (base.delta, "spec.base.delta"), (base.root, "spec.base.root")]
    for stage in document.spec.stages.present():
        named += [
            (need.reference, f"spec.stages.{stage}.{need.role}")
            for need in needs(document, stage)
            if need.stage is None and need.reference != "base"
        ]
    found: dict[str, str] = {}
    for reference, where in named:
        if reference is not None:
            found.setdefault(reference, where)
    return list(found.items())


def _missing(source: Source) -> MissingInputError:
    local = _scheme(source.place) is None
    return MissingInputError(
        f"nothing is at {expand(source.place) if local else source.place}",
        code=SOURCE_NOT_FOUND,
        where=f"spec.sources.{source.name}.{source.place_field}",
    )


def _changes(store: ObjectStore, source: Source, frozen: FrozenSource) -> Iterator[str]:
    """Says so where what is there now is not what was frozen: names, sizes, contents of changed files."""
    scheme = _scheme(source.place)
    if scheme == "s3":
        now = [(item.digest, item.size) for item in _list_objects(store, source.place)]
        before = [(item.digest, item.size) for item in frozen.objects]
        edited = False
    elif scheme is None:
        files = local_files(source.place)
        now = [(path.name, path.stat().st_size) for path in files]
        before = [(item.uri.rpartition("/")[2], item.size) for item in frozen.objects]
        edited = now == before and any(
            _was_edited(store, path, item) for path, item in zip(files, frozen.objects, strict=True)
        )
    else:
        return
    if not now:
        yield f"source {source.name}: its files are gone; the pipeline keeps using its own copy"
    elif now != before or edited:
        yield (
            f"source {source.name} has changed since it was first used, and the pipeline still reads its own "
            f"copy; --refresh-data reads {source.place} as it is now"
        )


def _was_edited(store: ObjectStore, path: Path, item: FrozenObject) -> bool:
    """Whether a file of the same size has another content; read only if it was touched after its upload."""
    stored = store.head(item.uri)
    stat = path.stat()
    if stored is not None and max(stat.st_mtime, stat.st_ctime) <= stored.last_modified.timestamp():
        return False
    try:
        return hash_files([path])[0][1] != item.digest
    except DataError:
        return True  # the pipeline has its copy, and can go on without this one
