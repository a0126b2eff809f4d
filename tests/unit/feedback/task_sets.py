"""Task sets for tests."""

from __future__ import annotations

from zhongjing.construct.manifest import Ancestor, StepRecord
from zhongjing.feedback.tasks import TASKS, CandidateAnswer, FeedbackTask, Message, TaskSet, write_parts
from zhongjing.storage.objects import ObjectStore


def task(number: int, texts: tuple[str, ...]) -> FeedbackTask:
    """A task of that question, with answers in that order."""
    answers = [
        CandidateAnswer(id="abcdefgh"[place], text=text, seed=place, temperature=1.0)
        for place, text in enumerate(texts)
    ]
    prompt = [Message(role="user", content=f"第{number}位患者，头疼怎么办？")]
    return FeedbackTask.make(prompt, answers, "in_distribution", None)


def write_task_set(
    store: ObjectStore, folder: str, tasks: list[FeedbackTask], *, deidentified: bool = True
) -> TaskSet:
    """A whole task set; its prompts come from a source that was de-identified, unless told otherwise."""
    step = StepRecord(name="deidentify" if deidentified else "dedup", version=1)
    parent = Ancestor(uri="s3://corpus/clean", key="0" * 64, steps=[step], complete=False)
    task_set = TaskSet(
        model="s3://models/sft",
        model_key="1" * 64,
        k=4,
        seed=0,
        temperatures=[1.0],
        max_new_tokens=64,
        prompts={"in_distribution": len(tasks)},
        wanted={"in_distribution": len(tasks)},
        answers=sum(len(each.answers) for each in tasks),
        resampled=0,
        missing=0,
        dropped=0,
        unended=0,
        parts=write_parts(store, folder, tasks),
        parents=[parent],
        complete=True,
        created="2026-12-01T00:00:00+00:00",
    )
    store.put_record(f"{folder}/{TASKS}", task_set)
    return task_set
