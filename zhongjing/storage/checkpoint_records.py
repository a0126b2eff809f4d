"""What a checkpoint is in the store, and which are there.

::

    step-00000010/<file>                       of rank 0
                 /parts/<snapshot>/<file>      of the others
                 /parts/<snapshot>/part-00001.json   that rank's files, written after them
                 /manifest.json                all files, written last

Each file's sha256 stands in the manifest, and of weights and moments that of each block of 16 MiB, so that a
rank reads and checks only the blocks that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeAlias

from pydantic import Field

from zhongjing.storage.client import PART_BYTES
from zhongjing.storage.layout import StageLayout
from zhongjing.storage.manifest import ModelFile, Record
from zhongjing.storage.objects import ObjectStore

MANIFEST = "manifest.json"
# Files that only a run that goes on needs: the best checkpoint loses them when it is no longer a latest one.
MOMENTS_SUFFIX = "-moments.bin"
WEIGHTS_SUFFIX = "-weights.bin"
BLOCK_BYTES = PART_BYTES  # what is read and checked at a time of weights and moments
STEP = "step-"

Ranges: TypeAlias = dict[str, list[tuple[int, int]]]
"""First byte and the byte behind the last, by the file's name from the checkpoint's folder on."""

Wanted: TypeAlias = "Callable[[Path], Ranges]"
"""What of weights and moments a rank needs; it is given a folder with the checkpoint's other files."""


class CheckpointFile(ModelFile):
    """A file of a checkpoint."""

    blocks: list[str] = Field(
        default_factory=list, description="sha256 of each 16 MiB; none: the file is read as a whole"
    )


class CheckpointManifest(Record):
    """Completion of a checkpoint, written last."""

    version: Literal[1, 2] = 2
    step: int
    attempt: int
    best: bool
    created: str
    weights_only: bool = False
    files: list[CheckpointFile]


class CheckpointPart(Record):
    """Completion of one rank's part."""

    files: list[CheckpointFile] = Field(description="names from the checkpoint's folder on")


def is_ranged(name: str) -> bool:
    """Whether a file of a checkpoint is read in parts."""
    return name.endswith((WEIGHTS_SUFFIX, MOMENTS_SUFFIX))


def remove_checkpoint(store: ObjectStore, uri: str) -> None:
    """Removes a checkpoint, its manifest first: one is never listed while it lacks files."""
    store.delete(f"{uri}/{MANIFEST}")
    store.delete_folder(uri)


def list_steps(store: ObjectStore, layout: StageLayout) -> dict[int, bool]:
    """Steps that have objects, and whether their checkpoint is complete."""
    found: dict[int, bool] = {}
    for info in store.list(layout.checkpoints):
        name, _, rest = info.uri.removeprefix(f"{layout.checkpoints}/").partition("/")
        if name.startswith(STEP) and name.removeprefix(STEP).isdigit():
            step = int(name.removeprefix(STEP))
            found[step] = found.get(step, False) or rest == MANIFEST
    return found
