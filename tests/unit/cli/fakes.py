"""A session in memory, and documents, statuses and manifests to put into it."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.manifests import stage_manifest
from zhongjing.codes.storage import DAMAGED_OBJECT, OBJECT_NOT_FOUND
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.resolve import resolve
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import NotFoundError, StorageError
from zhongjing.pipeline.state import (
    Condition,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
    StageStatus,
)
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import ModelArtifact, StageManifest
from zhongjing.storage.objects import ObjectInfo
from zhongjing.storage.progress import Activity, Progress

TIME = "2026-01-02T03:04:05.000Z"
UID = "0a1b2c3d"


def user_document(name: str = "demo", *, stages: Sequence[str] = ("sft", "rm")) -> dict[str, Any]:
    """What a user would write."""
    kinds = {"pretrain": "text", "sft": "dialogue", "rm": "ranking", "ppo": "prompts"}
    return {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": name},
        "spec": {
            "base": {"tiny": {}},
            "sources": [
                {"name": stage, "uri": f"s3://corpora/{stage}.jsonl", "kind": kinds[stage]}
                for stage in stages
            ],
            "stages": {
                stage: {"data": [{"source": stage}], "maxLength": 4096 if stage == "ppo" else 512}
                for stage in stages
            },
        },
    }


def document(name: str = "demo", *, stages: Sequence[str] = ("sft", "rm")) -> TrainingPipeline:
    """The same, resolved."""
    return resolve(user_document(name, stages=stages))


def desired_state(
    name: str = "demo", *, stages: Sequence[str] = ("sft", "rm"), generation: int = 1
) -> DesiredState:
    """A pipeline that is wanted."""
    return DesiredState(
        namespace="local",
        pipeline=name,
        uid=UID,
        generation=generation,
        user=user_document(name, stages=stages),
        document=document(name, stages=stages),
        targets=[Stage(stage) for stage in stages],
        created_at=TIME,
        updated_at=TIME,
    )


def stage_status(state: StageState, *, key: str = "k" * 16, attempt: int = 1, **more: Any) -> StageStatus:
    """Status of one stage."""
    return StageStatus(state=state, key=key, attempt=attempt, **more)


def pipeline_status(
    stages: Mapping[Stage, StageStatus],
    condition: ConditionType = ConditionType.PROGRESSING,
    *,
    reason: str = "Running",
    message: str = "",
    remedy: str | None = None,
    generation: int = 1,
) -> PipelineStatus:
    """Status of a pipeline."""
    return PipelineStatus(
        uid=UID,
        observed_generation=generation,
        conditions=[
            Condition(type=condition, status=True, reason=reason, message=message, remedy=remedy, since=TIME)
        ],
        stages=dict(stages),
        updated_at=TIME,
    )


def training_progress(stage: Stage, step: int, total: int = 100, **more: Any) -> Progress:
    """Progress of a stage that trains."""
    fields: dict[str, Any] = {
        "stage": stage,
        "key": "k" * 16,
        "attempt": 1,
        "activity": Activity.TRAINING,
        "step": step,
        "total_steps": total,
        "metrics": {"loss": 4.5, "grad_norm": 1.0},
        "tokens_per_second": 12345.0,
        "eta_seconds": 80.0,
    }
    return Progress(**{**fields, **more})


def manifest(stage: Stage, *, name: str = "demo", **more: Any) -> StageManifest:
    """A stage's result."""
    key = "k" * 16
    root = f"s3://zhongjing/local/{name}/{stage}/{key}"
    fields: dict[str, Any] = {
        "pipeline": name,
        "key": key,
        "submission_id": f"{name}-{UID}-{stage}-a1",
        "started_at": TIME,
        "finished_at": TIME,
        "seconds": 75.0,
        "model": ModelArtifact(uri=f"{root}/model", format="full"),
        "steps": 100,
        "best_step": 75,
        "samples": 800,
        "tokens": 12000,
        "metrics_before": {"loss": 6.5, "perplexity": 665.1},
        "metrics": {"loss": 3.25, "perplexity": 25.8},
        "test_metrics": {"loss": 3.5},
        "document": document(name).model_dump(mode="json", by_alias=True),
    }
    return stage_manifest(stage, **{**fields, **more})


