"""Several pipelines on one cluster, limits of a whole pipeline, and a cluster that is not ready."""

from __future__ import annotations

from typing import Any, cast

import pytest

from tests.unit.pipeline.support import LAYOUT, Cluster, MemoryStore, desired_state, user_document
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.codes.storage import CONFLICT
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError, ConflictError
from zhongjing.pipeline.backend import JobRequest
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Reconciler
from zhongjing.pipeline.records import Versioned
from zhongjing.pipeline.state import (
    CLUSTER_NOT_READY,
    QUEUED,
    Condition,
    ConditionType,
    DesiredState,
    PipelineStatus,
    StageState,
)
from zhongjing.storage.progress import Progress

POLICY = Policy(quiet_seconds=3, backoff_seconds=2, hung_stop_seconds=4, stop_seconds=10)


class MemoryRecords:
    """Both documents in memory, as a Kubernetes object keeps them: a number is the version."""

    def __init__(self, desired: DesiredState) -> None:
        self.wanted: DesiredState | None = desired
        self.current: PipelineStatus | None = None
        self.version = 0
        self.writes = 0

    def desired(self) -> DesiredState | None:
        return self.wanted

    def status(self) -> Versioned[PipelineStatus] | None:
        return None if self.current is None else Versioned(self.current, str(self.version))

    def see(self, stage: Stage, progress: Progress) -> None:
        """A store has it."""

    def write_status(self, status: PipelineStatus, version: str | None) -> str:
        there = None if self.current is None else str(self.version)
        if version != there:
            raise ConflictError("another writer was first", code=CONFLICT)
        self.current, self.version, self.writes = status, self.version + 1, self.writes + 1
        return str(self.version)


class Bench:
    """A pipeline whose documents are not in the store, as on Kubernetes."""

    def __init__(self, cluster: Cluster | None = None, **spec: Any) -> None:
        user = user_document(stages=("sft",))
        user["spec"].update(spec)
        self.memory = MemoryStore()
        self.cluster = cluster or Cluster(self.memory)
        self.cluster.store = self.memory
        self.records = MemoryRecords(desired_state(user))
        self.reconciler = Reconciler(
            cast(Any, self.memory), LAYOUT, self.cluster, records=self.records, policy=POLICY
        )

    def once(self, blocked_by: str | None = None) -> PipelineStatus:
        self.cluster.tick()
        self.reconciler.once(self.cluster.now, blocked_by)
        assert self.records.current is not None
        return self.records.current

    def run(self, seconds: int) -> PipelineStatus:
        for _ in range(seconds):
            self.once()
        return self.once()


def condition_of(status: PipelineStatus) -> Condition:
    found = status.condition()
    assert found is not None
    return found


def test_the_documents_may_be_elsewhere_than_in_the_store() -> None:
    bench = Bench()
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert LAYOUT.desired not in bench.memory.objects
    assert LAYOUT.status not in bench.memory.objects


def test_a_lost_write_does_nothing_outside() -> None:
    bench = Bench()
    write = bench.records.write_status

    def beaten(status: PipelineStatus, version: str | None) -> str:
        bench.records.version += 1
        bench.records.current = bench.records.current or PipelineStatus(uid=status.uid)
        return write(status, version)

    bench.records.write_status = beaten  # type: ignore[method-assign]
    with pytest.raises(ConflictError):
        bench.once()
    assert not bench.cluster.jobs


def test_a_queued_pipeline_says_what_it_waits_for() -> None:
    bench = Bench()
    status = bench.once("waits for other, which runs rm")
    assert not bench.cluster.jobs
    entry = status.stage(Stage.SFT)
    assert (entry.state, entry.reason) == (StageState.PENDING, QUEUED)
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, QUEUED)
    assert condition.message == "waits for other, which runs rm"
    writes = bench.records.writes
    bench.once("waits for other, which runs rm")
    assert bench.records.writes == writes, "waiting writes nothing"
    assert bench.run(20).holds(ConditionType.COMPLETE)


def test_a_running_stage_is_not_stopped_by_the_queue() -> None:
    bench = Bench()
    bench.run(4)
    for _ in range(20):
        status = bench.once("waits for other")
    assert status.holds(ConditionType.COMPLETE)
    assert len(bench.cluster.starts) == 1


