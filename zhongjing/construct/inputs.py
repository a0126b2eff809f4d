"""What a construction reads, fixed: the objects or files that a URI stands for, and their digests."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from zhongjing.codes import construct as codes
from zhongjing.codes import data as data_codes
from zhongjing.config.keys import digest
from zhongjing.config.sources import Source
from zhongjing.errors import ConfigError, DataError, MissingInputError
from zhongjing.storage import globs
from zhongjing.storage.files import sha256_of
from zhongjing.storage.listing import is_local, local_files, stored_listing
from zhongjing.storage.manifest import FrozenObject, FrozenSource

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

_S3 = "s3://"


def freeze(store: ObjectStore | None, source: Source) -> FrozenSource:
    """The source as it is now. Local files are read where they are: raw records are not uploaded.

    Args:
        store: needed for s3://.
        source: an s3:// URI or a local path; each may be a folder or a glob.

    Raises:
        MissingInputError: nothing is there.
        ConfigError: a URI of another scheme.
        DataError: a file cannot be read.
    """
    if source.place.startswith(_S3):
        assert store is not None, "s3:// needs a store"
        objects = [
            FrozenObject(uri=info.uri, size=info.size, digest=f"{info.etag.strip(chr(34))}-{info.size}")
            for info in stored_listing(store, source.place)[0]
        ]
    elif is_local(source.place):
        objects = [_file(path) for path in local_files(source.place)]
    else:
        raise ConfigError(
            "data are not constructed from this kind of URI",
            code=data_codes.INVALID_URI,
            where=source.place,
            remedy="give a local path or an s3:// URI",
        )
    if not objects:
        raise MissingInputError(
            "nothing is there", code=data_codes.SOURCE_NOT_FOUND, where=source.place, remedy="correct the URI"
        )
    return FrozenSource(name=source.name, objects=objects, digest=digest([each.digest for each in objects]))


def _file(path: Path) -> FrozenObject:
    try:
        return FrozenObject(uri=str(path), size=path.stat().st_size, digest=sha256_of(path))
    except OSError as error:
        raise DataError(
            f"the file cannot be read: {error.strerror}", code=data_codes.UNREADABLE_SOURCE, where=str(path)
        ) from error


def frozen_now(store: ObjectStore, frozen: FrozenSource) -> FrozenSource:
    """The objects of a frozen source as they are now; those that came since are none of it."""
    now = [_now(store, item) for item in frozen.objects]
    if now == [item.digest for item in frozen.objects]:
        return frozen
    return frozen.model_copy(update={"digest": digest(now)})


def _now(store: ObjectStore, item: FrozenObject) -> str:
    info = store.head(item.uri)
    if info is None or info.size != item.size:
        return "changed"
    # Of an upload the digest is that of its content, which its name has: it never changes.
    return f"{info.etag.strip(chr(34))}-{info.size}" if "-" in item.digest else item.digest


def check_unchanged(now: FrozenSource, source: Source, frozen: FrozenSource) -> None:
    """Raises DataError where the source is ``now`` not what it was when it was frozen."""
    if now.digest != frozen.digest:
        raise DataError(
            "the source was changed while it was read",
            code=data_codes.SOURCE_CHANGED,
            where=source.place,
            remedy="give a new place for the output once the source is complete",
        )


def check_apart(source: Source, out: str) -> None:
    """Raises ConfigError where a later listing of the source would have the output in it."""
    uri = source.place
    if not uri.startswith(_S3):
        return
    part = f"{out}/part-00000.jsonl"
    if globs.is_glob(uri.removeprefix(_S3)):
        key = uri.removeprefix(_S3)
        pattern = globs.pattern_of(key + "**" if key.endswith("/") else key)
        inside = pattern.fullmatch(part.removeprefix(_S3)) is not None
    else:
        inside = re.match(re.escape(uri.rstrip("/")) + "/", part) is not None
    if inside:
        raise ConfigError(
            f"the output would be a part of its own input, {uri}",
            code=codes.OUTPUT_IN_USE,
            where=out,
            remedy="give an output beside the input, not below it",
        )
