"""Task sets, and made-up annotators: they rank by the truth with Plackett-Luce noise (Plackett 1975)."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from zhongjing.construct.manifest import Ancestor, StepRecord
from zhongjing.feedback.label_studio.client import Client
from zhongjing.feedback.tasks import (
    TASKS,
    CandidateAnswer,
    FeedbackTask,
    Message,
    TaskSet,
    write_parts,
)
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


def made_up_tasks(count: int, k: int = 4) -> list[FeedbackTask]:
    """Tasks whose answers say how good they are: ``score 3``."""
    tasks = []
    for number in range(count):
        scores = random.Random(number).sample(range(k), k)
        tasks.append(task(number, tuple(f"问题{number}的回答，score {score}" for score in scores)))
    return tasks


def plackett_luce(scores: Mapping[str, float], skill: float, rng: random.Random) -> list[str]:
    """An order, best first; ``skill`` 0 is chance, large is the order of the scores."""
    left, order = dict(scores), list[str]()
    while left:
        names = list(left)
        weights = [math.exp(skill * left[name]) for name in names]
        order.append(rng.choices(names, weights)[0])
        del left[order[-1]]
    return order


def score_of(text: str) -> int:
    return int(text.rpartition(" ")[2])


def result_of(order: Sequence[str], **more: Any) -> list[dict[str, Any]]:
    """What the page sends: an order of letters, best first, and choices by the name of their control."""
    ranked = {
        "from_name": "rank",
        "to_name": "answers",
        "type": "ranker",
        "value": {"ranker": {"_": list(order)}},
    }
    choices = [
        {"from_name": name, "to_name": "prompt", "type": "choices", "value": {"choices": chosen}}
        for name, chosen in more.items()
        if name != "edited"
    ]
    written = [
        {"from_name": "edited", "to_name": "prompt", "type": "textarea", "value": {"text": [more[name]]}}
        for name in more
        if name == "edited"
    ]
    return [ranked, *choices, *written]


def rank_all(client: Client, title: str, skill: float, seed: int) -> int:
    """Ranks every task of a project that has no annotation yet, as one person would."""
    rng = random.Random(seed)
    project = client.projects()[title]
    done = 0
    for exported in client.export(project):
        if exported["annotations"]:
            continue
        scores = {each["id"]: score_of(each["body"]) for each in exported["data"]["answers"]}
        assert set(scores) <= set(ascii_uppercase)
        body = {"result": result_of(plackett_luce(scores, skill, rng)), "lead_time": 30.0}
        client.call("POST", f"/api/tasks/{exported['id']}/annotations/", body)
        done += 1
    return done
