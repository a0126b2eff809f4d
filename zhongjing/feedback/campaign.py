"""A task set and the people who rank it: given out, read back, adjudicated, written as rankings.

::

    <tasks>/_annotation.json     Annotation: who ranks what, and where
           /_judgments/          what they said (zhongjing.feedback.judgments)
    <out>/part-00000.jsonl       rankings, as the stage rm reads them
         /_manifest.json         their lineage: the task set, the people, the rule

Every step may be given again: what is done is found, and done once.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import Field

import zhongjing
from zhongjing.codes import feedback as codes
from zhongjing.codes.construct import OUTPUT_IN_USE
from zhongjing.config.keys import digest
from zhongjing.config.sources import Kind
from zhongjing.construct.manifest import MANIFEST_NAME, SourceManifest, StepRecord
from zhongjing.errors import ConfigError, MissingInputError
from zhongjing.feedback import judgments as stored
from zhongjing.feedback.assignment import assign
from zhongjing.feedback.decision import Decision, Disagreement, State, decide
from zhongjing.feedback.judgments import Judgment, latest
from zhongjing.feedback.label_studio import page
from zhongjing.feedback.tasks import FeedbackTask, read_task_set, read_tasks
from zhongjing.storage.manifest import FrozenObject, Record

if TYPE_CHECKING:
    from zhongjing.feedback.label_studio.client import Client
    from zhongjing.storage.objects import ObjectStore

ANNOTATION = "_annotation.json"
DEFAULT_UNKNOWN_SHARE = 0.05


class Annotation(Record):
    """Who ranks a task set. Written once."""

    annotators: list[str]
    expert: str
    each: int = Field(description="annotators of a task")
    seed: int = Field(description="of the assignment and of the order that each sees")
    created: str


class Campaign:
    """The ranking of one task set.

    Args:
        store: where the task set is.
        tasks: its folder.
        client: a person's Label Studio, by e-mail address.
    """

    def __init__(
        self,
        store: ObjectStore,
        tasks: str,
        client: Callable[[str], Client],
    ) -> None:
        self.store = store
        self.folder = tasks.rstrip("/")
        self.task_set = read_task_set(store, self.folder)
        self._client = client

    @property
    def title(self) -> str:
        """Of its projects."""
        return f"zhongjing {digest(self.folder)}"

    @functools.cached_property
    def tasks(self) -> dict[str, FeedbackTask]:
        """All tasks by id."""
        return {task.id: task for task in read_tasks(self.store, self.folder, self.task_set)}

    def annotation(self) -> Annotation:
        """Who ranks it. Raises MissingInputError: it was not pushed."""
        found = self.store.find_record(f"{self.folder}/{ANNOTATION}", Annotation)
        if found is None:
            raise MissingInputError(
                "these tasks were not given to annotators", code=codes.NOT_PUSHED, where=self.folder
            )
        return found

    def begin(self, annotators: Sequence[str], expert: str, *, each: int, seed: int) -> Annotation:
        """Decides who ranks what, once.

        Raises:
            ConfigError: it was decided otherwise before, or people are named twice.
        """
        if expert in annotators:
            raise ConfigError(
                "the expert decides where annotators disagree, and cannot be one of them",
                code=codes.OTHER_PUSH,
                where="--expert",
                remedy="name a third person",
            )
        assign([], annotators, each=each, seed=seed)
        wanted = Annotation(
            annotators=sorted(annotators), expert=expert, each=each, seed=seed, created=_now()
        )
        place = f"{self.folder}/{ANNOTATION}"
        found = self.store.find_record(place, Annotation)
        if found is None:
            self.store.put_record(place, wanted, if_none_match=True)
            return wanted
        if found.model_copy(update={"created": wanted.created}) != wanted:
            raise ConfigError(
                f"they were given to {', '.join(found.annotators)} "
                f"(expert {found.expert}, {found.each} each, seed {found.seed})",
                code=codes.OTHER_PUSH,
                where=self.folder,
            )
        return found

    def push(self) -> dict[str, int]:
        """Gives every annotator their tasks, in a project of their own; returns how many were added."""
        annotation, tasks = self.annotation(), self.tasks
        assigned = assign(list(tasks), annotation.annotators, each=annotation.each, seed=annotation.seed)
        return {
            name: self._give(name, [tasks[task] for task in tasks if name in assigned[task]], annotation.seed)
            for name in annotation.annotators
        }

    def _give(self, name: str, tasks: Sequence[FeedbackTask], seed: int) -> int:
        client = self._client(name)
        project = client.projects().get(self.title)
        if project is None:
            most = max((len(task.answers) for task in self.tasks.values()), default=self.task_set.k)
            project = client.make_project(self.title, page.config(most), page.INSTRUCTION)
        there = {str(each["data"]["task"]) for each in client.export(project)}
        new = [page.as_task(task, name, seed) for task in tasks if task.id not in there]
        if new:
            client.add_tasks(project, new)
        return len(new)

    def read_back(self) -> tuple[int, dict[str, int]]:
        """Stores what people have said since the last time: how many judgments, and problems by reason."""
        annotation, tasks = self.annotation(), self.tasks
        known = {(each.annotator, each.annotation, each.updated) for each in self._stored()}
        new: list[Judgment] = []
        problems: Counter[str] = Counter()
        for name in (*annotation.annotators, annotation.expert):
            client = self._client(name)
            project = client.projects().get(self.title)
            if project is None:
                if name != annotation.expert:
                    problems["the project of an annotator is gone"] += 1
                continue
            user = int(client.whoami()["id"])
            for exported in client.export(project):
                task = tasks.get(str(exported["data"].get("task")))
                if task is None:
                    problems["a task that is none of this set"] += 1
                    continue
                ids = [answer.id for answer in task.answers]
                read = page.read(exported, name, user, ids, annotation.seed)
                problems.update(each.problem for each in read if each.problem is not None)
                judged = [each.judgment for each in read if each.judgment is not None]
                if len(judged) > 1:
                    problems["a task ranked twice by one person (the last counts)"] += 1
                for each in judged:
                    one = each.model_copy(update={"expert": name == annotation.expert})
                    if (one.annotator, one.annotation, one.updated) not in known:
                        new.append(one)
        stored.write(self.store, self.folder, new)
        return len(new), dict(sorted(problems.items()))

    def _stored(self) -> list[Judgment]:
        return stored.read(self.store, self.folder)

    def judgments(self) -> list[Judgment]:
        """The latest of each person on each task."""
        return list(latest(self._stored()).values())

    def decisions(self, rule: Disagreement) -> dict[str, Decision]:
        """How far each task is."""
        annotation = self.annotation()
        mine: dict[str, list[Judgment]] = defaultdict(list)
        decided: dict[str, Judgment] = {}
        for each in self.judgments():
            if each.expert:
                decided[each.task] = each
            else:
                mine[each.task].append(each)
        return {
            task: decide(
                sorted(mine[task], key=lambda each: each.annotator),
                decided.get(task),
                wanted=annotation.each,
                rule=rule,
            )
            for task in self.tasks
        }

    def adjudicate(self, rule: Disagreement) -> int:
        """Gives the expert the tasks whose orders differ; returns how many were added."""
        tasks, annotation = self.tasks, self.annotation()
        disputed = [
            tasks[task] for task, each in self.decisions(rule).items() if each.state is State.DISAGREE
        ]
        return self._give(annotation.expert, disputed, annotation.seed) if disputed else 0

    def write(
        self, out: str, rule: Disagreement, *, partial: bool, most_unknown: float = DEFAULT_UNKNOWN_SHARE
    ) -> tuple[int, int, int]:
        """Writes the rankings: how many, those with an answer K+1, and those left out because of their share.

        Raises:
            ConfigError: tasks are undecided, or the folder holds something else.
        """
        out = out.rstrip("/")
        decisions, tasks, annotation = self.decisions(rule), self.tasks, self.annotation()
        states = Counter(each.state.value for each in decisions.values())
        waiting = states[State.WAITING] + states[State.DISAGREE]
        if waiting and not partial:
            raise ConfigError(
                f"{states[State.WAITING]} tasks wait for annotators, {states[State.DISAGREE]} for the expert",
                code=codes.UNDECIDED,
                where=self.folder,
            )
        ranked = [task for task in tasks if decisions[task].state.is_ranked]
        unknown = [task for task in ranked if decisions[task].unknown is not None]
        known = len(ranked) - len(unknown)
        # Of n + u rankings u may be this share: u <= n s / (1 - s).
        most = len(unknown) if most_unknown >= 1 else int(known * most_unknown / (1 - most_unknown))
        left_out = set(sorted(unknown, key=lambda task: hashlib.sha256(task.encode()).hexdigest())[most:])
        lines = [_line(tasks[task], decisions[task]) for task in ranked if task not in left_out]
        data = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        key = digest({"tasks": self.folder, "rankings": hashlib.sha256(data).hexdigest()})
        self._claim(out, key)
        part = f"{out}/part-00000.jsonl"
        self.store.put(part, data)
        manifest = SourceManifest(
            key=key,
            kind=Kind.RANKING,
            steps=[StepRecord(name="rank", version=1, parameters=self._told(annotation, rule, most_unknown))],
            inputs=[
                FrozenObject(uri=f"{self.folder}/{each.name}", size=each.size, digest=each.sha256)
                for each in self.task_set.parts
            ],
            input_digest=digest([each.sha256 for each in self.task_set.parts]),
            complete=False,
            read=len(tasks),
            written=len(lines),
            characters=sum(len(answer) for line in lines for answer in line["answers"]),
            counts={"rank": {**states, "unknown": len(unknown), "unknown left out": len(left_out)}},
            parts=[FrozenObject(uri=part, size=len(data), digest=hashlib.sha256(data).hexdigest())],
            created=_now(),
            code_version=zhongjing.__version__,
        )
        self.store.put_record(f"{out}/{MANIFEST_NAME}", manifest)
        return len(lines), len(unknown) - len(left_out), len(left_out)

    def _told(self, annotation: Annotation, rule: Disagreement, most_unknown: float) -> dict[str, Any]:
        return {
            "by": "people",
            "model": self.task_set.model,
            "modelKey": self.task_set.model_key,
            "annotators": len(annotation.annotators),
            "annotatorsPerTask": annotation.each,
            "disagreeWhen": rule.rule,
            "maxUnknownShare": most_unknown,
        }

    def _claim(self, out: str, key: str) -> None:
        """Takes the folder: what stands there must be of this task set."""
        mark = f"{out}/_made/begun.json"
        if not self.store.exists(mark):
            first = next(iter(self.store.list(f"{out}/")), None)
            if first is not None:
                raise ConfigError(
                    "there are objects in the output's folder that are no rankings of this task set",
                    code=OUTPUT_IN_USE,
                    where=first.uri,
                )
            # Until the manifest is there, no stage takes the folder for complete.
            self.store.put_json(mark, {"tasks": self.folder, "key": key})
        elif self.store.get_json(mark).get("tasks") != self.folder:
            raise ConfigError("the folder has rankings of another task set", code=OUTPUT_IN_USE, where=out)


def check_model(task_set_model: str, stated: str | None, folder: str) -> None:
    """Raises ConfigError where a task set is not of the model that the caller states."""
    if stated is not None and stated.rstrip("/") != task_set_model.rstrip("/"):
        raise ConfigError(
            f"the tasks were sampled from {task_set_model}, not from {stated}",
            code=codes.OTHER_MODEL,
            where=folder,
        )


def _line(task: FeedbackTask, decision: Decision) -> dict[str, Any]:
    texts: Mapping[str, str] = {answer.id: answer.text for answer in task.answers}
    groups = [[texts[answer] for answer in group] for group in decision.order]
    if decision.unknown is not None:
        groups.insert(0, [decision.unknown])
    return {
        "prompt": [turn.model_dump(mode="json") for turn in task.prompt],
        "answers": [text for group in groups for text in group],
        "ranks": [rank for rank, group in enumerate(groups, start=1) for _ in group],
        "_origin": task.id,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
