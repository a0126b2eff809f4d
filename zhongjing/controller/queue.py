"""The queue for the cluster: one stage runs at a time, the rest wait by priority and age. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from zhongjing.backends.kubernetes.trainingpipeline import Pipeline
from zhongjing.codes import cluster, document
from zhongjing.pipeline.state import QUEUED, RETRYING, ConditionType, StageState
from zhongjing.storage.progress import Activity

_DOCUMENTS = frozenset(code.name for group in (document.GROUP, cluster.DOCUMENTS) for code in group.codes)


def is_ours(pipeline: Pipeline, release: str, others: Collection[str]) -> bool:
    """Whether this release runs the pipeline.

    The one that it asks for does, else the one that took it up first. What a release took up that is gone
    may be taken over.

    Args:
        pipeline: the object.
        release: this release.
        others: other releases that are installed in the namespace.
    """
    if pipeline.managed_by is not None:
        return pipeline.managed_by == release
    return pipeline.release in (None, release) or pipeline.release not in others


def holds_cluster(pipeline: Pipeline) -> bool:
    """Whether the pipeline has the cluster: an attempt may be alive, or will be tried again."""
    condition = pipeline.condition() or {}
    retrying = condition.get("type") == ConditionType.PROGRESSING.value and condition["reason"] == RETRYING
    return pipeline.is_active or (retrying and not pipeline.suspend and not pipeline.is_deleting)


def preparing(pipeline: Pipeline) -> str | None:
    """Id of the job of a stage that needs no workers yet: it is about to begin, or it prepares."""
    for entry in (pipeline.status.get("stages") or {}).values():
        if entry.get("state") in (StageState.QUEUED.value, StageState.RUNNING.value):
            activity = (entry.get("progress") or {}).get("activity", Activity.PREPARING.value)
            return entry.get("submissionId") if activity == Activity.PREPARING.value else None
    return None


def is_queued(pipeline: Pipeline, blocked_by: str | None = None) -> bool:
    """Whether the object already says that it waits for the cluster, and its spec has not changed.

    Args:
        pipeline: the object.
        blocked_by: whether it names this very reason, too; None: any.
    """
    condition = pipeline.condition() or {}
    observed = int(pipeline.status.get("observedGeneration") or 0)
    queued = condition.get("reason") == QUEUED and blocked_by in (None, condition.get("message"))
    return queued and observed == pipeline.generation and not pipeline.is_deleting


def is_refused(pipeline: Pipeline) -> bool:
    """Whether it has failed because its document was refused, whatever is in the store or the cluster."""
    if not pipeline.is_settled or not pipeline.holds(ConditionType.FAILED) or pipeline.is_deleting:
        return False
    return (pipeline.condition() or {}).get("reason") in _DOCUMENTS


def queue_order(pipelines: Iterable[Pipeline]) -> list[Pipeline]:
    """Those that have the cluster, then the others: highest priority first, then oldest, then by name."""
    return sorted(
        pipelines, key=lambda each: (not holds_cluster(each), -each.priority, each.created, each.name)
    )
