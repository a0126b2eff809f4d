"""Documents, desired states, a store in memory and a cluster in simulated time for tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from tests.manifests import stage_manifest
from zhongjing.codes.ray import FOREIGN_JOB, RAY_UNREACHABLE
from zhongjing.codes.storage import CONFLICT, OBJECT_NOT_FOUND, STORAGE_UNREACHABLE
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError, ConflictError, NotFoundError, StorageUnavailableError
from zhongjing.pipeline.backend import ForeignJobError, JobDescription, JobRequest, JobState
from zhongjing.pipeline.graph import targets
from zhongjing.pipeline.state import DesiredState, stamp
from zhongjing.storage.documents import parse_json, parse_record, record_bytes
from zhongjing.storage.globs import is_glob, pattern_of
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import (
    FrozenObject,
    FrozenSource,
    ModelArtifact,
    Record,
    StageManifest,
    StageRequest,
)
from zhongjing.storage.objects import ObjectInfo
from zhongjing.storage.progress import Activity, Failure, Progress

R = TypeVar("R", bound=Record)

LAYOUT = Layout("s3://bucket", "local", "demo")
UID = "0123abcd"
NOW = 1_800_000_000.0

DATA = {"pretrain": "texts", "sft": "dialogues", "rm": "rankings", "ppo": "dialogues"}
KINDS = {"texts": "text", "dialogues": "dialogue", "rankings": "ranking"}

# As the publisher's config.json has them: LLaMA-13B.
LLAMA_13B = {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "vocab_size": 32000,
}


def user_document(
    *, stages: Sequence[str] = ("pretrain", "sft", "rm", "ppo"), wait: Sequence[str] = (), **settings: Any
) -> dict[str, Any]:
    """A document as a user writes it; ``settings`` are per stage: ``sft={"learningRate": 1e-4}``."""
    used = {DATA[stage] for stage in stages}
    return {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": "demo"},
        "spec": {
            "base": {"uri": "s3://models/base"},
            "sources": [
                {"name": name, "uri": f"s3://data/{name}.jsonl", "kind": kind, "wait": name in wait}
                for name, kind in KINDS.items()
                if name in used
            ],
            "stages": {
                stage: {"data": [{"source": DATA[stage]}], **settings.get(stage, {})} for stage in stages
            },
        },
    }


def frozen(name: str, content: str = "1") -> FrozenSource:
    """A source whose digest follows from ``content``."""
    item = FrozenObject(uri=f"s3://data/{name}.jsonl", size=1, digest=f"{name}-{content}")
    return FrozenSource(name=name, objects=[item], digest=f"{name}-{content}")


def desired_state(
    user: dict[str, Any] | None = None,
    *,
    wanted: Sequence[Stage] = (),
    generation: int = 1,
    suspend: bool = False,
    waiting: Sequence[str] = (),
    reruns: dict[Stage, int] | None = None,
) -> DesiredState:
    """What a client would write for ``user``."""
    written = user or user_document()
    document = resolve(written)
    return DesiredState(
        namespace="local",
        pipeline="demo",
        uid=UID,
        generation=generation,
        user=written,
        document=document,
        sources=[frozen(source.name) for source in document.spec.sources if source.name not in waiting],
        waiting=list(waiting),
        targets=targets(document, wanted),
        reruns=reruns or {},
        suspend=suspend,
        created_at=stamp(NOW),
        updated_at=stamp(NOW),
    )


def manifest_of(request: StageRequest) -> StageManifest:
    """A manifest as the job of ``request`` writes it."""
    place = LAYOUT.stage(request.stage, request.key)
    return stage_manifest(
        request.stage,
        key=request.key,
        attempt=request.attempt,
        submission_id=request.submission_id,
        model=ModelArtifact(uri=place.model, format="full"),
        inputs=request.inputs,
    )


class MemoryStore:
    """The parts of :class:`zhongjing.storage.objects.ObjectStore` that the pipeline uses.

    ``fault`` is called before and after every access that a reconciler makes, and may raise.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.fault: Callable[[str], None] = lambda where: None

    def get(self, uri: str) -> bytes:
        self.fault(f"before get {uri}")
        if uri not in self.objects:
            raise NotFoundError("there is no such object", code=OBJECT_NOT_FOUND, where=uri)
        return self.objects[uri]

    def head(self, uri: str) -> ObjectInfo | None:
        self.fault(f"before head {uri}")
        if uri not in self.objects:
            return None
        return ObjectInfo(uri, len(self.objects[uri]), self._etag(uri), datetime(2027, 1, 1, tzinfo=UTC))

    def exists(self, uri: str) -> bool:
        return self.head(uri) is not None

    def list(self, prefix_uri: str) -> Iterator[ObjectInfo]:
        folder = prefix_uri.rstrip("/") + "/"
        found = (self.head(uri) for uri in sorted(self.objects) if uri.startswith(folder))
        return iter([info for info in found if info is not None])

    def glob(self, uri: str) -> Any:
        self.fault(f"before glob {uri}")
        if uri.endswith("/"):
            return list(self.list(uri))
        pattern = pattern_of(uri) if is_glob(uri) else None
        names = [
            each for each in sorted(self.objects) if (pattern.fullmatch(each) if pattern else each == uri)
        ]
        return [info for info in map(self.head, names) if info is not None]

    def put(self, uri: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        self.fault(f"before put {uri}")
        there = uri in self.objects
        if (if_none_match and there) or (if_match is not None and (not there or self._etag(uri) != if_match)):
            raise ConflictError("the condition did not hold", code=CONFLICT, where=uri)
        self.objects[uri] = data
        etag = self._etag(uri)
        self.fault(f"after put {uri}")
        return etag

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        self.put(uri, path.read_bytes())
        info = self.head(uri)
        assert info is not None
        return info

    def get_json(self, uri: str) -> Any:
        return parse_json(self.get(uri), uri)

    def put_json(
        self, uri: str, value: Any, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        return self.put(uri, json.dumps(value).encode(), if_none_match=if_none_match, if_match=if_match)

    def get_record(self, uri: str, kind: type[R]) -> R:
        return parse_record(self.get_json(uri), kind, uri)

    def find_record(self, uri: str, kind: type[R]) -> R | None:
        try:
            return self.get_record(uri, kind)
        except NotFoundError:
            return None

    def put_record(
        self, uri: str, record: Record, *, if_none_match: bool = False, if_match: str | None = None
    ) -> str:
        return self.put(uri, record_bytes(record), if_none_match=if_none_match, if_match=if_match)

    def _etag(self, uri: str) -> str:
        return hashlib.md5(self.objects[uri]).hexdigest()


class Job:
    """A simulated job: ``state`` is what the backend says, ``alive`` the truth."""

    def __init__(self, job: JobRequest, request: StageRequest) -> None:
        self.job = job
        self.request = request
        self.state = JobState.PENDING
        self.alive = False
        self.age = 0
        self.place: StageLayout = LAYOUT.stage(request.stage, request.key)


class Cluster:
    """A backend in simulated time. One tick is one second; a stage takes ``steps`` ticks.

    ``starts`` lists every start of a process. Two processes of a stage at once, or the start of a stage
    whose manifest exists, are asserted against at the moment they happen.
    """

    def __init__(self, store: MemoryStore, *, steps: int = 6) -> None:
        self.store = store
        self.steps = steps
        self.jobs: dict[str, Job] = {}
        self.starts: list[tuple[Stage, str, int]] = []
        self.fault: Callable[[str], None] = lambda where: None
        self.now = NOW
        self.checkpoints: dict[tuple[Stage, str], int] = {}
        self.deaf = False  # jobs do not look at stop objects
        self.stuck = False  # jobs live but make no steps
        self.heartbeat = ""  # of such jobs: "works" (work is done), "ticks" (only time stamps move)
        self.beats = 0

    # The backend

    def submit(self, job: JobRequest) -> None:
        self.fault("before submit")
        there = self.jobs.get(job.submission_id)
        if there is None:
            request = parse_record(json.loads(self.store.objects[job.request_uri]), StageRequest, "")
            self.jobs[job.submission_id] = Job(job, request)
        elif there.job.metadata["specHash"] != job.metadata["specHash"]:
            raise ForeignJobError("another job has this id", code=FOREIGN_JOB)
        self.fault("after submit")

    def request_workers(self, job: JobRequest) -> None:
        self.fault("before request_workers")

    def stacks(self, submission_id: str) -> str:
        return f"stacks of {submission_id}"

    def describe(self, submission_id: str) -> JobDescription:
        self.fault("before describe")
        job = self.jobs.get(submission_id)
        if job is None:
            return JobDescription(submission_id=submission_id, state=JobState.UNKNOWN)
        return JobDescription(submission_id=submission_id, state=job.state, metadata=job.job.metadata)

    def stop(self, submission_id: str) -> None:
        self.fault("before stop")
        job = self.jobs.get(submission_id)
        if job is not None and not job.state.is_terminal:
            job.state, job.alive = JobState.STOPPED, False

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        yield f"log of {submission_id}"

    # The world

    def tick(self) -> None:
        """One second passes for every job."""
        self.now += 1.0
        for job in list(self.jobs.values()):
            job.age += 1
            if job.state is JobState.PENDING and job.age >= 2:
                self._start(job)
            elif job.alive:
                self._step(job)

    def running(self) -> list[Job]:
        return [job for job in self.jobs.values() if job.alive]

    def crash(self, job: Job, failure: Failure | None = None) -> None:
        """The process ends badly, with or without a word."""
        if failure is not None:
            self._tell(job, Activity.FAILED, failure)
        job.alive, job.state = False, JobState.FAILED

    def mislabel(self, job: Job) -> None:
        """The backend calls a live job failed."""
        job.state = JobState.FAILED

    def restart_head(self, *, zombies: bool = False) -> None:
        """The backend forgets every job; processes die with it unless ``zombies``."""
        forgotten, self.jobs = self.jobs, {}
        for name, job in forgotten.items():
            if zombies and job.alive:
                self.jobs[f"zombie-{len(self.starts)}-{name}"] = job
            job.alive = job.alive and zombies

    def _start(self, job: Job) -> None:
        stage = job.request.stage
        others = [other for other in self.running() if other.request.stage is stage]
        assert not others, f"two attempts of {stage} at once"
        assert job.place.manifest not in self.store.objects, f"{stage} was done and runs again"
        job.state, job.alive = JobState.RUNNING, True
        self.starts.append((stage, job.request.key, job.request.attempt))
        self._tell(job, Activity.STARTING)

    def _step(self, job: Job) -> None:
        run = (job.request.stage, job.request.key)
        if job.place.stop(job.request.attempt) in self.store.objects and not self.deaf:
            self._tell(job, Activity.SUSPENDED)
            self._end(job)
            return
        if self.stuck:
            self.beats += self.heartbeat == "works"
            if self.heartbeat:
                self._tell(job, Activity.EVALUATING)
            return
        self.checkpoints[run] = self.checkpoints.get(run, 0) + 1
        self._tell(job, Activity.TRAINING)
        if self.checkpoints[run] >= self.steps:
            self._tell(job, Activity.DONE)
            self.store.objects.setdefault(job.place.manifest, record_bytes(manifest_of(job.request)))
            self._end(job)

    def _end(self, job: Job) -> None:
        job.alive = False
        if job.state is JobState.RUNNING:
            job.state = JobState.SUCCEEDED

    def _tell(self, job: Job, activity: Activity, failure: Failure | None = None) -> None:
        step = self.checkpoints.get((job.request.stage, job.request.key), 0)
        progress = Progress(
            stage=job.request.stage,
            key=job.request.key,
            attempt=job.request.attempt,
            activity=activity,
            step=step,
            total_steps=self.steps,
            checkpoint_step=step or None,
            updated_at=stamp(self.now),
            beats=self.beats,
            failure=failure,
        )
        self.store.objects[job.place.progress] = record_bytes(progress)


def store_down(where: str) -> None:
    """A fault: the store does not answer."""
    raise StorageUnavailableError("no answer", code=STORAGE_UNREACHABLE, where=where)


def backend_down(where: str) -> None:
    """A fault: the backend does not answer."""
    raise BackendUnavailableError("no answer", code=RAY_UNREACHABLE, where=where)
