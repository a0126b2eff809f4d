"""What the store refuses or cannot read is never the document's fault: no pipeline is settled by it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.unit.pipeline.bench import World, condition_of, new_world
from tests.unit.pipeline.support import Cluster
from zhongjing.codes import Code, cluster, data, storage
from zhongjing.config.stages import Stage
from zhongjing.errors import (
    BackendError,
    ConfigError,
    CredentialsError,
    MissingInputError,
    StorageError,
    StorageUnavailableError,
    ZhongjingError,
)
from zhongjing.pipeline.faults import is_documents
from zhongjing.pipeline.reconcile import Cadence
from zhongjing.pipeline.state import ConditionType, PipelineStatus, StageState

REFUSALS: list[tuple[type[ZhongjingError], Code]] = [
    (StorageError, storage.ACCESS_DENIED),
    (CredentialsError, storage.ACCESS_DENIED),
    (StorageError, storage.CLOCK_SKEWED),
    (StorageError, storage.BUCKET_NOT_FOUND),
    (StorageError, storage.STORAGE_REFUSED),
    (ConfigError, storage.INVALID_STORAGE),  # no credentials
    (ConfigError, storage.WRONG_REGION),
    (StorageError, storage.NEWER_VERSION),
]


def refusing(kind: type[ZhongjingError], code: Code, *, of: str) -> Callable[[str], None]:
    def fault(where: str) -> None:
        if of in where:
            raise kind("refused", code=code, where=where)

    return fault


def held_up(bench: World[Cluster], turn: str | None = None) -> PipelineStatus:
    """A pass that something keeps from going on."""
    with pytest.raises(ZhongjingError, match="refused"):
        bench.reconciler.once(bench.cluster.now, turn)
    return bench.status()


@pytest.mark.parametrize(("kind", "code"), REFUSALS)
@pytest.mark.parametrize("when", ["queued", "running", "retrying", "waiting"])
def test_a_refusal_of_the_store_fails_no_pipeline(kind: type[ZhongjingError], code: Code, when: str) -> None:
    """Not the queued, nor the one that will be tried again, nor the one that waits for its input."""
    bench = new_world(waiting=["dialogues"] if when == "waiting" else [])
    turn = "waits for other" if when == "queued" else None
    bench.reconciler.once(bench.cluster.now, turn)
    if when in ("running", "retrying"):
        bench.run(3)
    if when == "retrying":
        bench.cluster.crash(bench.cluster.running()[0])
        bench.run(1)
    before = bench.status()
    of = "dialogues.jsonl" if when == "waiting" else "manifest.json"
    bench.memory.fault = refusing(kind, code, of=of)
    bench.cluster.now += 30  # a waited-for source is looked for now and then
    status = held_up(bench, turn)
    condition = condition_of(status)
    assert (condition.type, condition.reason) == (ConditionType.PROGRESSING, code.name)
    assert condition.remedy == code.remedy
    assert status.stages == before.stages, "nothing is known of them"

    bench.memory.fault = lambda where: None
    if when == "waiting":
        bench.memory.objects["s3://data/dialogues.jsonl"] = b"{}"
        bench.cluster.now += 30
    bench.cluster.tick()
    status = bench.run(60)
    assert status.holds(ConditionType.COMPLETE)
    assert status.stage(Stage.SFT).failures == (1 if when == "retrying" else 0)


def test_an_unreadable_progress_ends_no_living_job() -> None:
    bench = new_world()
    bench.run(4)
    [job] = bench.cluster.running()
    whole = bench.memory.objects[job.place.progress]
    for data_ in (b"{cut", b'{"version": 1}', b""):
        bench.memory.objects[job.place.progress] = data_
        assert bench.reconciler.once(bench.cluster.now) is not None, "the supervisor lives on for it"
        entry = bench.status().stage(Stage.SFT)
        assert entry.state is StageState.RUNNING
        assert (entry.stop_reason, entry.failures) == (None, 0)
    bench.memory.objects[job.place.progress] = whole
    assert bench.run(20).holds(ConditionType.COMPLETE)
    assert len(bench.cluster.starts) == 1


def test_an_unreadable_progress_hides_no_end() -> None:
    """A job that is dead can make it good no more: the stage is tried again."""
    bench = new_world()
    bench.run(4)
    [job] = bench.cluster.running()
    bench.cluster.crash(job)
    bench.memory.objects[job.place.progress] = b"{cut"
    bench.reconciler.once(bench.cluster.now)
    bench.memory.objects[job.place.progress] = b"{cut"
    assert bench.run(40).holds(ConditionType.COMPLETE)
    assert [attempt for _, _, attempt in bench.cluster.starts] == [1, 2]


def test_an_unreadable_progress_of_a_forgotten_job_says_that_it_began() -> None:
    """It must not be submitted again beside what may live where the backend cannot see it."""
    bench = new_world()
    bench.run(4)
    [job] = bench.cluster.running()
    bench.memory.objects[job.place.progress] = b"{cut"
    bench.cluster.restart_head(zombies=True)
    bench.cluster.stuck = bench.cluster.deaf = True
    bench.reconciler.once(bench.cluster.now)
    entry = bench.status().stage(Stage.SFT)
    assert (entry.attempt, entry.reason) == (1, "Unknown")


def test_a_retry_whose_time_is_over_is_not_looked_for_all_the_time() -> None:
    bench = new_world()
    bench.reconciler.cadence = Cadence(active=5, waiting=20)
    bench.run(3)
    bench.cluster.crash(bench.cluster.running()[0])
    bench.reconciler.once(bench.cluster.now)
    bench.cluster.now += 100
    assert bench.reconciler.once(bench.cluster.now, "waits for other") == 5


@pytest.mark.parametrize(
    ("error", "documents"),
    [
        (ConfigError("", code=data.INVALID_URI), True),
        (MissingInputError("", code=data.SOURCE_NOT_FOUND), True),
        (ConfigError("", code=storage.INVALID_STORAGE), False),
        (StorageError("", code=storage.ACCESS_DENIED), False),
        (StorageUnavailableError("", code=storage.STORAGE_UNREACHABLE), False),
        (BackendError("", code=cluster.OBJECT_REFUSED), False),
    ],
)
def test_only_what_the_document_says_can_fail_it(error: ZhongjingError, documents: bool) -> None:
    assert is_documents(error) is documents
