"""The task set: prompts with the answers that people, or a judge, rank.

::

    <folder>/tasks-00000.jsonl   a FeedbackTask a line
            /_tasks.json         TaskSet: what answered, counts, lineage; written last

People see a task's prompt and the texts of its answers, in the given order. Seed, temperature and model are
for the record: what shows a task leaves them out (:meth:`FeedbackTask.shown`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError

from zhongjing.codes import storage as codes
from zhongjing.construct.manifest import Ancestor
from zhongjing.errors import MissingInputError, StorageError
from zhongjing.storage.manifest import Lineage, Record

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

Origin = Literal["in_distribution", "out_of_distribution"]

TASKS = "_tasks.json"
"""Name of the manifest of a task set."""
TASKS_PER_PART = 1000


class Message(Record):
    """A turn of a prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


class CandidateAnswer(Record):
    """An answer to be ranked."""

    id: str = Field(description="a, b, ... in the order in which they are shown")
    text: str
    seed: int
    temperature: float


class FeedbackTask(Record):
    """A prompt (a user's turn last) with its answers, in the order in which they are shown."""

    id: str = Field(description="16 hex digits: a hash of prompt, answers and their seeds")
    prompt: list[Message]
    answers: list[CandidateAnswer]
    source: Origin
    department: str | None = None

    @classmethod
    def make(
        cls, prompt: list[Message], answers: list[CandidateAnswer], source: Origin, department: str | None
    ) -> FeedbackTask:
        """A task with its id."""
        said = [
            [[turn.role, turn.content] for turn in prompt],
            [[each.id, each.text, each.seed] for each in answers],
        ]
        digest = hashlib.sha256(json.dumps(said, ensure_ascii=False).encode("utf-8", "surrogatepass"))
        return cls(
            id=digest.hexdigest()[:16], prompt=prompt, answers=answers, source=source, department=department
        )

    def shown(self) -> dict[str, Any]:
        """What annotators and judges may see: nothing that tells how an answer was made."""
        return {
            "id": self.id,
            "prompt": [turn.model_dump(mode="json") for turn in self.prompt],
            "answers": [{"id": each.id, "text": each.text} for each in self.answers],
        }


class TaskPart(Record):
    """One file of a task set."""

    name: str
    size: int
    sha256: str
    tasks: int


class TaskSet(Record):
    """Manifest of a task set."""

    version: Literal[1] = 1
    model: str = Field(description="URI of what answered")
    model_key: str = Field(description="key of the stage that made it, or a hash of the reference")
    k: int = Field(description="answers wanted of a prompt")
    seed: int
    temperatures: list[float]
    max_new_tokens: int
    system_prompt: str | None = Field(default=None, description="shown to the model where a prompt has none")
    prompts: dict[str, int] = Field(description="tasks by origin")
    wanted: dict[str, int] = Field(description="prompts asked for by origin")
    answers: int
    resampled: int = Field(description="answers drawn again: empty, or too like another of their prompt")
    missing: int = Field(description="answers given up: each draw was empty or too like another")
    dropped: int = Field(description="prompts left out: longer than the model takes, or fewer than 2 answers")
    unended: int = Field(description="answers cut at the longest length")
    parts: list[TaskPart]
    lineage: Lineage | None = None
    parents: list[Ancestor] = Field(
        default_factory=list, description="constructed sources that the prompts were drawn from"
    )
    complete: bool = Field(
        default=False, description="whether every source of prompts was constructed; else nothing is known"
    )
    chosen_from: str | None = Field(
        default=None, description="task set that these were chosen from (feedback next); none: sampled"
    )
    chosen_by: list[str] = Field(
        default_factory=list, description="reward models whose disagreement chose: hashes of their weights"
    )
    created: str = Field(description="ISO 8601")


def write_parts(store: ObjectStore, folder: str, tasks: Iterable[FeedbackTask]) -> list[TaskPart]:
    """Writes the files of a task set; its manifest is the caller's, last."""
    parts: list[TaskPart] = []
    lines: list[bytes] = []

    def write() -> None:
        name, data = f"tasks-{len(parts):05d}.jsonl", b"".join(lines)
        store.put(f"{folder}/{name}", data)
        digest = hashlib.sha256(data).hexdigest()
        parts.append(TaskPart(name=name, size=len(data), sha256=digest, tasks=len(lines)))
        lines.clear()

    for task in tasks:
        lines.append(task.model_dump_json().encode() + b"\n")
        if len(lines) == TASKS_PER_PART:
            write()
    if lines:
        write()
    return parts


def read_task_set(store: ObjectStore, folder: str) -> TaskSet:
    """The manifest of a task set.

    Raises:
        MissingInputError: there is none.
    """
    found = store.find_record(f"{folder.rstrip('/')}/{TASKS}", TaskSet)
    if found is None:
        raise MissingInputError(
            "there is no task set here",
            code=codes.OBJECT_NOT_FOUND,
            where=folder,
            remedy="make one with the stage sample, or correct the folder",
        )
    return found


def read_tasks(store: ObjectStore, folder: str, task_set: TaskSet) -> Iterator[FeedbackTask]:
    """The tasks of a set, in their order.

    Raises:
        StorageError: a file is missing or is not what was written.
    """
    for part in task_set.parts:
        for line in part_data(store, folder, part).splitlines():
            yield task_of(line, f"{folder.rstrip('/')}/{part.name}")


def part_data(store: ObjectStore, folder: str, part: TaskPart) -> bytes:
    """A file of a set.

    Raises:
        StorageError: it is missing or is not what was written.
    """
    uri = f"{folder.rstrip('/')}/{part.name}"
    data = bytes(store.get(uri))
    if hashlib.sha256(data).hexdigest() != part.sha256:
        raise StorageError(
            "the file is not what was written: task sets are not edited",
            code=codes.DAMAGED_OBJECT,
            where=uri,
            remedy="sample again, or restore the file",
        )
    return data


def task_of(line: bytes, uri: str) -> FeedbackTask:
    """The task of a line. Raises StorageError, which names ``uri``, where it is none."""
    try:
        return FeedbackTask.model_validate_json(line)
    except ValidationError as error:
        raise StorageError("a line is no task", code=codes.DAMAGED_OBJECT, where=uri) from error
