"""The backend does not answer: the condition says why, and suspend, edits and deletion work all the same."""

from __future__ import annotations

import pytest

from tests.unit.pipeline.bench import World
from tests.unit.pipeline.test_workers import Slow, slow
from zhongjing.codes.pods import NO_FITTING_NODE
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.config.commands import Commands
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.state import CLUSTER_NOT_READY, ConditionType, PipelineStatus, StageState

WHY = "the Ray head is not ready; pod/zj-ray-head-0: no node of the cluster can ever hold it"


def refused(where: str) -> None:
    """A head that is not there: what a submission lacks is said, all else is refused connections."""
    if where == "before submit":
        raise BackendUnavailableError(WHY, code=NO_FITTING_NODE, remedy="label a node")
    raise BackendUnavailableError("Ray does not answer: [Errno 111]", code=RAY_UNREACHABLE)


def away(ticks: int = 0) -> World[Slow]:
    """A pipeline that ran for so long before the head went."""
    bench = slow()
    bench.cluster.lacking, bench.cluster.steps = None, 20
    if ticks:
        bench.away(ticks)
    bench.cluster.fault = refused
    bench.away(5)
    return bench


def test_ray_s_head_is_down_and_the_condition_goes_on_saying_why() -> None:
    bench = away()
    condition, stage = bench.condition(), bench.stage()
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, CLUSTER_NOT_READY)
    assert (condition.message, condition.remedy) == (WHY, "label a node")
    assert (stage.state, stage.attempt, stage.message) == (StageState.QUEUED, 1, WHY)
    status = bench.memory.objects[bench.reconciler.layout.status]
    bench.away(10)
    assert bench.memory.objects[bench.reconciler.layout.status] == status, "what is known is written once"
    bench.cluster.fault = lambda where: None
    bench.away(40)
    assert (bench.condition().type, bench.stage().attempt) == (ConditionType.COMPLETE, 1)


def test_a_remedy_that_names_a_command_is_not_written_again_in_every_pass() -> None:
    """The command gets the place's options wherever the remedy comes from."""

    def full(where: str) -> None:
        raise BackendUnavailableError(WHY, code=NO_FITTING_NODE, remedy="see `kubectl get nodes`")

    bench = slow()
    bench.reconciler.policy = Policy(commands=Commands("-n train", name="zhongjing"))
    bench.cluster.fault = full
    bench.away(5)
    assert bench.condition().remedy == "see `kubectl -n train get nodes`"
    written: list[str] = []
    write = bench.reconciler.records.write_status

    def counted(status: PipelineStatus, version: str | None) -> str:
        written.append(str(status.condition()))
        return write(status, version)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.reconciler.records, "write_status", counted)
        bench.away(10)
    assert not written


def test_what_waits_for_a_head_does_not_hang() -> None:
    bench = away()
    bench.settings = {"progressDeadlineSeconds": 60}
    bench.want(2)
    bench.away(100)
    bench.cluster.fault = lambda where: None
    bench.away(40)
    assert (bench.condition().type, bench.stage().attempt) == (ConditionType.COMPLETE, 1)


@pytest.mark.parametrize("ticks", [0, 3, 9], ids=["never-submitted", "preparing", "training"])
def test_ray_s_head_is_down_and_a_pipeline_can_be_suspended_and_goes_on(ticks: int) -> None:
    bench = away(ticks)
    bench.want(2, suspend=True)
    bench.cluster.jobs.clear()  # it went with its head
    bench.away(35)
    assert bench.stage().state is StageState.SUSPENDED
    assert bench.condition().type is ConditionType.SUSPENDED
    bench.want(3)
    bench.away(20)
    assert bench.condition().reason == CLUSTER_NOT_READY
    bench.cluster.fault = lambda where: None
    bench.away(40)
    assert bench.condition().type is ConditionType.COMPLETE


def test_a_job_that_lives_where_it_cannot_be_seen_stops_with_a_checkpoint() -> None:
    bench = away(9)
    assert [job.job.submission_id for job in bench.cluster.running()] == ["demo-0123abcd-sft-a1"]
    bench.want(2, suspend=True)
    bench.away(2)
    assert not bench.cluster.running(), "the stop object reaches it"
    bench.away(6)
    assert bench.stage().state is StageState.SUSPENDED
    assert "stopped with a checkpoint" in bench.stage().message


def test_nothing_starts_beside_a_job_that_may_live_unseen() -> None:
    bench = away(9)
    bench.cluster.deaf = bench.cluster.stuck = True
    bench.want(2, suspend=True)
    bench.away(40)
    assert bench.stage().state is StageState.SUSPENDED
    bench.want(3)
    bench.cluster.fault = lambda where: refused(where) if where == "before describe" else None
    bench.away(10)
    assert bench.cluster.starts == [(Stage.SFT, bench.stage().key, 1)]
    assert (bench.condition().reason, bench.condition().message) == (
        CLUSTER_NOT_READY,
        "Ray does not answer: [Errno 111]",
    )
    # Seen again, it is ended first.
    bench.cluster.deaf = bench.cluster.stuck = False
    bench.cluster.fault = lambda where: None
    bench.away(40)
    assert bench.condition().type is ConditionType.COMPLETE
    assert [start[2] for start in bench.cluster.starts] == [1, 2]


def test_ray_s_head_is_down_and_an_edit_of_a_queued_stage_counts() -> None:
    bench = away()
    before = bench.stage()
    bench.settings = {"learningRate": 3e-5}
    bench.want(2)
    bench.away(25)
    edited = bench.stage()
    assert (edited.state, edited.message) == (StageState.QUEUED, WHY)
    assert edited.key != before.key
    bench.cluster.fault = lambda where: None
    bench.away(30)
    assert bench.condition().type is ConditionType.COMPLETE
    assert [start[1] for start in bench.cluster.starts] == [edited.key]


def test_a_finished_stage_succeeds_though_the_backend_is_away() -> None:
    bench = slow()
    bench.cluster.lacking = None
    for _ in range(40):
        if not bench.cluster.running() and bench.cluster.starts:
            bench.cluster.fault = refused
        bench.away(1)
    assert bench.condition().type is ConditionType.COMPLETE


def test_a_backend_that_is_away_is_asked_once_a_pass() -> None:
    bench = away()
    asked: list[str] = []

    def fault(where: str) -> None:
        asked.append(where)
        refused(where)

    bench.cluster.fault = fault
    bench.away(1)
    assert asked == ["before describe", "before submit"]
