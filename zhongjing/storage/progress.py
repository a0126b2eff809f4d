"""Progress of a running stage, written by rank 0 and read by everybody who watches.

Status, ETA and curves come from here and from nowhere else: no log is parsed.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from zhongjing.config.stages import Stage
from zhongjing.errors import ZhongjingError
from zhongjing.storage.manifest import MixtureCounts, Record, SourceCounts


def time_stamp() -> str:
    """Now, as progress, metric points and manifests write it: ISO 8601, UTC, milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


class Activity(StrEnum):
    """What an attempt is doing."""

    STARTING = "starting"
    PREPARING = "preparing"  # reading sources, making the token cache or the base; no worker is needed yet
    PREPARED = "prepared"  # all that is stored; the driver waits for the workers
    TRAINING = "training"
    EVALUATING = "evaluating"
    SAVING = "saving"
    DONE = "done"
    SUSPENDED = "suspended"  # stopped on request, with a checkpoint
    FAILED = "failed"


class Failure(Record):
    """Why an attempt failed, as the user should read it."""

    error: str = Field(description="class name in zhongjing.errors, or of the foreign exception")
    code: str = Field(default="", description="of the catalogue (zhongjing.codes)")
    message: str
    where: str | None = None
    remedy: str | None = None
    retriable: bool = False
    traceback_uri: str | None = None

    @classmethod
    def of(cls, error: ZhongjingError, **more: Any) -> Failure:
        """What an error of ours says."""
        said = {"code": error.code.name, "message": error.message, "where": error.where}
        return cls(error=type(error).__name__, **said, remedy=error.remedy, **more)


class Progress(Record):
    """``progress.json``: at most one write every five seconds, plus one at every change of activity."""

    stage: Stage
    key: str
    attempt: int
    activity: Activity
    message: str = ""
    fraction: float | None = Field(default=None, description="of the activity that is done, 0 to 1")
    beats: int = Field(default=0, description="pieces of work done; moves only when something was done")
    step: int = 0
    total_steps: int = 0
    epoch: float = 0.0
    samples: int = 0
    tokens: int = 0
    tokens_per_second: float | None = None
    eta_seconds: float | None = None
    metrics: dict[str, float] = Field(default_factory=dict, description="latest training metrics")
    validation: dict[str, float] = Field(default_factory=dict, description="latest held-out metrics")
    validation_step: int | None = Field(default=None, description="optimizer steps done when they were taken")
    best_step: int | None = None
    checkpoint_step: int | None = None
    spikes: int = 0
    started_at: str = ""
    updated_at: str = ""
    failure: Failure | None = None
    sources: list[SourceCounts] = Field(default_factory=list, description="known once the sources were read")
    mixture: list[MixtureCounts] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list, description="what is doubtful, one sentence each")


class MetricPoint(Record):
    """One line of metrics.jsonl."""

    kind: Literal["train", "validation", "rollout", "spike", "sample"]
    step: int
    time: str
    epoch: float = 0.0
    values: dict[str, float]
