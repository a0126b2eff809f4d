"""The files that a source's URI stands for: the same ones for a look, an upload and a training.

A path or key names one file, a folder all that is below it, a glob what it matches. What tells about data
and is none (README.md, LICENSE, dataset_info.json) is left out of folders and globs; so is what a constructed
source notes of itself (``_manifest.json``, ``_made/``). One that is not complete is not there.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectInfo, ObjectStore

_ABOUT = re.compile(
    r"(?:readme|licen[cs]e|notice|citation|changelog|authors|contributing)(?:[-_.][^/]*)?"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json",
    re.IGNORECASE,
)
_NOTES = re.compile(r"(?:^|/)(?:_made/(?:dedup/.+|[^/]+)|_manifest\.json)$")  # zhongjing.construct
_PART = re.compile(r"part-\d{5,}\.jsonl")
Item = TypeVar("Item", Path, "ObjectInfo")


@dataclass(frozen=True, slots=True)
class Listing:
    """Files by path, and the names of those that were left out for being about the data."""

    files: list[Path]
    left_out: list[str]


def local_listing(uri: str) -> Listing:
    """The files that a local path, folder or glob stands for. ``~`` and ``$VAR`` are expanded.

    Hidden files of a folder are left out.
    """
    text = expand(uri)
    path = Path(text)
    if path.is_file():
        return Listing([path.absolute()], [])
    if path.is_dir():
        found = [file for file in path.rglob("*") if not is_hidden(file.relative_to(path))]
    else:
        found = [Path(name) for name in glob.glob(text, recursive=True)]  # noqa: PTH207 - pathlib globs no absolute pattern
    files = sorted(file.absolute() for file in found if file.is_file() and not is_note(file.as_posix()))
    return Listing(*_parted(files, lambda file: file.name))


def local_files(uri: str) -> list[Path]:
    """The files of :func:`local_listing`."""
    return local_listing(uri).files


def stored_listing(store: ObjectStore, uri: str) -> tuple[list[ObjectInfo], list[str]]:
    """The objects that an s3:// URI stands for, by key, and names of those left out; empty ones are none."""
    found = list(store.glob(uri))
    if [info.uri for info in found] == [uri]:
        return [info for info in found if info.size > 0], []
    if not found and not uri.endswith("/"):
        found = list(store.glob(f"{uri}/"))  # a folder, written without its slash
    data, left_out = _parted(
        [info for info in found if info.size > 0 and not is_note(info.uri)], lambda info: _split(info.uri)[1]
    )
    unfinished = _unfinished(store, data)
    kept = [info for info in data if _split(info.uri)[0] not in unfinished]
    if len(kept) < len(data):
        left_out.append(f"{len(data) - len(kept)} objects of a constructed source that is not complete")
    return kept, left_out


def left_out_text(names: Sequence[str]) -> str:
    """The names for people."""
    shown = ", ".join(names[:5])
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown


def is_local(uri: str) -> bool:
    """Whether a source's URI names files of this machine."""
    return "://" not in uri.removeprefix("file://")


def expand(uri: str) -> str:
    """A local path with ``~``, ``$VAR`` and ``file://`` taken out."""
    return os.path.expandvars(str(Path(uri.removeprefix("file://")).expanduser()))


def is_hidden(path: Path) -> bool:
    """Whether a relative path has a part that begins with a dot."""
    return any(part.startswith(".") for part in path.parts)


def _unfinished(store: ObjectStore, infos: Sequence[ObjectInfo]) -> set[str]:
    """Folders among those of the objects in which a construction has begun and not ended."""
    folders = {folder for folder, name in (_split(info.uri) for info in infos) if _PART.fullmatch(name)}
    return {
        folder
        for folder in folders
        if store.exists(f"{folder}/_made/begun.json") and not store.exists(f"{folder}/_manifest.json")
    }


def _split(uri: str) -> tuple[str, str]:
    folder, _, name = uri.rpartition("/")
    return folder, name


def is_note(path: str) -> bool:
    """Whether a path or URI is what a constructed source notes of itself."""
    return _NOTES.search(path) is not None


def _parted(items: Iterable[Item], name_of: Callable[[Item], str]) -> tuple[list[Item], list[str]]:
    kept: list[Item] = []
    left_out: list[str] = []
    for item in items:
        if _ABOUT.fullmatch(name_of(item)):
            left_out.append(name_of(item))
        else:
            kept.append(item)
    return kept, left_out
