"""Stages that by the plan cannot fit: nothing is started, the condition says why, and a change resumes it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from tests.unit.pipeline.bench import World, condition_of
from tests.unit.pipeline.decide_support import key_of, kinds, result, running
from tests.unit.pipeline.support import NOW, UID, Cluster, MemoryStore, desired_state, user_document
from zhongjing.codes.pods import NO_ROOM
from zhongjing.config.pipeline import TrainingPipeline
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import apply
from zhongjing.pipeline.backend import ImpossibleJobError
from zhongjing.pipeline.decide import decide
from zhongjing.pipeline.fit import Unfit, Verdict
from zhongjing.pipeline.observe import Observed
from zhongjing.pipeline.prepare import in_progress
from zhongjing.pipeline.reconcile import Cadence
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState

PPO = {Stage.PPO: Unfit(Stage.PPO, "ppo cannot fit: 90 of 78 GiB", "set spec.stages.ppo.microBatchSize=1")}


def test_nothing_starts_while_a_stage_cannot_fit() -> None:
    desired = desired_state()
    before = PipelineStatus(uid=UID)
    actions = decide(desired, before, Observed(NOW, unfit=PPO))
    assert kinds(actions) == ["Adopt"]
    status = apply(before, actions, NOW)
    entry = status.stage(Stage.PPO)
    assert (entry.state, entry.reason) == (StageState.BLOCKED, "DoesNotFit")
    assert status.stage(Stage.PRETRAIN).state is StageState.PENDING
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "DoesNotFit")
    assert (condition.message, condition.remedy) == (PPO[Stage.PPO].message, PPO[Stage.PPO].remedy)
    assert status.settled(desired), "who follows is told, and need not wait"
    assert not in_progress(desired, status), "the same command is no attachment"
    assert decide(desired, status, Observed(NOW + 5, unfit=PPO)) == [actions[-1]], "and it is said once"


def test_it_starts_as_soon_as_it_fits() -> None:
    desired = desired_state()
    before = PipelineStatus(uid=UID)
    blocked = apply(before, decide(desired, before, Observed(NOW, unfit=PPO)), NOW)
    actions = decide(desired, blocked, Observed(NOW + 5))
    assert kinds(actions) == ["Submit"]
    status = apply(blocked, actions, NOW + 5)
    assert status.stage(Stage.PPO).state is StageState.PENDING
    assert not status.settled(desired)


def test_what_runs_goes_on() -> None:
    desired = desired_state(user_document(stages=("sft", "rm", "ppo")))
    status = running(desired)
    assert status.stage(Stage.SFT).state is StageState.RUNNING
    done = result(desired, Stage.SFT)
    actions = decide(desired, status, Observed(NOW + 9, done, attempts(status), unfit=PPO))
    assert apply(status, actions, NOW + 9).stage(Stage.SFT).state.is_active


def attempts(status: PipelineStatus) -> Any:
    from zhongjing.pipeline.backend import JobDescription, JobState
    from zhongjing.pipeline.observe import AttemptView

    entry = status.stage(Stage.SFT)
    assert entry.submission_id is not None
    metadata = {"specHash": entry.spec_hash or ""}
    job = JobDescription(submission_id=entry.submission_id, state=JobState.RUNNING, metadata=metadata)
    return {Stage.SFT: AttemptView(job)}


class Place:
    """A place whose memory changes."""

    def __init__(self) -> None:
        self.unfit: tuple[Unfit, ...] = (Unfit(Stage.SFT, "sft cannot fit", "set it smaller"),)
        self.asked: list[list[Stage]] = []
        self.lacks: tuple[Unfit, ...] = ()

    def capacity(self, document: TrainingPipeline, stages: Iterable[Stage]) -> Sequence[Unfit]:
        return [each for each in self.lacks if each.stage in set(stages)]

    def memory(self, document: TrainingPipeline, stages: Iterable[Stage]) -> Verdict:
        self.asked.append(list(stages))
        return Verdict(tuple(each for each in self.unfit if each.stage in self.asked[-1]))


class Bench(World[Cluster]):
    """A pipeline of two stages at such a place."""

    def __init__(self) -> None:
        self.place = Place()
        cadence = Cadence(active=5, waiting=20)
        super().__init__(Cluster(MemoryStore()), stages=("sft", "rm"), gate=self.place, cadence=cadence)


def test_the_place_is_asked_again_until_it_fits() -> None:
    bench = Bench()
    assert bench.once() == 20
    assert bench.place.asked == [[Stage.SFT, Stage.RM]]
    assert bench.cluster.jobs == {}
    bench.place.unfit = ()
    assert bench.once() == 5
    asked = len(bench.place.asked)
    bench.once()
    assert len(bench.cluster.jobs) == 1
    assert len(bench.place.asked) == asked, "nothing is asked while a stage runs"


def test_what_is_forced_is_not_planned() -> None:
    bench = Bench()
    bench.once()
    bench.spec["force"] = True
    bench.want(2)
    bench.once()
    bench.once()
    assert len(bench.cluster.jobs) == 1
    assert len(bench.place.asked) == 1


@pytest.mark.parametrize("attempted", [False, True])
def test_what_has_run_is_no_longer_planned(attempted: bool) -> None:
    """A node that is lost in the middle of a run must not leave it blocked by arithmetic."""
    bench = Bench()
    if attempted:
        bench.place.unfit = ()
        bench.run(4)
        bench.cluster.crash(bench.cluster.running()[0])
        bench.place.unfit = (Unfit(Stage.SFT, "sft cannot fit", "set it smaller"),)
    bench.run(60)
    assert (len(bench.cluster.starts) > 1) is attempted


def test_the_key_of_a_stage_does_not_change_with_force() -> None:
    user = user_document()
    forced = {**user, "spec": {**user["spec"], "force": True}}
    assert key_of(desired_state(forced), Stage.SFT) == key_of(desired_state(user), Stage.SFT)


@pytest.mark.parametrize("attempted", [False, True])
def test_no_room_waits_and_is_looked_at_again(attempted: bool) -> None:
    """Whatever was tried before, and forced or not: no attempt finds workers that there cannot be."""
    bench = Bench()
    bench.place.unfit = ()
    bench.spec["force"] = True
    bench.want(2)
    if attempted:
        bench.run(4)
        bench.cluster.crash(bench.cluster.running()[0])
    bench.place.lacks = (Unfit(Stage.SFT, "holds 1 at most", "raise maxReplicas", NO_ROOM),)
    bench.run(30)
    assert len(bench.cluster.starts) == attempted
    status = bench.status()
    condition, entry = bench.condition(), bench.stage()
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "NoRoom")
    assert (condition.message, condition.remedy) == ("holds 1 at most", "raise maxReplicas")
    assert (entry.state, entry.reason, status.stands_still) == (StageState.BLOCKED, "NoRoom", True)
    bench.place.lacks = ()
    bench.run(40)
    assert bench.status().holds(ConditionType.COMPLETE)


def test_no_room_that_a_submission_finds_waits_too() -> None:
    """The release shrank between the look at it and the submission."""
    bench = Bench()
    bench.place.unfit = ()

    def fault(where: str) -> None:
        if where == "before submit":
            bench.place.lacks = (Unfit(Stage.SFT, "holds 1 at most", "raise maxReplicas", NO_ROOM),)
            raise ImpossibleJobError("holds 1 at most", code=NO_ROOM)

    bench.cluster.fault = fault
    for _ in range(3):
        bench.once()
        condition = bench.condition()
        assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, "NoRoom")
    assert bench.status().stage(Stage.SFT).attempt == 1
    bench.place.lacks, bench.cluster.fault = (), lambda where: None
    bench.run(40)
    assert bench.status().holds(ConditionType.COMPLETE)
