"""Judgments: what one person said of one task. They are added to and never changed.

::

    <tasks>/_judgments/<sha256>.jsonl    a Judgment a line; named by its content, so an edited file is found
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field, ValidationError

from zhongjing.codes import feedback as codes
from zhongjing.errors import StorageError
from zhongjing.storage.manifest import Record

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

FOLDER = "_judgments"


class Judgment(Record):
    """One person's judgment of one task.

    ``order`` has groups of answer ids, best first; a group of several is a tie. It is empty where the task
    was skipped. ``flags`` has the abilities that an answer violates, by answer id.
    """

    task: str
    annotator: str
    expert: bool = False
    annotation: int = Field(description="its number in Label Studio")
    updated: str = Field(description="ISO 8601, as Label Studio says it")
    seconds: float | None = Field(default=None, description="that the person took")
    shown: list[str] = Field(description="answer ids in the order that the person saw")
    skipped: bool = False
    order: list[list[str]] = Field(default_factory=list)
    flags: dict[str, list[str]] = Field(default_factory=dict)
    all_wrong: bool = False
    edited: str | None = Field(default=None, description="the honest answer, where all are wrong")

    def ranks(self) -> dict[str, int]:
        """Rank by answer id, 0 the best; equal ones tie."""
        return {answer: rank for rank, group in enumerate(self.order) for answer in group}


def write(store: ObjectStore, tasks: str, judgments: Iterable[Judgment]) -> str | None:
    """Stores judgments; returns the file, or None where there are none."""
    data = b"".join(each.model_dump_json().encode() + b"\n" for each in judgments)
    if not data:
        return None
    uri = f"{tasks}/{FOLDER}/{hashlib.sha256(data).hexdigest()}.jsonl"
    store.put(uri, data)
    return uri


def read(store: ObjectStore, tasks: str) -> list[Judgment]:
    """All judgments of a task set.

    Raises:
        StorageError: a file is not what was stored.
    """
    found: list[Judgment] = []
    for info in store.list(f"{tasks}/{FOLDER}/"):
        data = bytes(store.get(info.uri))
        name = info.uri.rpartition("/")[2].removesuffix(".jsonl")
        if hashlib.sha256(data).hexdigest() != name:
            raise StorageError("the file is not what was stored", code=codes.JUDGMENTS_EDITED, where=info.uri)
        try:
            found += [Judgment.model_validate_json(line) for line in data.splitlines()]
        except ValidationError as error:
            raise StorageError(
                "a line is no judgment", code=codes.JUDGMENTS_EDITED, where=info.uri
            ) from error
    return found


def latest(judgments: Iterable[Judgment]) -> dict[tuple[str, str], Judgment]:
    """The last judgment of each person on each task, by task and annotator."""
    kept: dict[tuple[str, str], Judgment] = {}
    for each in judgments:
        before = kept.get((each.task, each.annotator))
        if before is None or (before.updated, before.annotation) <= (each.updated, each.annotation):
            kept[each.task, each.annotator] = each
    return kept
