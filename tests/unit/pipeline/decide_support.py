"""What the tests of decisions share: a status, and one decision while an attempt looks as described."""

from __future__ import annotations

from typing import Any

from tests.unit.pipeline.support import NOW, UID, user_document
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import Action, Conclude, Mark, apply
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.pipeline.decide import decide
from zhongjing.pipeline.observe import AttemptView, Observed, Policy, ResultView
from zhongjing.pipeline.plan import make_plan
from zhongjing.pipeline.state import DesiredState, PipelineStatus
from zhongjing.storage.progress import Activity, Failure, Progress

SFT = user_document(stages=("sft",))

POLICY = Policy()

Step = tuple[PipelineStatus, list[Action]]


def key_of(desired: DesiredState, stage: Stage) -> str:
    key = make_plan(desired)[stage].key
    assert key is not None
    return key


def result(desired: DesiredState, stage: Stage, attempt: int = 1) -> dict[Any, ResultView]:
    key = key_of(desired, stage)
    return {(stage, key): ResultView(f"s3://m/{key}", f"s3://w/{key}", attempt, "id")}


def look(
    desired: DesiredState,
    status: PipelineStatus,
    state: JobState,
    *,
    stage: Stage = Stage.SFT,
    activity: Activity | None = None,
    failure: Failure | None = None,
    checkpoint: int | None = None,
    quiet: float = 0.0,
    stuck: float = 0.0,
    now: float = NOW + 1,
    results: dict[Any, ResultView] | None = None,
    hash_: str | None = None,
    lost: bool = False,
    lacks: str = "",
) -> Step:
    """One decision while the attempt of ``stage`` looks as described; returns the status after it."""
    entry = status.stage(stage)
    assert entry.submission_id is not None
    assert entry.key is not None
    metadata = {"specHash": hash_ or entry.spec_hash or ""} if state is not JobState.UNKNOWN else {}
    job = JobDescription(submission_id=entry.submission_id, state=state, metadata=metadata, lost=lost)
    job = job.model_copy(update={"lacks": lacks, "remedy": "wait" if lacks else None})
    progress = None
    if activity is not None:
        progress = Progress(
            stage=stage,
            key=entry.key,
            attempt=entry.attempt,
            activity=activity,
            failure=failure,
            step=checkpoint or 0,
            checkpoint_step=checkpoint,
        )
    view = AttemptView(job, progress, quiet, stuck)
    observed = Observed(now, results or {}, {stage: view})
    actions = decide(desired, status, observed, POLICY)
    return apply(status, actions, now), actions


def submitted(desired: DesiredState, now: float = NOW) -> PipelineStatus:
    status = PipelineStatus(uid=UID)
    return apply(status, decide(desired, status, Observed(now), POLICY), now)


def running(desired: DesiredState) -> PipelineStatus:
    return look(desired, submitted(desired), JobState.RUNNING)[0]


def kinds(actions: list[Action]) -> list[str]:
    return [type(action).__name__ for action in actions if not isinstance(action, Mark | Conclude)]
