"""A controller whose API, store and Ray are in memory: passes over many pipelines in milliseconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from tests.releases import release_config
from tests.unit.pipeline.support import MemoryStore
from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.config.release import StorageRelease
from zhongjing.config.sources import Storage
from zhongjing.controller.fencing import RayCluster
from zhongjing.controller.loop import Controller
from zhongjing.controller.metrics import Metrics
from zhongjing.pipeline.backend import JobDescription, JobRequest, JobState
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Cadence
from zhongjing.storage.objects import ObjectInfo

ROOT = "s3://bucket"


class Objects:
    """The TrainingPipelines of a namespace."""

    api: Any = None

    def __init__(self) -> None:
        self.items: dict[str, Pipeline] = {}
        self.version = 0
        self.writes = 0

    def apply(self, name: str, **spec: Any) -> None:
        """Makes an object, or changes its ``spec``."""
        self.version += 1
        there = self.items.get(name)
        metadata = {
            "name": name,
            "namespace": "ns",
            "uid": f"{abs(hash(name)) % 16**8:08x}-0000" if there is None else there.uid,
            "generation": 1 if there is None else there.generation + 1,
            "resourceVersion": str(self.version),
            "creationTimestamp": f"2026-01-01T00:{len(self.items) // 60:02d}:{len(self.items) % 60:02d}Z",
        }
        data = [{"source": "texts"}]
        given = {
            "base": {"uri": "owner/base"},
            "force": True,
            "sources": [{"name": "texts", "kind": "text", "uri": f"{ROOT}/data/texts.jsonl"}],
            "stages": {"pretrain": {"data": data}},
        }
        before = given if there is None else there.spec
        status = {} if there is None else there.status
        self.items[name] = Pipeline({"metadata": metadata, "spec": before | spec, "status": status})

    def find(self) -> tuple[list[Pipeline], str]:
        return list(self.items.values()), str(self.version)

    def write_status(self, pipeline: Pipeline, status: dict[str, Any]) -> Pipeline:
        assert pipeline.version == self.items[pipeline.name].version
        self.version += 1
        self.writes += 1
        metadata = pipeline.metadata | {"resourceVersion": str(self.version)}
        written = Pipeline({"metadata": metadata, "spec": pipeline.spec, "status": status})
        self.items[pipeline.name] = written
        return written

    def set_finalizer(self, pipeline: Pipeline, wanted: bool) -> Pipeline | None:
        return self.items.get(pipeline.name)

    def condition(self, name: str) -> tuple[str, str, str]:
        """Type, reason and message of the condition that holds."""
        found = self.items[name].condition() or {}
        return str(found.get("type")), str(found.get("reason")), str(found.get("message"))


class Jobs:
    """A Ray whose jobs run until a test ends them."""

    def __init__(self) -> None:
        self.known: dict[str, JobDescription] = {}

    def submit(self, job: JobRequest) -> None:
        self.known[job.submission_id] = JobDescription(
            submission_id=job.submission_id, state=JobState.RUNNING, metadata=job.metadata
        )

    def request_workers(self, job: JobRequest) -> None:
        """Workers are there."""

    def stacks(self, submission_id: str) -> str:
        return ""

    def describe(self, submission_id: str) -> JobDescription:
        unknown = JobDescription(submission_id=submission_id, state=JobState.UNKNOWN)
        return self.known.get(submission_id, unknown)

    def jobs(self) -> list[JobDescription]:
        return list(self.known.values())

    def end(self, state: JobState) -> None:
        """All jobs end so."""
        self.known = {
            name: job.model_copy(update={"state": state, "message": "it ended"})
            for name, job in self.known.items()
        }

    def stop(self, submission_id: str) -> None:
        self.known.pop(submission_id, None)

    def tail_logs(self, submission_id: str) -> Iterator[str]:
        yield f"log of {submission_id}"


class CountedStore(MemoryStore):
    """Counts requests."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.refuse = self.fault  # replaced by who wants a fault
        self.fault = self._count

    def _count(self, where: str) -> None:
        if where.startswith("before"):
            self.asked.append(where)
        self.refuse(where)


class FakeReleaseStore:
    """The store of the release."""

    def __init__(self, store: MemoryStore) -> None:
        self.objects = store
        self.storage = Storage(uri=ROOT)
        self.is_ready = False

    def ask(self) -> None:
        """Raises as the store does."""
        self._nothing()
        self.is_ready = True

    def follow_keys(self) -> None:
        """There are none."""

    def _nothing(self) -> list[ObjectInfo]:
        self.objects.fault("before list .outage")
        return []


class World:
    """A controller and all that it sees."""

    def __init__(self) -> None:
        self.objects = Objects()
        self.store = CountedStore()
        self.store.objects[f"{ROOT}/data/texts.jsonl"] = b"{}"
        self.jobs = Jobs()
        release = release_config(
            fullname="zj-zhongjing",
            image="zhongjing",
            ray={"service": "ray", "token_secret": "none", "token_managed": False, "scaling": "none"},
            storage=StorageRelease(bundled=False, uri=ROOT, secret="zj-keys"),
        )
        recorder = cast(Any, type("Recorder", (), {"tell": lambda *_: None})())
        self.controller = Controller(
            cast(Any, self.objects),
            release,
            cast(Any, FakeReleaseStore(self.store)),
            RayCluster(cast(Any, self.jobs)),
            may_act=lambda: True,
            recorder=recorder,
            metrics=Metrics(),
            policy=Policy(),
            cadence=Cadence(active=2.0, waiting=20.0),
        )

    def run(self, now: float) -> float:
        """One pass at a time; seconds until the next."""
        self.controller.inventory.expire()
        return self.controller._pass(lambda: now)