def test_failed_attempts_of_all_stages_count_against_the_backoff_limit() -> None:
    bench = Bench(backoffLimit=1)
    for _ in range(40):
        bench.once()
        for job in bench.cluster.running():
            bench.cluster.crash(job)
    status = bench.once()
    assert condition_of(status).type is ConditionType.FAILED
    assert "backoffLimit of 1" in condition_of(status).message
    assert len(bench.cluster.starts) == 2, "one retry, although the stage would have had two"


def test_an_overdue_pipeline_is_stopped_with_a_checkpoint_and_failed() -> None:
    bench = Bench(activeDeadlineSeconds=5)
    bench.cluster.steps = 1000
    for _ in range(20):
        status = bench.once()
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.FAILED, "DeadlineExceeded")
    assert "activeDeadlineSeconds (5 s)" in condition.message
    assert condition.remedy is not None
    assert "spec.activeDeadlineSeconds" in condition.remedy
    assert not bench.cluster.running()


def test_time_in_the_queue_does_not_count_against_the_deadline() -> None:
    bench = Bench(activeDeadlineSeconds=30)
    for _ in range(60):
        status = bench.once("waits for other")
    assert condition_of(status).reason == QUEUED
    assert bench.run(20).holds(ConditionType.COMPLETE)


def test_an_overdue_pipeline_starts_no_further_attempt() -> None:
    bench = Bench(activeDeadlineSeconds=5)
    bench.cluster.steps = 1000
    bench.run(2)
    bench.cluster.now += 10
    bench.cluster.crash(bench.cluster.running()[0])
    for _ in range(10):
        status = bench.once()
    assert condition_of(status).reason == "DeadlineExceeded"
    assert len(bench.cluster.starts) == 1


def test_the_pipelines_progress_deadline_counts_for_every_stage() -> None:
    bench = Bench(progressDeadlineSeconds=30)
    bench.cluster.steps = 1000
    bench.run(4)
    bench.cluster.stuck = True
    bench.cluster.deaf = True
    for _ in range(34):
        status = bench.once()
    assert status.stage(Stage.SFT).stop_reason == "Hung"


class Unready(Cluster):
    """A cluster whose workers are still starting."""

    missing = "1 of 2 workers is there: pod w-1 is Pending"

    def submit(self, job: JobRequest) -> None:
        if self.missing:
            raise BackendUnavailableError(self.missing, code=RAY_UNREACHABLE, where="ray", remedy="wait")
        super().submit(job)


def test_a_submission_that_cannot_be_made_yet_is_repeated_and_says_why() -> None:
    bench = Bench(Unready(MemoryStore()))
    with pytest.raises(BackendUnavailableError):
        bench.once()
    status = bench.records.current
    assert status is not None
    entry = status.stage(Stage.SFT)
    assert (entry.state, entry.attempt, entry.reason) == (StageState.QUEUED, 1, CLUSTER_NOT_READY)
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, CLUSTER_NOT_READY)
    assert "pod w-1 is Pending" in condition.message
    writes = bench.records.writes
    for _ in range(30):
        with pytest.raises(BackendUnavailableError):
            bench.once()
    assert bench.records.writes == writes, "what is known is not written again"
    cast(Unready, bench.cluster).missing = ""
    status = bench.once()
    assert (status.stage(Stage.SFT).state, status.stage(Stage.SFT).attempt) == (StageState.QUEUED, 1)
    status = bench.run(2)
    assert (status.stage(Stage.SFT).state, status.stage(Stage.SFT).message) == (StageState.RUNNING, "")
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert [start[2] for start in bench.cluster.starts] == [1]


def test_an_unready_cluster_does_not_hold_a_suspension() -> None:
    bench = Bench(Unready(MemoryStore()))
    with pytest.raises(BackendUnavailableError):
        bench.once()
    assert bench.records.wanted is not None
    bench.records.wanted = bench.records.wanted.model_copy(update={"suspend": True, "generation": 2})
    for _ in range(30):
        status = bench.once()
    assert status.holds(ConditionType.SUSPENDED)
    assert not bench.cluster.jobs
