"""What to do next. A pure function of the desired state, the status, and what was just observed.

One stage runs at a time. A stage is done when the manifest of its key exists, no matter which attempt wrote
it. The rules that keep two attempts of a stage from ever running at once:

- an attempt's id is written to the status before it is submitted, and submitting an id twice is harmless;
- a job is given up only when the backend says that it ended, or has not known it for a while;
- backends err (Ray may call a live job failed after an error of its own), so a new attempt also waits until
  the old one's progress no longer moves, and the old one is asked to stop in case it lives.
"""

from __future__ import annotations

from collections.abc import Sequence

from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import Action, Adopt, apply
from zhongjing.pipeline.advance import advance, conclude
from zhongjing.pipeline.attend import attend
from zhongjing.pipeline.context import DecisionContext, spec_hash, submission_id
from zhongjing.pipeline.observe import Observed, Policy
from zhongjing.pipeline.plan import make_plan
from zhongjing.pipeline.state import DesiredState, PipelineStatus

__all__ = ["decide", "spec_hash", "submission_id"]


def decide(
    desired: DesiredState, status: PipelineStatus, observed: Observed, policy: Policy | None = None
) -> list[Action]:
    """The actions of one pass, in order.

    Applying them to ``status`` changes nothing when there is nothing new to do or to say.

    Args:
        desired: the desired state.
        status: what is recorded.
        observed: what was just seen; it covers the attempt of every stage whose status names one, unless
            the stage is done.
        policy: times; the defaults suit a cluster.

    Raises:
        ConfigError: an input of a stage is named wrongly (``submit`` has checked that it is not).
    """
    actions: list[Action] = []

    def do(new: Sequence[Action]) -> None:
        nonlocal status
        actions.extend(new)
        status = apply(status, new, observed.now)

    if status.observed_generation != desired.generation:
        do([Adopt(desired.generation)])
    plan = make_plan(desired, status.sources)
    context = DecisionContext(desired, plan, observed, policy or Policy(), status.started_at, status.failures)
    for stage in Stage:
        if status.stage(stage).state.is_active:
            do([context.whole(action) for action in attend(context, stage, status.stage(stage))])
    do(advance(context, status))
    do([context.whole(conclude(context, status))])
    return actions
