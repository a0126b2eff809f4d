"""What a constructed source says of itself: ``_manifest.json``, written last, beside its parts.

A source whose manifest exists is complete. Its ``inputs`` name the objects that it was made of, and its
``parents`` those of them that have a manifest themselves, with their steps and parents in turn: the lineage,
down to raw records. Read it before records leave the house::

    manifest = find_manifest(store, "s3://corpus/clean")
    if manifest is None or not manifest.has_passed("deidentify"):
        raise ...
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from pydantic import Field

from zhongjing.config.keys import digest, training_fields
from zhongjing.config.sources import Kind, Source
from zhongjing.construct.step import Step
from zhongjing.storage.documents import parse_json, parse_record
from zhongjing.storage.manifest import FrozenObject, FrozenSource, Record

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

MANIFEST_NAME: Final = "_manifest.json"
LAYOUT_VERSION: Final = 1
"""Release of how records are cut into parts and written; raised when the same records give other bytes."""


class StepRecord(Record):
    """A step as it was run."""

    name: str
    version: int
    parameters: dict[str, Any] = Field(default_factory=dict, description="all that decides its outcome")

    @classmethod
    def of(cls, step: Step) -> StepRecord:
        """What is noted of a step."""
        return cls(name=step.name, version=step.version, parameters=step.parameters())


class Ancestor(Record):
    """A constructed source that another one was made of."""

    uri: str = Field(description="its folder")
    key: str
    steps: list[StepRecord]
    parents: list[Ancestor] = Field(default_factory=list)
    complete: bool = Field(description="whether all that it was made of had a manifest")

    def has_passed(self, step: str) -> bool:
        """Whether every record of it went through a step of that name."""
        return _has_passed(step, self.steps, self.parents, self.complete)


class PartRecord(Record):
    """One part: ``part-NNNNN.jsonl``; ``_made/part-NNNNN.json`` holds it once the part is complete."""

    key: str = Field(description="of the output that the part belongs to")
    number: int
    read: int = Field(description="records that were read for it, unreadable ones included")
    written: int
    characters: int = Field(description="of the texts that were written")
    size: int = Field(description="bytes")
    sha256: str
    counts: dict[str, dict[str, int]] = Field(description="what steps did, by step and label")
    quarantined: dict[str, int] = Field(description="records by step (read: the reader) and reason")


class SourceManifest(Record):
    """A constructed source, complete. What was read is written, left out by a step, or quarantined."""

    version: Literal[1] = 1
    key: str
    kind: Kind
    steps: list[StepRecord]
    inputs: list[FrozenObject]
    input_digest: str
    parents: list[Ancestor] = Field(default_factory=list, description="constructed sources among the inputs")
    complete: bool = Field(description="whether every input is part of a constructed source")
    read: int
    written: int
    characters: int
    counts: dict[str, dict[str, int]] = Field(default_factory=dict, description="by step and label")
    quarantined: dict[str, int] = Field(default_factory=dict, description="by 'step: reason'")
    notes: dict[str, dict[str, Any]] = Field(
        default_factory=dict, description="what steps tell of their work, by step; no part of the key"
    )
    parts: list[FrozenObject] = Field(description="size in bytes; digest: sha256")
    license: str | None = None
    created: str = Field(description="when it was complete, UTC; no part of the key")
    code_version: str

    def has_passed(self, step: str) -> bool:
        """Whether every record of the source went through a step of that name, here or in an ancestor."""
        return _has_passed(step, self.steps, self.parents, self.complete)

    def as_ancestor(self, uri: str) -> Ancestor:
        """What a source made of this one notes of it; ``uri`` is the folder."""
        return Ancestor(uri=uri, key=self.key, steps=self.steps, parents=self.parents, complete=self.complete)


def _has_passed(step: str, steps: Sequence[StepRecord], parents: Sequence[Ancestor], complete: bool) -> bool:
    if any(each.name == step for each in steps):
        return True
    return complete and bool(parents) and all(parent.has_passed(step) for parent in parents)


def chain(parents: Sequence[Ancestor]) -> Iterator[Ancestor]:
    """All ancestors, the nearest first."""
    for parent in parents:
        yield parent
        yield from chain(parent.parents)


def key_of(source: Source, frozen: FrozenSource, steps: Sequence[Step]) -> str:
    """The key of an output: a hash of all that decides its bytes.

    These are the contents of the input and how they are read, the steps with their versions and parameters,
    and the release of the layout. Where things lie and who works on them is no part of it.
    """
    fields = training_fields(source)
    for name in ("uri", "name", "category", "split", "testFraction", "leakOverlap", "maxQuarantineFraction"):
        fields.pop(name, None)
    return digest(
        {
            "layout": LAYOUT_VERSION,
            "source": {**fields, "digest": frozen.digest},
            "steps": [StepRecord.of(step).model_dump(mode="json") for step in steps],
        }
    )


def find_manifest(store: ObjectStore | None, folder: str) -> SourceManifest | None:
    """The manifest of a constructed source; None: nothing was constructed there, or not to its end.

    Args:
        store: needed for s3://.
        folder: an s3:// URI, or a local folder.

    Raises:
        StorageError: the manifest is damaged, or of a newer release.
    """
    place = f"{folder.rstrip('/')}/{MANIFEST_NAME}"
    if place.startswith("s3://"):
        assert store is not None, "s3:// needs a store"
        return store.find_record(place, SourceManifest)
    path = Path(place)
    if not path.is_file():
        return None
    return parse_record(parse_json(path.read_bytes(), place), SourceManifest, place)


def lineage_has_passed(parents: Sequence[Ancestor], complete: bool, step: str) -> bool:
    """Whether all records of a source went through that step, by :func:`parents_of` of its objects."""
    return _has_passed(step, (), parents, complete)


def parents_of(store: ObjectStore | None, objects: Sequence[FrozenObject]) -> tuple[list[Ancestor], bool]:
    """The constructed sources that objects are parts of, and whether every object is part of one.

    An object counts as part of a source if that source's manifest lists it, by name and size.
    """
    by_folder: dict[str, list[FrozenObject]] = {}
    for item in objects:
        by_folder.setdefault(item.uri.rpartition("/")[0], []).append(item)
    parents: list[Ancestor] = []
    complete = bool(objects)
    for folder, items in by_folder.items():
        manifest = (
            None if "://" in folder and not folder.startswith("s3://") else find_manifest(store, folder)
        )
        if manifest is None:
            complete = False
            continue
        listed = {(each.uri.rpartition("/")[2], each.size) for each in manifest.parts}
        complete = complete and all((item.uri.rpartition("/")[2], item.size) in listed for item in items)
        parents.append(manifest.as_ancestor(folder))
    return parents, complete
