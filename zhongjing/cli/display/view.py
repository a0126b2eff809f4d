"""What is shown of a run, read off its status and progress: plain values, no terminal.

Both displays draw from a :class:`RunView`, so they never disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from zhongjing.cli.display.text import count
from zhongjing.codes import find
from zhongjing.config.stages import Stage
from zhongjing.pipeline.headline import describe, duration
from zhongjing.pipeline.state import (
    CLUSTER_NOT_READY,
    CLUSTER_STARTING,
    QUEUED,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
    StageStatus,
    seconds,
)
from zhongjing.storage.progress import Activity, Progress


@dataclass(frozen=True)
class StageView:
    """One stage, as it is shown."""

    stage: Stage
    status: StageStatus
    progress: Progress | None = None

    @property
    def state(self) -> StageState:
        """Where the stage stands."""
        return self.status.state

    @property
    def activity(self) -> Activity | None:
        """What the live attempt is doing, None when no attempt is alive."""
        if self.progress is None or not self.state.is_active:
            return None
        return self.progress.activity

    @property
    def doing(self) -> str:
        """One word: the activity of a live attempt, else the state."""
        return self.activity.value if self.activity is not None else _STATE_WORDS[self.state]

    @property
    def stands(self) -> str:
        """As :attr:`doing`, of a run that is only looked at: what was done before is done."""
        return _STATE_WORDS[StageState.SUCCEEDED] if self.state is StageState.SKIPPED else self.doing

    @property
    def seconds(self) -> float | None:
        """How long the attempt that succeeded took, its start and end included; None: unknown."""
        status = self.status
        if self.state is not StageState.SUCCEEDED or not (status.started_at and status.finished_at):
            return None
        return max(0.0, seconds(status.finished_at) - seconds(status.started_at))

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self.progress.step if self.progress is not None else 0

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the stage; 0 while unknown."""
        return self.progress.total_steps if self.progress is not None else 0

    @property
    def fraction(self) -> float:
        """Part of the stage that is done, in [0, 1]."""
        if self.state.is_done:
            return 1.0
        return min(1.0, self.step / self.total_steps) if self.total_steps else 0.0

    @property
    def headline(self) -> str:
        """The training metrics that tell most: ``loss 2.31``."""
        return describe(self.stage, self.progress.metrics) if self.progress is not None else ""

    @property
    def speed(self) -> str:
        """``12.3k tokens/s``, or nothing."""
        rate = self.progress.tokens_per_second if self.progress is not None else None
        return f"{count(rate)} tokens/s" if rate else ""

    @property
    def eta(self) -> str:
        """``ETA 1m20s``, or nothing."""
        left = self.progress.eta_seconds if self.progress is not None else None
        return f"ETA {duration(left)}" if left is not None and self.state.is_active else ""


_STATE_WORDS: dict[StageState, str] = {
    StageState.PENDING: "pending",
    StageState.SKIPPED: "skipped",
    StageState.QUEUED: "queued",
    StageState.RUNNING: "running",
    StageState.SUCCEEDED: "succeeded",
    StageState.FAILED: "failed",
    StageState.SUSPENDED: "suspended",
    StageState.WAITING_FOR_INPUT: "waiting for input",
    StageState.BLOCKED: "blocked",
}

_REASON_WORDS = {
    QUEUED: "waits for its turn",
    CLUSTER_STARTING: "the cluster is starting",
    CLUSTER_NOT_READY: "the cluster is not ready",
}


@dataclass(frozen=True)
class RunView:
    """A pipeline, as it is shown: the stages of its document in their order."""

    desired: DesiredState
    status: PipelineStatus | None
    stages: tuple[StageView, ...]
    dashboard_url: str | None = None
    dashboard_login: str | None = None
    flags: str = "--local"

    @property
    def name(self) -> str:
        """Name of the pipeline."""
        return self.desired.pipeline

    @property
    def stale(self) -> bool:
        """Whether the status tells of what was wanted before, and no attempt is alive: not worth showing."""
        if self.status is None or any(stage.state.is_active for stage in self.stages):
            return False
        same = self.status.uid == self.desired.uid
        return not same or self.status.observed_generation < self.desired.generation

    @property
    def held_up(self) -> str:
        """What a run waits for that is no stage of its own: other pipelines, or the cluster. Else nothing."""
        condition = self.status.condition() if self.status is not None and not self.stale else None
        if condition is None or condition.type is not ConditionType.PROGRESSING or self.settled:
            return ""
        words = _REASON_WORDS.get(condition.reason)
        if words is None and find(condition.reason) is None:
            return ""  # it goes on
        text = f"{words}: {condition.message}" if words else condition.message
        return f"{text}\n  remedy: {condition.remedy}" if condition.remedy else text

    @property
    def settled(self) -> bool:
        """Whether nothing will change by itself."""
        return self.status is not None and self.status.settled(self.desired)


def view(
    desired: DesiredState,
    status: PipelineStatus | None,
    progress: Mapping[Stage, Progress],
    *,
    dashboard_url: str | None = None,
    dashboard_login: str | None = None,
    flags: str = "--local",
) -> RunView:
    """Builds what is shown. Progress of another key or an earlier attempt is left out.

    ``flags`` are the options by which commands reach the run.
    """
    shown = []
    for stage in stages_of(desired):
        recorded = status.stage(stage) if status is not None else StageStatus()
        live = progress.get(stage)
        if live is not None and (live.key != recorded.key or live.attempt != recorded.attempt):
            live = None
        shown.append(StageView(stage, recorded, live))
    return RunView(desired, status, tuple(shown), dashboard_url, dashboard_login, flags)


def stages_of(desired: DesiredState) -> list[Stage]:
    """The stages that are shown: those of the document, in order."""
    return desired.document.spec.stages.present()
