"""Who has the cluster, whose pipeline it is, which jobs are orphans, what events say."""

from __future__ import annotations

import random
from typing import Any

import pytest

from zhongjing.backends.kubernetes.demand import Demand
from zhongjing.backends.kubernetes.events import transitions
from zhongjing.backends.kubernetes.trainingpipeline import FINALIZER, Pipeline
from zhongjing.config.stages import Resources, Stage
from zhongjing.controller.finalizers import is_expired, lacks_finalizer
from zhongjing.controller.orphans import orphans, verification
from zhongjing.controller.queue import holds_cluster, is_ours, preparing, queue_order
from zhongjing.pipeline.actions import Conclude, apply
from zhongjing.pipeline.backend import JobDescription, JobState
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState, StageStatus, stamp


def pipeline(
    name: str,
    *,
    uid: str = "12345678-0000",
    created: str = "2026-01-01T00:00:00Z",
    metadata: dict[str, Any] | None = None,
    condition: tuple[str, str] | None = None,
    stages: dict[str, str] | None = None,
    release: str | None = None,
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> Pipeline:
    given: dict[str, Any] = dict(status or {})
    if condition is not None:
        given["conditions"] = [{"type": condition[0], "status": "True", "reason": condition[1]}]
    if stages is not None:
        given["stages"] = {stage: {"state": state} for stage, state in stages.items()}
    if release is not None:
        given["release"] = release
    marks = {
        "name": name,
        "namespace": "ns",
        "uid": uid,
        "generation": 1,
        "resourceVersion": "1",
        "creationTimestamp": created,
    }
    return Pipeline({"metadata": marks | (metadata or {}), "spec": spec, "status": given})


def test_who_has_the_cluster_comes_first_then_priority_then_age_then_name() -> None:
    expected = [
        pipeline("runs", priority=-5, stages={"sft": "Running"}, created="2026-01-09T00:00:00Z"),
        pipeline("high", priority=7, created="2026-01-08T00:00:00Z"),
        pipeline("old", created="2026-01-02T00:00:00Z"),
        pipeline("same-a", created="2026-01-03T00:00:00Z"),
        pipeline("same-b", created="2026-01-03T00:00:00Z"),
        pipeline("low", priority=-1, created="2026-01-01T00:00:00Z"),
    ]
    for seed in range(10):
        shuffled = random.Random(seed).sample(expected, len(expected))
        assert [each.name for each in queue_order(shuffled)] == [each.name for each in expected]


@pytest.mark.parametrize(
    ("state", "activity", "needs_none"),
    [
        ("Queued", None, True),  # the head is not there yet
        ("Running", None, True),  # its driver starts
        ("Running", "preparing", True),
        ("Queued", "prepared", False),
        ("Running", "prepared", False),
        ("Running", "training", False),
        ("Succeeded", "done", False),
        ("Pending", None, False),
    ],
)
def test_a_stage_that_prepares_needs_no_workers(state: str, activity: str | None, needs_none: bool) -> None:
    entry = {"state": state, "submissionId": "x-sft-a1"}
    if activity is not None:
        entry |= {"progress": {"activity": activity}}  # type: ignore[dict-item]
    stages = {"pretrain": {"state": "Skipped"}, "sft": entry}
    assert preparing(pipeline("x", status={"stages": stages})) == ("x-sft-a1" if needs_none else None)


@pytest.mark.parametrize(
    ("fields", "holds"),
    [
        ({"stages": {"sft": "Running"}, "condition": ("Progressing", "Running")}, True),
        ({"stages": {"sft": "Queued"}, "condition": ("Progressing", "ClusterNotReady")}, True),
        ({"stages": {"sft": "Pending"}, "condition": ("Progressing", "Retrying")}, True),
        # A retry that waits for its time keeps the cluster, unless the user wants it no more.
        ({"condition": ("Progressing", "Retrying"), "suspend": True}, False),
        ({"condition": ("Progressing", "WaitingForInput")}, False),
        ({"condition": ("Progressing", "Queued")}, False),
        ({"condition": ("Failed", "Retrying")}, False),
        ({"condition": ("Suspended", "Suspended"), "stages": {"sft": "Suspended"}}, False),
        ({"condition": ("Failed", "Diverged"), "stages": {"sft": "Running"}}, True),
        ({}, False),
    ],
)
def test_holding_the_cluster(fields: dict[str, Any], holds: bool) -> None:
    assert holds_cluster(pipeline("p", **fields)) is holds


@pytest.mark.parametrize(
    ("fields", "ours"),
    [
        ({}, True),
        ({"release": "mine"}, True),
        ({"release": "other"}, False),
        ({"release": "uninstalled"}, True),
        ({"managedBy": "other"}, False),
        ({"managedBy": "other", "release": "mine"}, False),
        ({"managedBy": "mine", "release": "other"}, True),
        ({"managedBy": ""}, True),
    ],
)
def test_whose_pipeline_it_is(fields: dict[str, Any], ours: bool) -> None:
    assert is_ours(pipeline("p", **fields), "mine", {"other"}) is ours


def job(identity: str, state: JobState = JobState.RUNNING, **metadata: str) -> JobDescription:
    told = {"namespace": "ns", "release": "zj", "specHash": "x"} | metadata
    return JobDescription(submission_id=identity, state=state, metadata=told)


def test_jobs_of_pipelines_that_are_gone() -> None:
    there = [pipeline("a", uid="11111111-1"), pipeline("a-b", uid="22222222-2")]
    jobs = [
        job("a-11111111-sft-a1"),
        job("a-b-22222222-rm-a3", JobState.PENDING),
        job("a-99999999-sft-a1"),  # of an object of the same name, deleted
        job("gone-33333333-ppo-a2", JobState.PENDING),
        job("ended-33333333-ppo-a2", JobState.SUCCEEDED),
        job("shared-33333333-ppo-a2", release="other"),
        JobDescription(submission_id="by-hand", state=JobState.RUNNING),
    ]
    assert [each.submission_id for each in orphans(jobs, there, "zj")] == [
        "a-99999999-sft-a1",
        "gone-33333333-ppo-a2",
    ]


def verifying(state: JobState = JobState.PENDING, **metadata: str) -> JobDescription:
    told = {"namespace": "ns", "verifies": "zj", "cpus": "1", "gpus": "0"} | metadata
    return JobDescription(submission_id="verify-1", state=state, metadata=told)


def test_what_helm_test_asks_for() -> None:
    asked = verification([job("a-1-sft-a1"), verifying()], "zj")
    assert asked == Demand("verify-1", 1, Resources(cpus=1, gpus=0))
    asked = verification([verifying(JobState.RUNNING, gpus="1")], "zj")
    assert asked is not None
    assert asked.resources.gpus == 1
    # It is no forgotten job, and another release's is not ours to make room for.
    assert orphans([verifying()], [], "zj") == []
    others = [verifying(verifies="other"), verifying(JobState.SUCCEEDED)]
    assert verification([job("a-1-sft-a1"), *others], "zj") is None


def test_a_settled_pipeline_is_left_alone_until_its_spec_changes() -> None:
    done = pipeline("p", condition=("Complete", "Complete"), status={"observedGeneration": 1})
    assert done.is_settled
    assert not pipeline("p", condition=("Complete", "Complete"), status={"observedGeneration": 0}).is_settled
    assert not pipeline(
        "p", condition=("Failed", "X"), status={"observedGeneration": 1}, stages={"sft": "Running"}
    ).is_settled
    assert not pipeline("p", condition=("Progressing", "Queued"), status={"observedGeneration": 1}).is_settled
    assert not pipeline("p").is_settled


def test_the_finalizer_follows_the_policy() -> None:
    held = {"finalizers": [FINALIZER, "foregroundDeletion"]}
    deleting = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    assert lacks_finalizer(pipeline("p", deletionPolicy="Delete"))
    assert lacks_finalizer(pipeline("p", deletionPolicy="Retain", metadata=held))
    assert not lacks_finalizer(pipeline("p", deletionPolicy="Delete", metadata=held))
    assert not lacks_finalizer(pipeline("p"))
    # What is being deleted can take no new finalizer.
    assert not lacks_finalizer(pipeline("p", deletionPolicy="Delete", metadata=deleting))


def test_time_to_live_is_for_complete_pipelines() -> None:
    status = {"observedGeneration": 1, "completionTime": stamp(1000.0)}
    complete: dict[str, Any] = {"condition": ("Complete", "Complete"), "status": status}
    complete["ttlSecondsAfterFinished"] = 60
    assert not is_expired(pipeline("p", **complete), 1059.0)
    assert is_expired(pipeline("p", **complete), 1060.0)
    assert not is_expired(pipeline("p", **(complete | {"condition": ("Failed", "X")})), 9999.0)
    assert not is_expired(pipeline("p", **(complete | {"ttlSecondsAfterFinished": None})), 9999.0)
    changed = {"observedGeneration": 0, "completionTime": stamp(1000.0)}
    assert not is_expired(pipeline("p", **(complete | {"status": changed})), 9999.0)


def concluded(type_: ConditionType, reason: str, **stages: StageStatus) -> PipelineStatus:
    status = PipelineStatus(uid="1", stages={Stage(name): each for name, each in stages.items()})
    return apply(status, [Conclude(type_, reason, "message", "do this")], 0.0)


def told(before: PipelineStatus, after: PipelineStatus) -> list[tuple[str, str]]:
    return [(note.type, note.reason) for note in transitions(before, after)]


def test_events_tell_of_changes_and_of_nothing_else() -> None:
    fresh = PipelineStatus(uid="1")
    first = StageStatus(state=StageState.QUEUED, attempt=1)
    queued = concluded(ConditionType.PROGRESSING, "Running", sft=first)
    runs = first.model_copy(update={"state": StageState.RUNNING})
    running = concluded(ConditionType.PROGRESSING, "Running", sft=runs)
    again = runs.model_copy(update={"attempt": 2})
    done = runs.model_copy(update={"state": StageState.SUCCEEDED})
    assert told(fresh, queued) == [("Normal", "StageSubmitted")]
    assert told(queued, running) == [("Normal", "StageRunning")]
    assert told(running, running) == []
    retrying = concluded(ConditionType.PROGRESSING, "Retrying", sft=StageStatus(attempt=1))
    assert told(running, retrying) == [("Warning", "Retrying")]
    assert told(retrying, concluded(ConditionType.PROGRESSING, "Running", sft=again)) == [
        ("Normal", "StageSubmitted"),
        ("Normal", "StageRunning"),
    ]
    complete = concluded(ConditionType.COMPLETE, "Complete", sft=done)
    assert told(running, complete) == [("Normal", "StageSucceeded"), ("Normal", "Complete")]
    unready = concluded(ConditionType.PROGRESSING, "ClusterNotReady", sft=first)
    assert told(queued, unready) == [("Warning", "ClusterNotReady")]
    starting = concluded(ConditionType.PROGRESSING, "ClusterStarting", sft=first)
    assert told(queued, starting) == [("Normal", "ClusterStarting")], "a normal start is no warning"
    assert told(starting, unready) == [("Warning", "ClusterNotReady")]
    failed = concluded(ConditionType.FAILED, "Diverged")
    assert told(fresh, failed) == [("Warning", "Diverged")]
    assert "do this" in transitions(fresh, failed)[0].text
