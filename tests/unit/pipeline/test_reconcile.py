"""One pass at a time: what is read, in which order it is acted, what a failure leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.unit.pipeline.bench import POLICY, condition_of, new_world
from tests.unit.pipeline.support import (
    LAYOUT,
    Cluster,
    MemoryStore,
    backend_down,
    desired_state,
    store_down,
    user_document,
)
from zhongjing.codes.ray import RAY_FAILED
from zhongjing.config.stages import Stage
from zhongjing.errors import (
    BackendError,
    BackendUnavailableError,
    ConflictError,
    StorageError,
    StorageUnavailableError,
)
from zhongjing.pipeline.attempt_logs import LOG_SECONDS
from zhongjing.pipeline.backend import JobRequest
from zhongjing.pipeline.reconcile import Cadence, Reconciler
from zhongjing.pipeline.records import write
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState
from zhongjing.storage.manifest import StageRequest


def test_nothing_is_wanted() -> None:
    store = MemoryStore()
    assert Reconciler(cast(Any, store), LAYOUT, Cluster(store)).once(0.0) is None
    assert store.objects == {}


def test_the_request_is_there_before_the_job() -> None:
    bench = new_world()
    order: list[str] = []
    bench.memory.fault = lambda where: order.append(where) if "put" in where else None
    bench.cluster.fault = order.append
    bench.reconciler.once(bench.cluster.now)
    key = bench.status().stage(Stage.SFT).key
    assert key is not None
    request = LAYOUT.stage(Stage.SFT, key).request(1)
    sequence = [where for where in order if where.startswith(("after put", "before submit"))]
    assert sequence == [f"after put {LAYOUT.status}", f"after put {request}", "before submit"]
    stored = bench.store.get_record(request, StageRequest)
    assert (stored.attempt, stored.submission_id) == (1, "demo-0123abcd-sft-a1")


def test_a_late_ex_leader_overwrites_no_request() -> None:
    """It was held up between the status and the request, and its successor submitted meanwhile."""
    bench = new_world()
    successor = Reconciler(bench.store, LAYOUT, bench.cluster, policy=POLICY)

    def held_up(where: str) -> None:
        if where.startswith("before put") and "/requests/" in where:
            bench.memory.fault = lambda where: None
            bench.want(2, retries=7)  # an edit that changes no result
            successor.once(bench.cluster.now)

    bench.memory.fault = held_up
    with pytest.raises(ConflictError):
        bench.reconciler.once(bench.cluster.now)
    [job] = bench.cluster.jobs.values()
    stored = bench.store.get_record(job.job.request_uri, StageRequest)
    assert stored.document.spec.stages.sft.retries == 7
    assert stored == job.request
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert len(bench.cluster.starts) == 1


def test_the_request_of_an_attempt_that_no_backend_knows_follows_the_document() -> None:
    bench = new_world()
    bench.cluster.fault = backend_down
    with pytest.raises(BackendUnavailableError):
        bench.reconciler.once(bench.cluster.now)
    bench.want(2, retries=7)
    bench.cluster.fault = lambda where: None
    bench.reconciler.once(bench.cluster.now)
    [job] = bench.cluster.jobs.values()
    settings = job.request.document.spec.stages.sft
    assert settings is not None
    assert (job.request.attempt, settings.retries) == (1, 7)


def test_when_the_next_pass_is_due() -> None:
    bench = new_world()
    bench.reconciler.cadence = Cadence(active=5, waiting=20)
    assert bench.reconciler.once(bench.cluster.now) == 5
    bench.run(3)
    bench.cluster.crash(bench.cluster.running()[0])
    assert bench.reconciler.once(bench.cluster.now) == pytest.approx(2, abs=0.01), (
        "the pause before the retry"
    )
    bench.run(40)
    assert bench.reconciler.once(bench.cluster.now) is None


def test_a_finished_stage_is_in_use_before_the_status_says_so() -> None:
    bench = new_world()

    def look(where: str) -> None:
        if where == f"after put {LAYOUT.status}" and bench.status().stage(Stage.SFT).state.is_done:
            assert LAYOUT.current(Stage.SFT) in bench.memory.objects

    for _ in range(20):
        bench.memory.fault = lambda where: None
        bench.cluster.tick()
        bench.memory.fault = look
        bench.reconciler.once(bench.cluster.now)
    assert bench.status().holds(ConditionType.COMPLETE)


def test_the_log_of_an_attempt_is_kept() -> None:
    bench = new_world()
    bench.run(3)
    bench.cluster.crash(bench.cluster.running()[0])
    bench.run(1)
    key = bench.status().stage(Stage.SFT).key
    assert key is not None
    kept = bench.memory.objects[f"{LAYOUT.stage(Stage.SFT, key).logs}/driver-a1.log"]
    assert kept == b"log of demo-0123abcd-sft-a1\n"


def test_a_log_that_takes_too_long_to_read_is_kept_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = new_world()
    clock = [0.0]

    def endless(submission_id: str) -> Iterator[str]:
        while True:
            clock[0] += LOG_SECONDS / 2
            yield "line"

    monkeypatch.setattr("zhongjing.pipeline.attempt_logs.time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(bench.cluster, "tail_logs", endless)
    bench.run(3)
    bench.cluster.crash(bench.cluster.running()[0])
    bench.run(1)
    key = bench.status().stage(Stage.SFT).key
    kept = bench.memory.objects[f"{LAYOUT.stage(Stage.SFT, str(key)).logs}/driver-a1.log"]
    assert kept.startswith(b"line\nline\n")
    assert b"cut here" in kept.splitlines()[-1]


def test_an_outage_is_told_and_passes() -> None:
    bench = new_world()
    bench.run(3)
    before = dict(bench.memory.objects)
    bench.memory.fault = store_down
    with pytest.raises(StorageUnavailableError):
        bench.reconciler.once(bench.cluster.now)
    bench.memory.fault = lambda where: None
    bench.cluster.fault = backend_down
    with pytest.raises(BackendUnavailableError):
        bench.reconciler.once(bench.cluster.now)
    told = {uri for uri, data in bench.memory.objects.items() if before.get(uri) != data}
    assert told == {LAYOUT.status}, "only the condition says that the backend is away"
    condition = bench.condition()
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "ClusterNotReady")
    bench.cluster.fault = lambda where: None
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert len(bench.cluster.starts) == 1


def test_a_refused_submission_fails_the_stage_and_says_why() -> None:
    class Refusing(Cluster):
        def submit(self, job: JobRequest) -> None:
            raise BackendError("Ray does not start", code=RAY_FAILED, where="ray.log", remedy="see the log")

    bench = new_world()
    bench.reconciler.backend = Refusing(bench.memory)
    bench.reconciler.once(bench.cluster.now)
    condition = bench.condition()
    assert (condition.type, condition.reason) == (ConditionType.FAILED, "SubmissionRefused")
    assert condition.message == "sft: ray.log: Ray does not start"
    assert bench.reconciler.once(bench.cluster.now) is None, "it is not tried for ever"
    # The same wish again tries again.
    bench.reconciler.backend = bench.cluster
    bench.want(2)
    assert bench.run(20).holds(ConditionType.COMPLETE)


def test_a_hung_job_is_ended_and_goes_on() -> None:
    bench = new_world(progressDeadlineSeconds=30)
    bench.run(4)
    bench.cluster.stuck = True
    status = bench.run(29)
    assert status.stage(Stage.SFT).stop_reason is None
    status = bench.run(2)
    assert status.stage(Stage.SFT).message == "did nothing within progressDeadlineSeconds (30 s)"
    status = bench.run(2)
    bench.cluster.stuck = False
    status = bench.run(40)
    assert status.holds(ConditionType.COMPLETE)
    assert [attempt for _, _, attempt in bench.cluster.starts] == [1, 2]


def test_long_work_within_a_step_is_no_hang_and_a_clock_that_runs_is_no_work() -> None:
    bench = new_world(progressDeadlineSeconds=30)
    bench.run(4)
    # A merge, an evaluation, a restore: no step for two minutes, but pieces of work.
    bench.cluster.stuck, bench.cluster.heartbeat = True, "works"
    assert bench.run(120).stage(Stage.SFT).stop_reason is None
    # A thread that writes the progress anew proves nothing.
    bench.cluster.heartbeat = "ticks"
    status = bench.run(32)
    assert status.stage(Stage.SFT).message == "did nothing within progressDeadlineSeconds (30 s)"


def test_where_an_attempt_hung_is_kept() -> None:
    bench = new_world(progressDeadlineSeconds=30)
    looked: list[str] = []

    def stacks(submission_id: str) -> str:
        looked.append(submission_id)
        return "main (work.py:62)\n"

    bench.cluster.stacks = stacks  # type: ignore[method-assign]
    bench.run(4)
    bench.cluster.stuck = True
    entry = bench.run(40).stage(Stage.SFT)
    assert entry.key is not None
    [job] = looked
    assert job.endswith("-sft-a1"), "once, before it was ended"
    uri = f"{LAYOUT.stage(Stage.SFT, entry.key).logs}/stacks-a1.txt"
    assert bench.memory.get(uri) == b"main (work.py:62)\n"


def test_a_job_that_does_not_obey_is_ended_within_bounds() -> None:
    bench = new_world()
    bench.run(3)
    bench.cluster.deaf = bench.cluster.stuck = True
    bench.want(2, suspend=True)
    assert bench.run(9).stage(Stage.SFT).state is StageState.RUNNING
    assert bench.run(4).holds(ConditionType.SUSPENDED)
    assert bench.cluster.running() == []


def test_a_status_of_an_earlier_pipeline_of_the_name_is_not_taken_over() -> None:
    bench = new_world()
    other = PipelineStatus(uid="ffffffff", observed_generation=9)
    write(bench.store, LAYOUT.status, other, None)
    status = bench.run(20)
    assert status.uid == "0123abcd"
    assert status.holds(ConditionType.COMPLETE)


def test_a_damaged_manifest_is_seen_in_the_status_and_passes_when_it_is_removed() -> None:
    bench = new_world()
    bench.run(20)
    key = bench.status().stage(Stage.SFT).key
    assert key is not None
    manifest = LAYOUT.stage(Stage.SFT, key).manifest
    bench.memory.objects[manifest] = b"{damaged"
    bench.want(2)
    bench.reconciler = Reconciler(bench.store, LAYOUT, bench.cluster, policy=POLICY)
    with pytest.raises(StorageError, match=r"manifest\.json"):
        bench.reconciler.once(bench.cluster.now)
    status = bench.status()
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "DamagedObject")
    assert "manifest.json" in condition.message
    assert "--rerun sft" in (condition.remedy or "")
    # A client need not wait for it, nor does the supervisor live for it.
    assert status.settled(desired_state(user_document(stages=("sft",)), generation=2))
    assert bench.reconciler.is_waiting
    del bench.memory.objects[manifest]
    bench.cluster.checkpoints.clear()
    assert bench.run(20).holds(ConditionType.COMPLETE)


def test_a_damaged_wish_is_an_error() -> None:
    bench = new_world()
    bench.memory.objects[LAYOUT.desired] = b"{damaged"
    with pytest.raises(StorageError, match=r"pipeline\.json"):
        bench.reconciler.once(bench.cluster.now)


def test_a_removed_result_is_made_again() -> None:
    bench = new_world()
    bench.run(20)
    key = bench.status().stage(Stage.SFT).key
    assert key is not None
    del bench.memory.objects[LAYOUT.stage(Stage.SFT, key).manifest]
    bench.cluster.checkpoints.clear()
    bench.want(2)
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert [attempt for _, _, attempt in bench.cluster.starts] == [1, 2]
