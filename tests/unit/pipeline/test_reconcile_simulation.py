"""The reconciler where everything breaks: it must still end, with every stage done once."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import LAYOUT, Cluster, MemoryStore, desired_state, user_document
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.codes.storage import STORAGE_UNREACHABLE
from zhongjing.config.stages import TRAINING, Stage
from zhongjing.errors import BackendUnavailableError, ConflictError, StorageUnavailableError, TransientError
from zhongjing.pipeline.observe import Policy
from zhongjing.pipeline.reconcile import Reconciler
from zhongjing.pipeline.records import read_desired, read_status, write
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState
from zhongjing.storage.progress import Failure

RETRIES: dict[str, Any] = {stage: {"retries": 100} for stage in ("pretrain", "sft", "rm", "ppo")}
POLICY = Policy(stop_seconds=20, unknown_seconds=5, quiet_seconds=4, backoff_seconds=2, max_backoff_seconds=8)


class KilledError(BaseException):
    """The reconciler's process is gone."""


class Simulation:
    """A pipeline, its store, its cluster, and the dice that break them."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.store = MemoryStore()
        self.cluster = Cluster(self.store)
        self.trouble = True
        self.seen: list[PipelineStatus] = []
        write(cast(Any, self.store), LAYOUT.desired, desired_state(user_document(**RETRIES)), None)
        self.reconciler = self.new_reconciler()

    def new_reconciler(self) -> Reconciler:
        return Reconciler(cast(Any, self.store), LAYOUT, self.cluster, policy=POLICY)

    def roll(self, probability: float) -> bool:
        return self.trouble and self.dice.random() < probability

    def fault(self, where: str) -> None:
        if self.roll(0.015):
            raise KilledError(where)
        if self.roll(0.015):
            backend = "submit" in where or "describe" in where or "stop" in where
            if backend:
                raise BackendUnavailableError("no answer", code=RAY_UNREACHABLE, where=where)
            raise StorageUnavailableError("no answer", code=STORAGE_UNREACHABLE, where=where)

    def second(self) -> None:
        self.store.fault = self.cluster.fault = lambda where: None
        self.cluster.tick()
        self.break_jobs()
        self.change_wishes()
        if self.dice.random() < 0.2:
            return  # the reconciler is late
        self.store.fault = self.cluster.fault = self.fault
        try:
            self.reconciler.once(self.cluster.now)
        except (TransientError, ConflictError):
            pass
        except KilledError:
            self.reconciler = self.new_reconciler()
        finally:
            self.store.fault = self.cluster.fault = lambda where: None
        if self.reconciler.status is not None:
            self.seen.append(self.reconciler.status)

    def break_jobs(self) -> None:
        for job in self.cluster.running():
            if self.roll(0.05):
                self.cluster.crash(job)
            elif self.roll(0.05):
                self.cluster.crash(job, Failure(error="StorageError", message="no answer", retriable=True))
            elif self.roll(0.05):
                self.cluster.mislabel(job)
        if self.roll(0.01):
            self.cluster.restart_head(zombies=self.dice.random() < 0.5)

    def change_wishes(self) -> None:
        found = read_desired(cast(Any, self.store), LAYOUT)
        assert found is not None
        wanted = found.value
        suspend = self.roll(0.01) if not wanted.suspend else not (self.trouble and self.dice.random() < 0.9)
        if suspend != wanted.suspend:
            update = {"suspend": suspend, "generation": wanted.generation + 1}
            write(cast(Any, self.store), LAYOUT.desired, wanted.model_copy(update=update), found.etag)

    def status(self) -> PipelineStatus:
        found = read_status(cast(Any, self.store), LAYOUT)
        assert found is not None
        return found.value


@pytest.mark.parametrize(
    "seed", [*range(10), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(10, 200))]
)
def test_it_ends_complete_and_never_runs_twice(seed: int) -> None:
    # Cluster itself asserts: no two processes of a stage at once, and no start of a stage that is done.
    world = Simulation(seed)
    for second in range(2000):
        world.trouble = second < 250
        world.second()
        status = world.reconciler.status
        if status is not None and status.holds(ConditionType.COMPLETE):
            break
    status = world.status()
    assert status.holds(ConditionType.COMPLETE), status.conditions
    assert {stage for stage, entry in status.stages.items() if entry.state.is_done} == set(TRAINING)
    for stage, entry in status.stages.items():
        assert entry.key is not None
        assert LAYOUT.stage(stage, entry.key).manifest in world.store.objects
        current = world.store.get_json(LAYOUT.current(stage))
        assert current == {"key": entry.key, "manifestUri": entry.manifest_uri}
    # Attempts of a stage count up, whatever happened in between.
    for stage in Stage:
        attempts = [attempt for started, _, attempt in world.cluster.starts if started is stage]
        assert attempts == sorted(attempts)
    # At most one stage is active in any status.
    assert all(sum(entry.state.is_active for entry in seen.stages.values()) <= 1 for seen in world.seen)


def test_the_dice_do_break_things() -> None:
    # Otherwise the test above would prove little.
    attempts = kills = 0
    for seed in range(3):
        world = Simulation(seed)
        for _ in range(120):
            before = world.reconciler
            world.second()
            kills += world.reconciler is not before
        attempts += len(world.cluster.starts)
    assert kills > 15
    assert attempts > 3 * 4 + 5  # what would do if nothing broke, and more


def test_without_trouble_every_stage_runs_once_in_order() -> None:
    world = Simulation(0)
    world.trouble = False
    for _ in range(120):
        world.second()
    assert [start[0] for start in world.cluster.starts] == list(TRAINING)
    assert all(attempt == 1 for _, _, attempt in world.cluster.starts)
    assert all(entry.state is StageState.SUCCEEDED for entry in world.status().stages.values())
    written = dict(world.store.objects)
    world.second()
    world.reconciler.once(world.cluster.now)
    assert world.store.objects == written, "a pass with nothing to do writes nothing"


def test_two_reconcilers_at_once_submit_once() -> None:
    world = Simulation(0)
    world.trouble = False
    other = world.new_reconciler()
    for _ in range(120):
        world.second()
        try:
            other.once(world.cluster.now)
        except ConflictError:
            continue
    assert [start[0] for start in world.cluster.starts] == list(TRAINING)
