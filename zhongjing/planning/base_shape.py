"""The shape of a model that a document names, from as much of it as can be reached."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zhongjing.config.sources import Base
from zhongjing.planning.shape import Shape, of_config, of_name, of_tiny

Read = Callable[[str], bytes | None]
"""Content of an object by its s3:// URI; None where there is none, or the store cannot be asked."""


def shape_of_base(base: Base, read: Read) -> Shape | None:
    """The shape of a document's base; None where nothing that can be reached tells it.

    Of a delta, its own config.json or name counts before its root's: embeddings may have grown.
    """
    if base.tiny is not None:
        return of_tiny(base.tiny)
    for reference in (base.uri, base.delta, base.root):
        found = shape_of(reference, read, base.revision) if reference is not None else None
        if found is not None:
            return found
    return None


def shape_of(reference: str, read: Read, revision: str | None = None) -> Shape | None:
    """The shape of a model (s3:// URI, folder or hub id): by its config.json, else by its published name."""
    config = _config(reference, read, revision)
    return of_config(config) if config is not None else of_name(reference)


def _config(reference: str, read: Read, revision: str | None) -> dict[str, Any] | None:
    try:
        if reference.startswith("s3://"):
            data = read(f"{reference.rstrip('/')}/config.json")
        else:
            file = _local_file(reference, revision)
            data = file.read_bytes() if file is not None else None
        found = json.loads(data) if data is not None else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _local_file(reference: str, revision: str | None) -> Path | None:
    folder = Path(os.path.expandvars(reference.removeprefix("file://"))).expanduser()
    return folder / "config.json" if folder.is_dir() else _cached(reference, revision or "main")


def _cached(hub_id: str, revision: str) -> Path | None:
    """config.json of a model that was downloaded before.

    The cache is laid out as huggingface_hub documents it ("Understand caching"): ``refs/<branch>`` holds the
    commit, ``snapshots/<commit>`` the files. To import the library would take longer than to plan.
    """
    home = Path(os.environ.get("HF_HOME") or Path("~/.cache/huggingface").expanduser())
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    model = cache / f"models--{hub_id.replace('/', '--')}"
    ref = model / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    file = model / "snapshots" / commit / "config.json"
    return file if file.is_file() else None
