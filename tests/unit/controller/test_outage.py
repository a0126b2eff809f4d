"""An outage of the store is a state with its own deadline: nothing in the controller sleeps for it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import zhongjing.controller
from tests.unit.controller.loop_support import World
from zhongjing.codes import Code, storage
from zhongjing.controller import outage
from zhongjing.controller.outage import SILENCE_SECONDS, Outage
from zhongjing.errors import (
    ConfigError,
    CredentialsError,
    NotFoundError,
    StorageError,
    StorageUnavailableError,
    ZhongjingError,
)
from zhongjing.pipeline.backend import JobState
from zhongjing.storage.failures import ROTATION_SECONDS

NOW = 1_800_000_000.0


class Store:
    """Answers as it is told."""

    def __init__(self) -> None:
        self.error: ZhongjingError | None = None
        self.asked = 0

    def ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


def away(code: Code = storage.STORAGE_UNREACHABLE) -> StorageUnavailableError:
    return StorageUnavailableError("no answer", code=code)


@pytest.mark.parametrize(
    ("error", "patience"),
    [
        (away(), SILENCE_SECONDS),
        (away(storage.ACCESS_DENIED), ROTATION_SECONDS),  # keys that were good are being replaced
        (CredentialsError("bad keys", code=storage.ACCESS_DENIED), 0.0),
        (ConfigError("no keys", code=storage.INVALID_STORAGE), 0.0),
    ],
)
def test_an_outage_is_told_after_its_deadline_and_not_before(error: ZhongjingError, patience: float) -> None:
    store = Store()
    state = Outage(store.ask)
    store.error = error
    assert state.explains(error, NOW)
    for after in (0.0, patience / 2, patience - 0.1):
        assert (state.told(NOW + after) is None) == (after < patience)
    assert state.told(NOW + patience) is error
    assert 0.0 < state.wait(NOW) <= outage._FIRST_PAUSE


def test_a_store_that_is_away_is_asked_now_and_then() -> None:
    store = Store()
    state = Outage(store.ask)
    state.look(NOW)
    state.look(NOW + 1)
    assert store.asked == 1, "one that answers is not asked again"
    store.error = away()
    assert state.explains(away(), NOW + 2)
    now = NOW + 2
    for _ in range(600):
        now += 1
        state.look(now)
    assert 600 / 15 <= store.asked - 2 <= 60
    store.error = None
    state.look(now + 15)
    assert not state.holds
    assert state.told(now + 15) is None


def test_what_is_wrong_with_one_object_is_no_outage() -> None:
    store = Store()
    state = Outage(store.ask)
    denied = StorageError("not this folder", code=storage.ACCESS_DENIED)
    assert not state.explains(denied, NOW)
    assert not state.explains(ConfigError("other region", code=storage.WRONG_REGION), NOW)
    asked = store.asked
    for error in (NotFoundError("", code=storage.OBJECT_NOT_FOUND), ValueError()):
        assert not state.explains(error, NOW)
    assert store.asked == asked, "the store need not be asked for that"


def test_nothing_in_the_controller_sleeps() -> None:
    """Every wait of the loop is one for a change; verify and the watch are processes and threads apart."""
    folder = Path(zhongjing.controller.__file__).parent
    for path in folder.glob("*.py"):
        if path.name == "verify.py":
            continue
        calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not [call for call in calls if ast.unparse(call.func).endswith("sleep")], path


def test_refused_keys_hold_up_and_fail_no_pipeline() -> None:
    """Two minutes of refused keys, in no time: who waits for input, is queued, runs or is new goes on."""
    world = World()
    world.objects.apply("runs", priority=9)
    sources = [{"name": "texts", "kind": "text", "uri": "s3://bucket/data/late.jsonl", "wait": True}]
    world.objects.apply("waits", sources=sources, priority=8)
    world.objects.apply("queued")
    world.run(NOW)
    before = {name: world.objects.condition(name) for name in world.objects.items}
    assert [reason for _, reason, _ in before.values()] == ["Running", "WaitingForInput", "Queued"]

    def refused(where: str) -> None:
        raise away(storage.ACCESS_DENIED)

    world.store.refuse = refused
    world.store.asked.clear()
    for second in range(1, 120):
        world.run(NOW + second)
    assert {name: world.objects.condition(name) for name in world.objects.items} == before
    assert len(world.store.asked) < 20, "the store is asked now and then, whatever waits for it"

    # Who is suspended, or changed, is answered at once.
    world.objects.apply("queued", suspend=True)
    world.objects.apply("waits", seed=7)
    world.run(NOW + 121)
    assert world.objects.condition("queued")[:2] == ("Suspended", "Suspended")
    assert world.objects.items["queued"].is_settled
    assert world.objects.condition("waits")[:2] == ("Progressing", "AccessDenied")

    # Past the deadline it is told, and still fails no pipeline.
    for second in range(122, 400, 5):
        world.run(NOW + second)
    assert world.objects.condition("runs")[:2] == ("Progressing", "AccessDenied")
    world.store.refuse = lambda where: None
    for second in range(400, 430):
        world.run(NOW + second)
    assert world.objects.condition("runs")[:2] == ("Progressing", "Running")
    assert world.objects.condition("waits")[1] == "WaitingForInput"
    world.objects.apply("queued", suspend=False)
    world.run(NOW + 431)
    assert world.objects.condition("queued")[1] == "Queued"


def test_one_documents_refused_source_is_its_own_trouble() -> None:
    world = World()
    world.objects.apply("fine")
    world.objects.apply(
        "denied", sources=[{"name": "texts", "kind": "text", "uri": "s3://other/x.jsonl"}], priority=9
    )

    def refuse(where: str) -> None:
        if "s3://other" in where:
            raise StorageError("no permission", code=storage.ACCESS_DENIED, where="s3://other/x.jsonl")

    world.store.refuse = refuse
    world.run(NOW)
    assert world.objects.condition("fine")[:2] == ("Progressing", "Running")
    assert world.objects.condition("denied") == (
        "Progressing",
        "AccessDenied",
        "s3://other/x.jsonl: no permission",
    )
    world.store.refuse = lambda where: None
    world.store.objects["s3://other/x.jsonl"] = b"{}"
    world.run(NOW + 30)
    assert world.objects.condition("denied")[1] == "Queued", "it was tried again"


def test_queued_pipelines_cost_nothing() -> None:
    """Neither a request to the store nor a write, and no look at the store when the turn is another."""
    world = World()
    for number in range(100):
        world.objects.apply(f"p{number:02d}")
    world.run(NOW)
    assert sum(reason == "Queued" for _, reason, _ in map(world.objects.condition, world.objects.items)) == 99
    idle = World()
    idle.objects.apply("p00")
    idle.run(NOW)
    for each in (world, idle):
        each.store.asked.clear()
        each.objects.writes = 0
        for second in range(1, 61):
            each.run(NOW + second)
    assert len(world.store.asked) == len(idle.store.asked)
    assert world.objects.writes == idle.objects.writes

    # The one that has the cluster fails for good: the next begins, and the others say what they wait for.
    world.store.asked.clear()
    world.objects.apply("p00", suspend=True)
    world.jobs.end(JobState.STOPPED)
    for second in range(61, 75):
        world.run(NOW + second)
    told = {world.objects.condition(f"p{number:02d}")[2] for number in range(2, 100)}
    assert told == {"waits for p01"}
    asked = {name for where in world.store.asked for name in world.objects.items if f"/ns/{name}/" in where}
    assert asked == {"p00", "p01"}


def test_an_outage_that_holds_up_no_pipeline_causes_no_busy_loop() -> None:
    """The pipelines that it held up are suspended or gone."""
    world = World()
    world.run(NOW)

    def refused(where: str) -> None:
        raise away()

    world.store.refuse = refused
    world.objects.apply("held")
    world.run(NOW + 1)
    world.objects.apply("held", suspend=True)
    world.run(NOW + 2)
    assert world.objects.condition("held")[0] == "Suspended"
    waits = [world.run(NOW + second) for second in range(100, 200)]
    assert sum(waits) / len(waits) > 1.0
    world.store.refuse = lambda where: None
    for second in range(200, 230):
        world.run(NOW + second)
    assert not world.controller._outage.holds
