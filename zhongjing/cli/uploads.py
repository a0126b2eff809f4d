"""Local files of a document that shall run on a cluster: uploaded once, and named by where they are then.

Everything is addressed by its content, so what is there already is not sent again, and the same files give
the same pipeline from whatever machine they come. A source of one file becomes that object; one of several
becomes a folder, ``uploads/sets/<digest>/``; a model folder becomes ``cache/bases/<digest>/``.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zhongjing.cli.console import Console
from zhongjing.cli.display.text import count
from zhongjing.cli.example import is_example, with_example_files
from zhongjing.config.keys import digest
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import UserDocument
from zhongjing.config.sources import Source, written_at
from zhongjing.pipeline.freeze import freeze_model, local_references
from zhongjing.pipeline.headline import duration
from zhongjing.pipeline.local_files import LocalFile, OnUpload, hash_files, upload_files
from zhongjing.storage.layout import Layout
from zhongjing.storage.listing import is_local, left_out_text, local_listing
from zhongjing.storage.objects import ObjectInfo, ObjectInfos, ObjectStore

_SHOWN_FROM_BYTES = 8 * 2**20


@dataclass
class Uploads:
    """What a document has of this machine.

    Attributes:
        user: the document with places in the store.
        files: what has to be there.
        notes: what the user should know.
    """

    user: UserDocument
    files: list[LocalFile] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def not_sent(self) -> list[str]:
        """What a dry run says of the files."""
        if not self.files:
            return []
        told = f"{len(self.files)} local files ({count(self.size)}B)"
        return [f"the {told} of the sources are not uploaded by a dry run"]


class PlannedStore(ObjectStore):
    """A store in which files that would be uploaded are there already: for a look ahead."""

    def __init__(self, store: ObjectStore, files: Sequence[LocalFile]) -> None:
        super().__init__(store.storage)
        self._planned = {
            # An ETag that no stored object has: what was never uploaded was never used.
            file.uri: ObjectInfo(file.uri, file.size, "not-uploaded", datetime.now(UTC))
            for file in files
        }

    def exists(self, uri: str) -> bool:
        """Whether the object is there, or planned."""
        return uri in self._planned or super().exists(uri)

    def glob(self, uri: str) -> ObjectInfos:
        """As the store, with the planned objects."""
        found = {info.uri: info for info in super().glob(uri)}
        folder = uri if uri.endswith("/") else None
        for planned, info in self._planned.items():
            if planned not in found and (planned == uri or (folder and planned.startswith(folder))):
                found[planned] = info
        return [found[name] for name in sorted(found)]


def plan_uploads(user: UserDocument, document: TrainingPipeline, layout: Layout, stack: ExitStack) -> Uploads:
    """Finds what a document has of this machine; sends nothing.

    Args:
        user: as written.
        document: resolved.
        layout: the pipeline.
        stack: keeps generated examples until the uploads are done.

    Raises:
        MissingInputError: a model folder has no model.
        DataError: a file cannot be read.
    """
    if any(is_example(source.place) for source in document.spec.sources):
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="zhongjing-example-")))
        document = with_example_files(document, folder)
    uploads = Uploads(user)
    sources = {
        source.name: _plan_source(source, layout, uploads)
        for source in document.spec.sources
        if is_local(source.place)
    }
    models = {}
    for reference, where in local_references(document):
        model, files = freeze_model(layout, reference, where)
        models[reference] = model.uri
        uploads.files += files
    written = document.model_dump(mode="json", exclude_unset=True, exclude_none=True)
    uploads.user = user.holding(_renamed(written, sources, models))
    return uploads


def send(store: ObjectStore, uploads: Uploads, console: Console) -> None:
    """Uploads the files of a document and tells how many were sent."""
    began = time.monotonic()
    with announced(uploads, console) as on_upload:
        sent = upload_files(store, uploads.files, on_upload)
    if sent:
        took = duration(time.monotonic() - began)
        console.say(
            f"uploaded {sent} of {len(uploads.files)} local files ({count(uploads.size)}B in all, {took})"
        )


def announcer(console: Console) -> OnUpload:
    """Says which large files are being uploaded."""

    def announce(name: str, done: int, size: int) -> None:
        if done == 0 and size >= _SHOWN_FROM_BYTES:
            console.say(f"uploading {name} ({count(size)}B)")

    return announce


@contextmanager
def announced(uploads: Uploads, console: Console) -> Iterator[OnUpload]:
    """What is told while files are sent: a bar on a terminal, else which large file it is."""
    if not console.interactive:
        yield announcer(console)
        return
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

    columns = (
        TextColumn("uploading"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=RichConsole(file=console.stream), transient=True) as bar:
        task = bar.add_task("", total=uploads.size)
        yield lambda name, done, size: bar.update(task, advance=done, description=name)


def _plan_source(source: Source, layout: Layout, uploads: Uploads) -> str:
    """Plans the upload of a local source; returns where it will be."""
    listing = local_listing(source.place)
    files = listing.files
    if listing.left_out:
        uploads.notes.append(f"source {source.name}: left out {left_out_text(listing.left_out)}")
    home = f"{layout.root.rstrip('/')}/{layout.namespace}/uploads"
    if not files:
        # Only a source with wait: true comes so far. It is waited for at a place of its own.
        place = f"{home}/awaited/{layout.pipeline}/{source.name}/"
        uploads.notes.append(
            f"source {source.name} is not there yet: give the same command again when it is, "
            f"or put its files into {place}"
        )
        return place
    if len(files) == 1:
        [(size, sha256)] = hash_files(files)
        uri = layout.upload(sha256, _plain(files[0].name))
        uploads.files.append(LocalFile(files[0], uri, size))
        return uri
    root = Path(os.path.commonpath([path.parent for path in files]))
    names = [_plain(path.relative_to(root).as_posix()) for path in files]
    hashed = hash_files(files)
    key = digest([[name, sha256] for name, (_, sha256) in zip(names, hashed, strict=True)])
    uploads.files += [
        LocalFile(path, f"{home}/sets/{key}/{name}", size)
        for path, name, (size, _) in zip(files, names, hashed, strict=True)
    ]
    return f"{home}/sets/{key}/"


def _renamed(
    written: dict[str, Any], sources: Mapping[str, str], models: Mapping[str, str]
) -> dict[str, Any]:
    """The document with what is local named by its place in the store."""
    spec = dict(written["spec"])
    spec["sources"] = [
        written_at(source, sources.get(source["name"])) for source in spec.get("sources") or []
    ]
    spec["base"] = {
        name: models.get(value, value) if isinstance(value, str) else value
        for name, value in spec["base"].items()
    }
    spec["stages"] = {
        stage: {
            name: models.get(value, value) if name in ("from", "reward") else value
            for name, value in settings.items()
        }
        for stage, settings in (spec.get("stages") or {}).items()
    }
    return {**written, "spec": spec}


def _plain(name: str) -> str:
    """A name that stands for itself where patterns are allowed."""
    return re.sub(r"[*?\[\]{}]", "_", name)
