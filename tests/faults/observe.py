"""What the harness sees of a run: status, progress and checkpoints in the store, as any watcher would."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from tests.faults.place import Place
from zhongjing.backends.local.workdir import LOCAL_NAMESPACE, LOCAL_ROOT
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.pipeline.records import read_status
from zhongjing.pipeline.state import PipelineStatus, StageStatus
from zhongjing.storage.checkpoint_records import list_steps
from zhongjing.storage.credentials import Access
from zhongjing.storage.layout import Layout, StageLayout
from zhongjing.storage.manifest import StageManifest
from zhongjing.storage.objects import ObjectStore, open_store
from zhongjing.storage.progress import MetricPoint, Progress
from zhongjing.storage.progress_writer import read_metrics

STAGES = (Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO)


@dataclass(frozen=True)
class View:
    """One look at a stage. ``progress`` is of the current attempt, or None."""

    entry: StageStatus
    progress: Progress | None

    @property
    def is_training(self) -> bool:
        """Whether the loop runs: it has a model, and has resumed if there was a checkpoint."""
        return self.progress is not None and self.progress.total_steps > 0


@dataclass(frozen=True)
class Result:
    """What a finished stage left."""

    manifest: StageManifest
    points: tuple[MetricPoint, ...]


@dataclass
class Observer:
    """Reads the store of a place. What cannot be read now (a killed server) is None; ask again."""

    place: Place
    pipeline: str
    _store: ObjectStore | None = None
    _environment: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Where the pipeline's objects are."""
        return Layout(LOCAL_ROOT, LOCAL_NAMESPACE, self.pipeline)

    @property
    def store(self) -> ObjectStore:
        """The place's store, at its present address."""
        environment = self.place.workdir.environment()
        if self._store is None or environment != self._environment:
            self._environment = environment
            storage = Storage(uri=LOCAL_ROOT, deadline_seconds=3.0)
            self._store = open_store(storage, Access.from_environment(environment))
        return self._store

    def status(self) -> PipelineStatus | None:
        """The pipeline's status."""
        if not self.place.workdir.environment():
            return None
        try:
            found = read_status(self.store, self.layout)
        except ZhongjingError:
            return None
        return found.value if found is not None else None

    def view(self, stage: Stage) -> View | None:
        """A look at a stage."""
        status = self.status()
        if status is None:
            return None
        entry = status.stage(stage)
        progress = None
        if entry.key is not None:
            try:
                progress = self.store.find_record(self._stage(stage, entry).progress, Progress)
            except ZhongjingError:
                return None
        if progress is not None and progress.attempt != entry.attempt:
            progress = None
        return View(entry, progress)

    def checkpoints(self, stage: Stage, entry: StageStatus) -> list[int]:
        """Steps of the complete checkpoints.

        Raises:
            ZhongjingError: the store cannot be read.
        """
        listed = list_steps(self.store, self._stage(stage, entry))
        return sorted(step for step, complete in listed.items() if complete)

    def seal(self, stage: Stage, entry: StageStatus) -> tuple[int, str]:
        """What must not change once a stage is done: its attempt's number, and a digest of its manifest.

        Raises:
            ZhongjingError: the store cannot be read.
        """
        content = self.store.get(self._stage(stage, entry).manifest)
        return entry.attempt, hashlib.sha256(content).hexdigest()

    def result(self, stage: Stage) -> Result:
        """What a finished stage left.

        Raises:
            ZhongjingError: the store cannot be read.
        """
        status = self.status()
        assert status is not None
        entry = status.stage(stage)
        assert entry.key is not None
        manifest = self.store.find_record(self.layout.stage(stage, entry.key).manifest, StageManifest)
        assert manifest is not None, f"{stage} is not done"
        return Result(manifest, tuple(read_metrics(self.store, self._stage(stage, entry))))

    def _stage(self, stage: Stage, entry: StageStatus) -> StageLayout:
        assert entry.key is not None
        return self.layout.stage(stage, entry.key)
