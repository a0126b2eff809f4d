"""What passes between the running side and a job: requests in, manifests out.

A stage is done when the manifest of its key exists. The pipeline and the training code never import each
other; they meet in these two documents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from pydantic import ConfigDict, Field

from zhongjing.config.fields import DocumentModel
from zhongjing.config.keys import digest
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage

MANIFEST_VERSION: Final = 1


class Record(DocumentModel):
    """Base of stored JSON; unknown keys are kept out so that damage is seen."""

    model_config = ConfigDict(protected_namespaces=())  # a field may be called model


class FrozenObject(Record):
    """One object of a source as it was when the pipeline first saw it."""

    uri: str
    size: int
    digest: str = Field(description="sha256 of an upload, else the store's ETag")


class FrozenSource(Record):
    """A source with its listing frozen: a re-run reads the very same objects."""

    name: str
    objects: list[FrozenObject]
    digest: str = Field(description="hash over the objects' digests, in order")


class MadeSource(Record):
    """A source that construct made: where it is, and what became of the raw records."""

    uri: str = Field(description="its folder, with a manifest of its own (_manifest.json)")
    key: str = Field(description="of the construction")
    objects: list[FrozenObject] = Field(description="its parts")
    read: int
    written: int
    quarantined: int

    def frozen(self, name: str) -> FrozenSource:
        """The source as later stages read it."""
        parts = digest([each.digest for each in self.objects])
        return FrozenSource(name=name, objects=self.objects, digest=parts)


class StageInput(Record):
    """A model that a stage starts from or uses."""

    role: Literal["from", "reward"]
    uri: str = Field(description="folder of the model (s3://), hub id or local folder; 'base' for spec.base")
    key: str = Field(description="key of the stage that made it, or a hash of the reference")
    stage: Stage | None = None


class StageRequest(Record):
    """Everything a job needs to know; stored before the job is submitted."""

    version: Literal[1] = 1
    stage: Stage
    key: str
    attempt: int
    submission_id: str
    document: TrainingPipeline = Field(description="resolved: every default filled in")
    sources: list[FrozenSource]
    inputs: list[StageInput]
    key_fields: dict[str, Any] = Field(
        default_factory=dict, description="what the key is the digest of (zhongjing.config.keys)"
    )


class Unused(Record):
    """What a key of a source's records held that went into no record."""

    records: int
    characters: int


def unused_text(unused: Mapping[str, Unused], limit: int = 8) -> str:
    """What was left out, for people: ``options (60 records, 1,860 characters)``."""
    shown = [
        f"{path} ({one.records:,} records, {one.characters:,} characters)"
        for path, one in list(unused.items())[:limit]
    ]
    more = len(unused) - limit
    return ", ".join([*shown, f"{more} more keys"] if more > 0 else shown)


def layouts_text(layouts: Mapping[str, int], limit: int = 4) -> str:
    """How records were read, for people: ``instruction/output (690), instruct/output (110)``."""
    if len(layouts) == 1:
        return next(iter(layouts))
    shown = [f"{layout} ({count:,})" for layout, count in list(layouts.items())[:limit]]
    more = len(layouts) - limit
    return "; ".join([*shown, f"{more} more ways"] if more > 0 else shown)


class SourceCounts(Record):
    """What became of a source's records. Nothing is dropped silently.

    Every record that was read is kept, or is too long, a duplicate, a leak, tied or quarantined.
    """

    name: str
    digest: str
    read: int = 0
    kept: int = 0
    train: int = 0
    validation: int = 0
    test: int = 0
    truncated: int = Field(default=0, description="kept, cut to the stage's longest sequence")
    unanswered: int = Field(default=0, description="kept, without a last question that has no answer")
    too_long: int = Field(default=0, description="dropped: an answer alone is longer than a sequence may be")
    duplicates: int = Field(default=0, description="dropped: equal to an earlier record of the stage")
    leaks: int = Field(default=0, description="dropped: equal to test data")
    tied: int = Field(default=0, description="dropped: rankings whose answers all tie; listed likewise")
    quarantined: int = Field(default=0, description="dropped: cannot be used; listed in quarantine.jsonl")
    canaries: int = Field(default=0, description="planted copies of canaries, not among the records read")
    unused: dict[str, Unused] = Field(default_factory=dict, description="by key, the most characters first")
    layouts: dict[str, int] = Field(
        default_factory=dict, description="records by the way in which they were read, the most first"
    )


