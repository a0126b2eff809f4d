"""What one decision is made from, and the few questions that all its parts ask. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

from zhongjing.config.keys import digest
from zhongjing.config.stages import AnySettings, ConstructSettings, Stage
from zhongjing.pipeline.actions import Action, Conclude, Mark, Submit
from zhongjing.pipeline.backend import JobState
from zhongjing.pipeline.observe import AttemptView, Observed, Policy, ResultView
from zhongjing.pipeline.plan import Plan, StagePlan
from zhongjing.pipeline.state import DesiredState, StageStatus, seconds


@dataclass(frozen=True)
class DecisionContext:
    """Desired state, plan and observed state."""

    desired: DesiredState
    plan: Plan
    observed: Observed
    policy: Policy
    started_at: str | None = None  # first submission of this generation
    failures: int = 0  # of all stages since then

    @property
    def overdue(self) -> bool:
        """Whether the pipeline as a whole has run longer than it may."""
        limit = self.desired.document.spec.active_deadline_seconds
        return (
            limit is not None and self.started_at is not None and self.now - seconds(self.started_at) > limit
        )

    @property
    def overdue_message(self) -> str:
        """Why an overdue pipeline is failed."""
        limit = self.desired.document.spec.active_deadline_seconds
        return f"the pipeline ran longer than its activeDeadlineSeconds ({limit} s)"

    @property
    def now(self) -> float:
        """Time of the pass, seconds since the epoch."""
        return self.observed.now

    def result(self, stage: Stage, key: str | None) -> ResultView | None:
        """The manifest of ``key``, if it exists."""
        return self.observed.results.get((stage, key)) if key is not None else None

    def settings(self, stage: Stage) -> AnySettings | ConstructSettings:
        """Settings of a stage that the document has."""
        settings = self.desired.document.spec.stages.job(stage)
        assert settings is not None, f"the document has no stage {stage}"
        return settings

    def is_done(self, stage: Stage) -> bool:
        """Whether the wanted result of ``stage`` exists."""
        node = self.plan.get(stage)
        return node is not None and self.result(stage, node.key) is not None

    def wants(self, stage: Stage, key: str | None) -> bool:
        """Whether the result of ``key`` is what should be made of ``stage``."""
        node = self.plan.get(stage)
        return node is not None and node.wanted and node.key == key

    def is_foreign(self, entry: StageStatus, view: AttemptView) -> bool:
        """Whether the job of the attempt's id is a foreign one: never to be waited for, nor ended."""
        return view.job.metadata.get("specHash", entry.spec_hash) != entry.spec_hash

    def is_over(self, view: AttemptView) -> bool:
        """Whether an attempt that the backend gave up is certainly over.

        It said so itself, it ended in order, nothing of it is left, or its progress no longer moves.
        """
        if view.job.lost or view.progress is None or view.has_ended:
            return True
        if view.job.state in (JobState.SUCCEEDED, JobState.STOPPED):
            return True
        return view.quiet_seconds >= self.policy.quiet_seconds

    def whole(self, action: Action) -> Action:
        """An action with the commands of its remedy as users of this place can give them."""
        return whole(action, self.policy, self.desired)

    def submit(self, node: StagePlan, entry: StageStatus, attempt: int, message: str) -> Submit:
        """The action that submits ``attempt``; the same attempt again is harmless."""
        assert node.key is not None
        changed = entry.key is not None and entry.key != node.key and bool(entry.fields)
        return Submit(
            stage=node.stage,
            key=node.key,
            attempt=attempt,
            submission_id=submission_id(self.desired, node.stage, attempt),
            spec_hash=spec_hash(self.desired, node.stage, node.key, attempt),
            fields=node.fields,
            changes=node.changes_since(entry.fields) if changed else entry.changes,
            message=message,
        )


def spec_hash(desired: DesiredState, stage: Stage, key: str, attempt: int) -> str:
    """What a job's metadata says of its work; a job of the same id and another hash is not ours."""
    return digest({"uid": desired.uid, "stage": stage.value, "key": key, "attempt": attempt})


def submission_id(desired: DesiredState, stage: Stage, attempt: int) -> str:
    """``<pipeline>-<uid8>-<stage>-a<N>``."""
    return f"{desired.submission_prefix}-{stage}-a{attempt}"


def whole(action: Action, policy: Policy, desired: DesiredState) -> Action:
    """An action with the commands of its remedy as users of the policy's place can give them."""
    if not isinstance(action, Mark | Conclude) or action.remedy is None:
        return action
    stage = action.stage.value if isinstance(action, Mark) else None
    remedy = policy.commands.complete(action.remedy, desired.pipeline, stage, keep=True)
    return replace(action, remedy=remedy)
