"""Desired state (``pipeline.json``) and status (``status.json``): the two documents of a pipeline.

The object store plays the API server. A client writes :class:`DesiredState` and never touches the status; a
reconciler (the local supervisor, or the Kubernetes controller) reads it, acts, and writes
:class:`PipelineStatus`. So a client may be killed at any time, and the same call again attaches.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from zhongjing.codes import document, pods, storage, training
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.storage.manifest import FrozenSource, Record
from zhongjing.storage.progress import Failure


class FrozenReference(Record):
    """A model named by a local folder, uploaded once: what the document says, and where it lies now."""

    reference: str = Field(description="as the document names it")
    uri: str = Field(description="s3:// folder")
    digest: str = Field(description="hash over the files' digests and names")


class DesiredState(Record):
    """The desired state of one pipeline. Written by clients, with If-Match."""

    version: Literal[1] = 1
    namespace: str
    pipeline: str
    uid: str = Field(pattern=r"^[0-9a-f]{8}$", description="made once; part of every submission id")
    generation: int = Field(ge=1, description="raised with every change")
    user: dict[str, Any] = Field(description="the document as written, overrides applied, no defaults")
    origin: str = Field(default="", description="where it was written: a file, or a recipe (`recipe tiny`)")
    document: TrainingPipeline = Field(description="resolved: every default filled in, frozen")
    sources: list[FrozenSource] = Field(default_factory=list)
    waiting: list[str] = Field(
        default_factory=list, description="sources that are not there yet (wait: true)"
    )
    references: list[FrozenReference] = Field(default_factory=list)
    targets: list[Stage] = Field(description="stages to bring about")
    reruns: dict[Stage, int] = Field(default_factory=dict, description="how often a re-run was forced")
    suspend: bool = False
    created_at: str
    updated_at: str

    @property
    def submission_prefix(self) -> str:
        """``<pipeline>-<uid8>``: what the ids of all jobs of this pipeline begin with."""
        return f"{self.pipeline}-{self.uid}"


def placed(document: TrainingPipeline, namespace: str, storage: Storage) -> TrainingPipeline:
    """The document as a place runs it: in its namespace, with its store."""
    metadata = document.metadata.model_copy(update={"namespace": namespace})
    spec = document.spec.model_copy(update={"storage": storage})
    return document.model_copy(update={"metadata": metadata, "spec": spec})


class StageState(StrEnum):
    """The state of a stage."""

    PENDING = "Pending"  # not started yet
    SKIPPED = "Skipped"  # was done before this generation
    QUEUED = "Queued"  # submitted, not started
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    SUSPENDED = "Suspended"
    WAITING_FOR_INPUT = "WaitingForInput"  # a source with wait: true is not there yet
    BLOCKED = "Blocked"  # cannot run: what it needs failed, waits or was never made

    @property
    def is_active(self) -> bool:
        """Whether an attempt may be alive."""
        return self in (StageState.QUEUED, StageState.RUNNING)

    @property
    def is_done(self) -> bool:
        """Whether the stage's result exists."""
        return self in (StageState.SKIPPED, StageState.SUCCEEDED)


class StopReason(StrEnum):
    """Why a running attempt was asked to stop."""

    SUSPENDED = "Suspended"  # the user suspended the pipeline
    SUPERSEDED = "Superseded"  # the document asks for another result
    HUNG = training.HUNG.name  # neither a step nor other work within progressDeadlineSeconds
    DEADLINE = training.DEADLINE_EXCEEDED.name  # activeDeadlineSeconds are over
    LOST = "Lost"  # the backend lost the job; should it live on, it must not