class MixtureCounts(Record):
    """What one group of a mixture (a kind of data, or a source with a weight) gives to an epoch."""

    name: str
    samples: int = Field(description="training samples that there are")
    drawn: int = Field(description="training samples in an epoch")

    @property
    def repeated(self) -> int:
        """Samples of an epoch that are there a second time or more often."""
        return max(0, self.drawn - self.samples)


class ModelFile(Record):
    """A file of a model folder."""

    name: str
    size: int
    sha256: str


class ModelArtifact(Record):
    """A stage's result."""

    uri: str
    format: Literal["full", "adapter"]
    base_uri: str | None = Field(default=None, description="the full model that an adapter stands on")
    files: list[ModelFile] = Field(default_factory=list)


class Lineage(Record):
    """With what a result was made; never part of a key."""

    code_version: str
    commit: str | None = None
    image: str | None = None
    python: str
    packages: dict[str, str]
    host: str
    platform: str
    workers: int
    device: str


class MemoryUse(Record):
    """Peak memory of a worker, the largest over all of them until the end of the training. Bytes."""

    device: Literal["gpu", "cpu"]
    plan: int | None = Field(description="as zhongjing.planning computes it; none: a base of another kind")
    peak: int = Field(description="as measured: tensors on the GPU, or private memory")
    reserved: int | None = Field(default=None, description="what torch held of the GPU")
    host_plan: int | None = Field(default=None, description="of a worker with a GPU: host memory")
    host_peak: int | None = Field(default=None, description="likewise as measured")

    @property
    def error(self) -> float | None:
        """By how much the plan is above the peak, as a part of the peak; below it: negative."""
        return None if self.plan is None else (self.plan - self.peak) / self.peak

    def __str__(self) -> str:
        planned = "no plan" if self.plan is None else f"plan {self.plan / 2**30:.1f} GiB"
        return f"{planned}, peak {self.peak / 2**30:.1f} GiB"


class StageManifest(Record):
    """Completion of a stage, written last and once."""

    version: Literal[1] = MANIFEST_VERSION
    pipeline: str
    namespace: str
    stage: Stage
    key: str
    attempt: int
    submission_id: str
    started_at: str
    finished_at: str
    seconds: float
    model: ModelArtifact | None = Field(default=None, description="none: of construct, which makes sources")
    made: dict[str, MadeSource] = Field(default_factory=dict, description="of construct: sources by name")
    inputs: list[StageInput]
    sources: list[SourceCounts]
    steps: int
    best_step: int
    samples: int
    tokens: int
    spikes: int
    metrics_before: dict[str, float] = Field(description="held-out metrics before the first step")
    metrics: dict[str, float] = Field(description="held-out metrics of the kept checkpoint")
    test_metrics: dict[str, float] = Field(
        default_factory=dict, description="of the kept checkpoint on test data, which no stage has seen"
    )
    extra: dict[str, Any] = Field(default_factory=dict, description="stage-specific facts, e.g. reward mean")
    document: dict[str, Any] = Field(description="the resolved document")
    key_fields: dict[str, Any] = Field(default_factory=dict, description="what the key is a hash of")
    lineage: Lineage
    memory: MemoryUse | None = Field(default=None, description="none: made before it was measured")
    mixture: list[MixtureCounts] = Field(default_factory=list, description="empty: each sample once an epoch")
    warnings: list[str] = Field(default_factory=list, description="what is doubtful about the result")
