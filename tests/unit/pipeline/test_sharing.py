"""Several pipelines on one cluster, limits of a whole pipeline, and a cluster that is not ready."""

from __future__ import annotations

import pytest

from tests.unit.pipeline.bench import World, new_world
from tests.unit.pipeline.support import LAYOUT, Cluster, MemoryStore
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError, ConflictError
from zhongjing.pipeline.backend import JobRequest
from zhongjing.pipeline.state import CLUSTER_NOT_READY, QUEUED, ConditionType, StageState

OTHER = "waits for other, which runs rm"


def test_a_lost_write_does_nothing_outside() -> None:
    bench = new_world()

    def beaten(where: str) -> None:
        if where == f"before put {LAYOUT.status}":
            bench.memory.objects[LAYOUT.status] = b"of another"

    bench.memory.fault = beaten
    with pytest.raises(ConflictError):
        bench.once()
    assert not bench.cluster.jobs


def test_a_queued_pipeline_says_what_it_waits_for() -> None:
    bench = new_world()
    entry = bench.run(1, OTHER).stage(Stage.SFT)
    assert not bench.cluster.jobs
    assert (entry.state, entry.reason) == (StageState.PENDING, QUEUED)
    condition = bench.condition()
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, QUEUED)
    assert condition.message == OTHER
    written = bench.memory.objects[LAYOUT.status]
    bench.run(1, OTHER)
    assert bench.memory.objects[LAYOUT.status] == written, "waiting writes nothing"
    assert bench.run(20).holds(ConditionType.COMPLETE)


def test_a_running_stage_is_not_stopped_by_the_queue() -> None:
    bench = new_world()
    bench.run(5)
    assert bench.run(20, OTHER).holds(ConditionType.COMPLETE)
    assert len(bench.cluster.starts) == 1


def test_failed_attempts_of_all_stages_count_against_the_backoff_limit() -> None:
    bench = new_world(spec={"backoffLimit": 1})
    for _ in range(40):
        bench.once()
        for job in bench.cluster.running():
            bench.cluster.crash(job)
    assert bench.run(1).holds(ConditionType.FAILED)
    assert "backoffLimit of 1" in bench.condition().message
    assert len(bench.cluster.starts) == 2, "one retry, although the stage would have had two"


def test_an_overdue_pipeline_is_stopped_with_a_checkpoint_and_failed() -> None:
    bench = new_world(spec={"activeDeadlineSeconds": 5})
    bench.cluster.steps = 1000
    bench.run(20)
    condition = bench.condition()
    assert (condition.type, condition.reason) == (ConditionType.FAILED, "DeadlineExceeded")
    assert "activeDeadlineSeconds (5 s)" in condition.message
    assert "spec.activeDeadlineSeconds" in (condition.remedy or "")
    assert not bench.cluster.running()


def test_time_in_the_queue_does_not_count_against_the_deadline() -> None:
    bench = new_world(spec={"activeDeadlineSeconds": 30})
    bench.run(60, OTHER)
    assert bench.condition().reason == QUEUED
    assert bench.run(20).holds(ConditionType.COMPLETE)


def test_an_overdue_pipeline_starts_no_further_attempt() -> None:
    bench = new_world(spec={"activeDeadlineSeconds": 5})
    bench.cluster.steps = 1000
    bench.run(3)
    bench.cluster.now += 10
    bench.cluster.crash(bench.cluster.running()[0])
    bench.run(10)
    assert bench.condition().reason == "DeadlineExceeded"
    assert len(bench.cluster.starts) == 1


def test_the_pipelines_progress_deadline_counts_for_every_stage() -> None:
    bench = new_world(spec={"progressDeadlineSeconds": 30})
    bench.cluster.steps = 1000
    bench.run(5)
    bench.cluster.stuck = bench.cluster.deaf = True
    bench.run(34)
    assert bench.stage().stop_reason == "Hung"


class Unready(Cluster):
    """A cluster whose workers are still starting."""

    missing = "1 of 2 workers is there: pod w-1 is Pending"

    def submit(self, job: JobRequest) -> None:
        if self.missing:
            raise BackendUnavailableError(self.missing, code=RAY_UNREACHABLE, where="ray", remedy="wait")
        super().submit(job)


def test_a_submission_that_cannot_be_made_yet_is_repeated_and_says_why() -> None:
    bench = World(Unready(MemoryStore()))
    with pytest.raises(BackendUnavailableError):
        bench.once()
    entry, condition = bench.stage(), bench.condition()
    assert (entry.state, entry.attempt, entry.reason) == (StageState.QUEUED, 1, CLUSTER_NOT_READY)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, CLUSTER_NOT_READY)
    assert "pod w-1 is Pending" in condition.message
    written = bench.memory.objects[LAYOUT.status]
    for _ in range(30):
        with pytest.raises(BackendUnavailableError):
            bench.once()
    assert bench.memory.objects[LAYOUT.status] == written, "what is known is not written again"
    bench.cluster.missing = ""
    bench.once()
    assert (bench.stage().state, bench.stage().attempt) == (StageState.QUEUED, 1)
    bench.run(3)
    assert (bench.stage().state, bench.stage().message) == (StageState.RUNNING, "")
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert [start[2] for start in bench.cluster.starts] == [1]


def test_an_unready_cluster_does_not_hold_a_suspension() -> None:
    bench = World(Unready(MemoryStore()))
    with pytest.raises(BackendUnavailableError):
        bench.once()
    bench.want(2, suspend=True)
    assert bench.run(30).holds(ConditionType.SUSPENDED)
    assert not bench.cluster.jobs
