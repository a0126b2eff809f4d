"""Workers are asked for when a stage is prepared, not before; to wait for them is no hang, and no run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.pipeline.bench import World
from tests.unit.pipeline.support import LAYOUT, Cluster, Job, MemoryStore
from zhongjing.codes.pods import QUOTA_EXCEEDED, WORKERS_STARTING
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.backend import ImpossibleJobError, JobRequest
from zhongjing.pipeline.state import CLUSTER_STARTING, ConditionType, StageState, seconds
from zhongjing.storage.progress import Activity


class Slow(Cluster):
    """Jobs prepare for some ticks; then they wait until the workers that were asked for are there."""

    def __init__(self, store: MemoryStore, prepares: int = 5) -> None:
        super().__init__(store)
        self.prepares = prepares
        self.asked: list[JobRequest] = []
        self.lacking: Exception | None = BackendUnavailableError("0 of 2 are ready", code=WORKERS_STARTING)
        self.begins = True

    def request_workers(self, job: JobRequest) -> None:
        self.asked.append(job)
        if self.lacking is not None:
            raise self.lacking

    def _step(self, job: Job) -> None:
        stopped = job.place.stop(job.request.attempt) in self.store.objects
        if stopped or (job.age > self.prepares and self.asked and self.lacking is None and self.begins):
            super()._step(job)
        else:
            self._tell(job, Activity.PREPARING if job.age <= self.prepares else Activity.PREPARED)


def slow(**settings: Any) -> World[Slow]:
    """A pipeline of one stage on such a cluster."""
    return World(Slow(MemoryStore()), **settings)


def test_workers_are_asked_for_when_the_stage_is_prepared() -> None:
    bench = slow(workers=2)
    assert bench.away(6).state is StageState.RUNNING
    assert bench.cluster.asked == []
    assert "preparing" in bench.condition().message
    assert "no workers are asked for yet" in bench.condition().message
    waiting = bench.away(3)
    assert (waiting.state, waiting.reason) == (StageState.QUEUED, CLUSTER_STARTING)
    assert "0 of 2 are ready" in waiting.message
    assert (bench.condition().type, bench.condition().reason) == (ConditionType.PROGRESSING, CLUSTER_STARTING)
    assert {(job.submission_id, job.workers) for job in bench.cluster.asked} == {("demo-0123abcd-sft-a1", 2)}
    bench.cluster.lacking = None
    running = bench.away(1)
    assert (running.state, running.message, running.waiting_since) == (StageState.RUNNING, "", None)
    bench.away(12)
    assert bench.condition().type is ConditionType.COMPLETE
    asked = len(bench.cluster.asked)
    bench.away(3)
    assert len(bench.cluster.asked) == asked
    assert bench.cluster.starts == [(Stage.SFT, bench.stage().key, 1)]


def test_what_is_not_new_is_not_written_while_workers_are_waited_for() -> None:
    bench = slow()
    bench.away(9)
    before = bench.memory.objects[LAYOUT.status]
    bench.away(5)
    assert bench.memory.objects[LAYOUT.status] == before
    bench.cluster.lacking = BackendUnavailableError("no", code=QUOTA_EXCEEDED, remedy="raise it")
    assert bench.away(1).remedy == "raise it"


def test_waiting_for_workers_is_no_hang_and_no_run() -> None:
    bench = slow(progressDeadlineSeconds=60, activeDeadlineSeconds=90)
    bench.away(8)
    waiting = bench.away(600)
    assert (waiting.state, waiting.attempt, waiting.stop_reason) == (StageState.QUEUED, 1, None)
    # Another controller finds everything in the status.
    bench.restart()
    assert bench.away(3).waiting_since == waiting.waiting_since
    bench.cluster.lacking = None
    running = bench.away(1)
    assert running.started_at is not None
    assert bench.cluster.now - seconds(running.started_at) < 20
    bench.away(12)
    assert (bench.condition().type, bench.stage().attempt) == (ConditionType.COMPLETE, 1)


def test_workers_that_are_there_and_do_not_begin_hang() -> None:
    bench = slow(progressDeadlineSeconds=60)
    bench.away(300)
    bench.cluster.lacking, bench.cluster.begins = None, False
    assert bench.away(50).attempt == 1
    hung = bench.away(20)
    assert hung.attempt == 2
    assert "did nothing within progressDeadlineSeconds (60 s)" in hung.message


@pytest.mark.parametrize("ticks", [4, 20], ids=["preparing", "waiting"])
def test_a_suspended_stage_asks_for_nothing_more(ticks: int) -> None:
    bench = slow()
    bench.away(ticks)
    bench.want(2, suspend=True)
    asked = len(bench.cluster.asked)
    suspended = bench.away(4)
    assert (suspended.state, suspended.waiting_since) == (StageState.SUSPENDED, None)
    assert len(bench.cluster.asked) == asked
    bench.want(3)
    bench.cluster.lacking = None
    bench.away(20)
    assert (bench.condition().type, bench.stage().attempt) == (ConditionType.COMPLETE, 2)


def test_a_job_that_is_lost_while_it_waits_is_tried_again() -> None:
    bench = slow()
    bench.away(20)
    bench.cluster.restart_head()
    assert bench.away(30).waiting_since is None or bench.stage().attempt == 2
    bench.cluster.lacking = None
    bench.away(30)
    assert (bench.condition().type, bench.stage().attempt) == (ConditionType.COMPLETE, 2)


def test_a_release_that_shrank_meanwhile_is_told_and_may_be_mended() -> None:
    bench = slow()
    bench.cluster.lacking = ImpossibleJobError("holds 1 at most", code=WORKERS_STARTING, remedy="raise it")
    waiting = bench.away(9)
    assert (waiting.state, waiting.message, waiting.remedy) == (
        StageState.QUEUED,
        "holds 1 at most",
        "raise it",
    )
    bench.cluster.lacking = None
    bench.away(15)
    assert bench.condition().type is ConditionType.COMPLETE
