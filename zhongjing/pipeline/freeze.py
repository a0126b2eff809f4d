"""Sources and folders as they are now, fixed: hashed, listed, and local files uploaded once.

A pipeline reads the very same objects in every re-run. Local files are addressed by their content, so a
second upload of the same bytes is none. Objects of the store are named by size and ETag.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from zhongjing.codes.data import INVALID_URI, SOURCE_NOT_FOUND, UNREADABLE_SOURCE
from zhongjing.codes.model import MODEL_NOT_FOUND
from zhongjing.config.keys import digest
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Source
from zhongjing.errors import ConfigError, DataError, MissingInputError
from zhongjing.pipeline.graph import needs
from zhongjing.pipeline.state import FrozenReference
from zhongjing.storage.files import describe_folder, sha256_of
from zhongjing.storage.layout import Layout
from zhongjing.storage.listing import expand, is_hidden, local_files, stored_listing
from zhongjing.storage.manifest import FrozenObject, FrozenSource, ModelFile
from zhongjing.storage.objects import ObjectStore

# Called with the file's name, the bytes of it that are done, and its size.
OnUpload = Callable[[str, int, int], None]

_CONFIGS = ("config.json", "adapter_config.json")  # one of them makes a folder a model
_PARALLEL = 4

A = TypeVar("A")
B = TypeVar("B")


@dataclass(frozen=True)
class FrozenInputs:
    """What a document reads, fixed. ``notes`` says where a frozen listing is no longer what is there."""

    sources: list[FrozenSource] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    references: list[FrozenReference] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Uploads:
    """Puts local files into the store; ``upload`` False: only hashes them."""

    store: ObjectStore
    layout: Layout
    upload: bool = True
    on_upload: OnUpload | None = None

    def files(self, paths: Sequence[Path]) -> list[FrozenObject]:
        """The files of a source, addressed by their content."""
        return self._parallel(self._file, paths)

    def folder(self, reference: str, where: str) -> FrozenReference:
        """The folder of a model, addressed by the contents of its files."""
        folder = Path(expand(reference))
        files, key = model_files(folder, where)
        uri = self.layout.base(key)
        self._parallel(lambda file: self._put(folder / file.name, f"{uri}/{file.name}", file.size), files)
        return FrozenReference(reference=reference, uri=uri, digest=key)

    def _file(self, path: Path) -> FrozenObject:
        try:
            size, sha256 = path.stat().st_size, sha256_of(path)
        except OSError as error:
            raise DataError(
                f"the file cannot be read: {error.strerror}", code=UNREADABLE_SOURCE, where=str(path)
            ) from error
        uri = self.layout.upload(sha256, path.name)
        self._put(path, uri, size)
        return FrozenObject(uri=uri, size=size, digest=sha256)

    def _put(self, path: Path, uri: str, size: int) -> None:
        if not self.upload:
            return
        there = self.store.head(uri)
        if there is None or there.size != size:
            if self.on_upload:
                self.on_upload(path.name, 0, size)
            self.store.put_file(uri, path)
        if self.on_upload:
            self.on_upload(path.name, size, size)

    @staticmethod
    def _parallel(act: Callable[[A], B], items: Sequence[A]) -> list[B]:
        if len(items) <= 1:
            return [act(item) for item in items]
        with ThreadPoolExecutor(_PARALLEL, thread_name_prefix="upload") as pool:
            return list(pool.map(act, items))


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
    uploads = _Uploads(store, layout, upload, on_upload)
    sources: list[FrozenSource] = []
    waiting: list[str] = []
    notes: list[str] = []
    for source in document.spec.sources:
        earlier = known.get(source.name)
        if earlier is not None and earlier[0] == source.uri:
            sources.append(earlier[1])
            note = _changed(store, source, earlier[1])
            if note:
                notes.append(note)
            continue
        frozen = _freeze_source(uploads, source)
        if frozen is not None:
            sources.append(frozen)
        elif source.wait:
            waiting.append(source.name)
        else:
            raise _missing(source)
    _check_stored(store, document)
    references = [uploads.folder(reference, where) for reference, where in local_references(document)]
    return FrozenInputs(sources, waiting, references, notes)


def freeze_source(store: ObjectStore, layout: Layout, source: Source) -> FrozenSource | None:
    """One source as it is now, or None if nothing is there."""
    return _freeze_source(_Uploads(store, layout), source)


def _freeze_source(uploads: _Uploads, source: Source) -> FrozenSource | None:
    scheme = _scheme(source.uri)
    if scheme == "s3":
        objects = _list_objects(uploads.store, source.uri)
    elif scheme == "hf":
        # A dataset of the hub is fixed by its revision; the job records which one it got.
        objects = [FrozenObject(uri=source.uri, size=0, digest=digest({"hub": source.uri}))]
    elif scheme is None:
        objects = uploads.files(local_files(source.uri))
    else:
        raise unknown_scheme(source)
    if not objects:
        return None
    return FrozenSource(name=source.name, objects=objects, digest=_digest_of(objects))


def unknown_scheme(source: Source) -> ConfigError:
    """The error for a source that nothing here can read."""
    return ConfigError(
        f"sources cannot be read from {_scheme(source.uri)}://",
        code=INVALID_URI,
        where=f"spec.sources.{source.name}.uri",
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


def _digest_of(objects: Iterable[FrozenObject]) -> str:
    return digest([item.digest for item in objects])


def _list_objects(store: ObjectStore, uri: str) -> list[FrozenObject]:
    return [
        FrozenObject(uri=info.uri, size=info.size, digest=f"{info.etag.strip(chr(34))}-{info.size}")
        for info in stored_listing(store, uri)[0]
    ]


def model_files(folder: Path, where: str) -> tuple[list[ModelFile], str]:
    """The files of a model's folder, hidden ones left out, and the digest over their names and contents.

    Args:
        folder: in Hugging Face format.
        where: the field that names it.

    Raises:
        MissingInputError: there is no model.
    """
    if not any((folder / name).is_file() for name in _CONFIGS):
        raise _no_model(f"there is no model in the folder {folder}", where)
    files = [file for file in describe_folder(folder) if not is_hidden(Path(file.name))]
    return files, digest([[file.name, file.sha256] for file in files])


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
    local = _scheme(source.uri) is None
    return MissingInputError(
        f"nothing is at {expand(source.uri) if local else source.uri}",
        code=SOURCE_NOT_FOUND,
        where=f"spec.sources.{source.name}.uri",
    )


def _changed(store: ObjectStore, source: Source, frozen: FrozenSource) -> str | None:
    """A note when what is there now is, by names and sizes, not what was frozen."""
    scheme = _scheme(source.uri)
    if scheme == "s3":
        now = [(item.digest, item.size) for item in _list_objects(store, source.uri)]
        before = [(item.digest, item.size) for item in frozen.objects]
    elif scheme is None:
        files = local_files(source.uri)
        now = [(path.name, path.stat().st_size) for path in files]
        before = [(item.uri.rpartition("/")[2], item.size) for item in frozen.objects]
    else:
        return None
    if now == before:
        return None
    if not now:
        return f"source {source.name}: its files are gone; the pipeline keeps using its own copy"
    return f"source {source.name} has changed since it was first used; --refresh-data takes it as it is now"