class StageStatus(Record):
    """The status of one stage. ``attempt`` never falls: it names jobs, across keys and generations."""

    state: StageState = StageState.PENDING
    key: str | None = None
    reason: str = Field(default="", description="of a failed stage: the name of a code (zhongjing.codes)")
    message: str = ""
    remedy: str | None = None
    failure: Failure | None = Field(
        default=None, description="what the last attempt said of its end, when it could say something"
    )
    attempt: int = 0
    failures: int = Field(default=0, description="failed attempts that count against retries")
    failed_at_step: int | None = Field(
        default=None, description="checkpoint at the last failure; a later one wins the retries back"
    )
    submission_id: str | None = None
    spec_hash: str | None = None
    confirmed: bool = Field(default=False, description="the backend has been seen to know the attempt")
    stop_reason: StopReason | None = None
    stop_requested_at: str | None = None
    manifest_uri: str | None = None
    model_uri: str | None = None
    fields: dict[str, Any] = Field(default_factory=dict, description="what the key is a hash of")
    changes: list[str] = Field(
        default_factory=list, description="fields that made an earlier result not count"
    )
    submitted_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    next_retry_at: str | None = None
    unknown_since: str | None = Field(default=None, description="the backend has not known the job since")
    waiting_since: str | None = Field(
        default=None, description="prepared, and its workers have not been there since; it does not run then"
    )

    def seconds_run(self, now: float) -> float:
        """How long the stage has run; waiting for workers is not running."""
        if self.started_at is None:
            return 0.0
        return (seconds(self.waiting_since) if self.waiting_since else now) - seconds(self.started_at)

    def waited(self, now: float) -> dict[str, Any]:
        """What changes when the workers of an attempt are there: its start is put off by what it waited."""
        if self.waiting_since is None:
            return {}
        return {"waiting_since": None, "started_at": stamp(now - self.seconds_run(now))}


class ConditionType(StrEnum):
    """Conditions of a pipeline, as Kubernetes objects have them."""

    PROGRESSING = "Progressing"
    SUSPENDED = "Suspended"
    COMPLETE = "Complete"
    FAILED = "Failed"


class Condition(Record):
    """One condition; at most one of the four types is true at a time."""

    type: ConditionType
    status: bool
    reason: str
    message: str = ""
    remedy: str | None = None
    since: str = ""


class PipelineStatus(Record):
    """The status of a pipeline. Written by the one reconciler, with If-Match."""

    version: Literal[1] = 1
    uid: str
    observed_generation: int = 0
    conditions: list[Condition] = Field(default_factory=list)
    stages: dict[Stage, StageStatus] = Field(default_factory=dict)
    sources: list[FrozenSource] = Field(
        default_factory=list, description="sources that arrived after they were waited for"
    )
    started_at: str | None = Field(default=None, description="first submission of the observed generation")
    failures: int = Field(default=0, description="failed attempts of all stages since then")
    updated_at: str = ""

    def stage(self, stage: Stage) -> StageStatus:
        """Status of ``stage``; a fresh one where none is recorded."""
        return self.stages.get(stage) or StageStatus()

    def condition(self) -> Condition | None:
        """The condition that holds, if the pipeline was looked at yet."""
        return next((condition for condition in self.conditions if condition.status), None)

    def holds(self, type_: ConditionType) -> bool:
        """Whether condition ``type_`` is true."""
        condition = self.condition()
        return condition is not None and condition.type is type_

    def settled(self, desired: DesiredState) -> bool:
        """Whether nothing will change before the desired state does, or what is waited for arrives.

        A client that follows a pipeline stops following here.
        """
        if self.uid != desired.uid or self.observed_generation < desired.generation:
            return False
        condition = self.condition()
        if condition is None:
            return False
        return condition.type is not ConditionType.PROGRESSING or self.stands_still

    @property
    def stands_still(self) -> bool:
        """Whether nothing goes on before something outside changes."""
        condition = self.condition()
        if condition is None or condition.type is not ConditionType.PROGRESSING:
            return False
        active = any(entry.state.is_active for entry in self.stages.values())
        return condition.reason in STANDSTILLS and not active


# Reasons of conditions that callers branch on.
WAITING_FOR_INPUT = training.WAITING_FOR_INPUT.name
RUNNING = "Running"
RETRYING = "Retrying"
QUEUED = "Queued"  # another pipeline has the cluster
CLUSTER_STARTING = "ClusterStarting"  # pods are on their way, and nothing is wrong
CLUSTER_NOT_READY = "ClusterNotReady"
DOES_NOT_FIT = document.DOES_NOT_FIT.name
NO_ROOM = pods.NO_ROOM.name

UNREADY = (CLUSTER_STARTING, CLUSTER_NOT_READY)
"""Reasons of Progressing while what runs jobs is not there."""

REFUSALS = (DOES_NOT_FIT, NO_ROOM)
"""Reasons of Progressing where a place is too small: another release, node or document mends it."""

STANDSTILLS = (WAITING_FOR_INPUT, *REFUSALS, storage.DAMAGED_OBJECT.name, storage.NEWER_VERSION.name)
"""Reasons of Progressing where nothing goes on before something outside changes."""


def stamp(now: float) -> str:
    """Seconds since the epoch as the ISO 8601 UTC text that all stored times have."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def seconds(text: str) -> float:
    """Seconds since the epoch of a stored time."""
    return datetime.fromisoformat(text).timestamp()