class MemoryStore:
    """The few methods of an object store that commands use, over a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.records: dict[str, Any] = {}
        self.damaged = False

    def download_folder(
        self, uri: str, folder: Path, files: Sequence[Any] | None = None, watch: object = None
    ) -> list[Path]:
        prefix = f"{uri}/"
        found = {
            key.removeprefix(prefix): data for key, data in self.objects.items() if key.startswith(prefix)
        }
        if not found:
            raise NotFoundError("there is no such folder", code=OBJECT_NOT_FOUND, where=uri)
        if files is not None:
            found = {file.name: found[file.name] for file in files}
        paths = []
        for name, data in found.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            paths.append(path)
            if self.damaged:
                raise StorageError(
                    "the object's content is not what its manifest says",
                    code=DAMAGED_OBJECT,
                    where=f"{uri}/{name}",
                )
        return paths

    def get_record(self, uri: str, kind: type[Any]) -> Any:
        if uri not in self.records:
            raise NotFoundError("there is no such object", code=OBJECT_NOT_FOUND, where=uri)
        assert isinstance(self.records[uri], kind)
        return self.records[uri]

    def find_record(self, uri: str, kind: type[Any]) -> Any:
        return self.get_record(uri, kind) if uri in self.records else None

    def exists(self, uri: str) -> bool:
        return uri in self.objects or uri in self.records

    def head(self, uri: str) -> ObjectInfo | None:
        if uri not in self.objects:
            return None
        return ObjectInfo(
            uri=uri, size=len(self.objects[uri]), etag="e", last_modified=datetime(2026, 1, 2, tzinfo=UTC)
        )

    def glob(self, uri: str) -> list[ObjectInfo]:
        found = (self.head(key) for key in sorted(self.objects) if key == uri)
        return [info for info in found if info is not None]

    def put_file(self, uri: str, path: Path) -> ObjectInfo:
        self.objects[uri] = path.read_bytes()
        info = self.head(uri)
        assert info is not None
        return info

    def get_json(self, uri: str) -> Any:
        if uri not in self.records:
            raise NotFoundError("there is no such object", code=OBJECT_NOT_FOUND, where=uri)
        return copy.deepcopy(self.records[uri])


class MemorySession:
    """A :class:`zhongjing.pipeline.session.Session` whose pipelines live through a script of frames.

    Every look at the status takes the next frame of ``frames``; the last one stays. A frame that is an
    exception is raised.
    """

    def __init__(self) -> None:
        self.store: Any = MemoryStore()
        self.storage = Storage()
        self.namespace = "local"
        self.flags = "--local"
        self.stops_on_interrupt = True
        self.dashboard_url: str | None = "http://127.0.0.1:8265"
        self.dashboard_login: str | None = None
        self.wanted: dict[str, DesiredState] = {}
        self.frames: list[tuple[PipelineStatus, dict[Stage, Progress]] | BaseException] = []
        self.after_suspend: list[tuple[PipelineStatus, dict[Stage, Progress]] | BaseException] = []
        self.after_kill: list[tuple[PipelineStatus, dict[Stage, Progress]] | BaseException] = []
        self.manifests: dict[Stage, StageManifest] = {}
        self.log_lines: dict[Stage, list[str]] = {}
        self.refusals: list[BaseException] = []
        self.interrupted_after_apply = False
        self.calls: list[str] = []
        self.watched = 0
        self.looks = 0
        self.closed = False
        self._now: tuple[PipelineStatus, dict[Stage, Progress]] | None = None

    def add(self, desired: DesiredState) -> DesiredState:
        self.wanted[desired.pipeline] = desired
        return desired

    def layout(self, pipeline: str) -> Layout:
        return Layout("s3://zhongjing", "local", pipeline)

    def pipelines(self) -> list[str]:
        return sorted(self.wanted)

    def desired(self, pipeline: str) -> DesiredState | None:
        return self.wanted.get(pipeline)

    def status(self, pipeline: str) -> PipelineStatus | None:
        self.looks += 1
        assert self.looks < 200, "the script of frames never settles"
        if not self.frames:
            self._now = None
            return None
        frame = self.frames.pop(0) if len(self.frames) > 1 else self.frames[0]
        if isinstance(frame, BaseException):
            if len(self.frames) <= 1:
                self.frames = []
            raise frame
        self._now = frame
        return frame[0]

    def progress(self, pipeline: str, stage: Stage) -> Progress | None:
        return self._now[1].get(stage) if self._now is not None else None

    def manifest(self, pipeline: str, stage: Stage) -> StageManifest | None:
        return self.manifests.get(stage)

    def apply(self, desired: DesiredState) -> DesiredState:
        self.calls.append(f"apply {desired.pipeline} {','.join(desired.targets)}")
        if self.refusals:
            raise self.refusals.pop(0)
        if self.interrupted_after_apply:
            self.add(desired)
            raise KeyboardInterrupt
        # Scripted statuses carry this uid and generation; a pipeline's own uid is random.
        return self.add(desired.model_copy(update={"uid": UID, "generation": 1}))

    def suspend(self, pipeline: str) -> DesiredState:
        self.calls.append(f"suspend {pipeline}")
        if self.after_suspend:
            self.frames = list(self.after_suspend)
        return self.add(self.wanted[pipeline].model_copy(update={"suspend": True, "uid": UID}))

    def kill(self, pipeline: str) -> DesiredState:
        self.calls.append(f"kill {pipeline}")
        if self.after_kill:
            self.frames = list(self.after_kill)
        return self.add(self.wanted[pipeline].model_copy(update={"suspend": True}))

    def resume(self, pipeline: str) -> DesiredState:
        self.calls.append(f"resume {pipeline}")
        return self.add(self.wanted[pipeline].model_copy(update={"suspend": False}))

    def logs(
        self, pipeline: str, stage: Stage, *, follow: bool = False, attempt: int | None = None
    ) -> Iterator[str]:
        self.calls.append(f"logs {pipeline} {stage} follow={follow} attempt={attempt}")
        yield from self.log_lines.get(stage, [])

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        self.watched += 1
        yield

    def warm(self) -> None: ...

    def obstacles(self, *, ignored: bool = False) -> list[str]:
        return []

    def snapshot(self) -> AbstractContextManager[None]:
        return nullcontext()

    def close(self) -> None:
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
