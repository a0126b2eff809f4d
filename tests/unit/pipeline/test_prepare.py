"""From a document to a desired state: attach, go on, refuse, explain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import Cluster, MemoryStore
from zhongjing.config.sources import Storage
from zhongjing.config.stages import Stage
from zhongjing.errors import MissingInputError
from zhongjing.pipeline.prepare import Prepared, changed_under_way, prepare
from zhongjing.pipeline.reconcile import Reconciler
from zhongjing.pipeline.records import read_desired, write
from zhongjing.pipeline.state import ConditionType, DesiredState, PipelineStatus, StageState
from zhongjing.storage.layout import Layout


class StoreSession:
    """A session over a store in memory, with a reconciler that is driven by hand."""

    def __init__(self) -> None:
        self.store: Any = MemoryStore()
        self.storage = Storage(uri="s3://bucket")
        self.namespace = "local"
        self.warmed = 0
        self.cluster = Cluster(self.store, steps=2)
        self.reconciler = Reconciler(cast(Any, self.store), self.layout("demo"), self.cluster)

    def layout(self, pipeline: str) -> Layout:
        return Layout("s3://bucket", "local", pipeline)

    def desired(self, pipeline: str) -> DesiredState | None:
        found: DesiredState | None = self.store.find_record(self.layout(pipeline).desired, DesiredState)
        return found

    def status(self, pipeline: str) -> PipelineStatus | None:
        found: PipelineStatus | None = self.store.find_record(self.layout(pipeline).status, PipelineStatus)
        return found

    def warm(self) -> None:
        self.warmed += 1

    def apply(self, desired: DesiredState) -> None:
        there = read_desired(self.store, self.layout("demo"))
        write(self.store, self.layout("demo").desired, desired, there.etag if there else None)

    def run(self, seconds: int) -> PipelineStatus:
        for _ in range(seconds):
            self.cluster.tick()
            self.reconciler.once(self.cluster.now)
        status = self.status("demo")
        assert status is not None
        return status


@pytest.fixture
def session() -> StoreSession:
    return StoreSession()


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    for name in ("dialogues.jsonl", "rankings.jsonl"):
        (tmp_path / name).write_text(name)
    return {
        "metadata": {"name": "demo"},
        "spec": {
            "base": {"uri": "owner/base"},
            "sources": [
                {"name": "d", "uri": "dialogues.jsonl", "kind": "dialogue"},
                {"name": "r", "uri": "rankings.jsonl", "kind": "ranking"},
            ],
            "stages": {
                "sft": {"data": [{"source": "d"}]},
                "rm": {"data": [{"source": "r"}]},
                "ppo": {"data": [{"source": "d"}]},
            },
        },
    }


def ready(session: StoreSession, user: dict[str, Any], **options: Any) -> Prepared:
    return prepare(cast(Any, session), user, **options)


def actions(prepared: Prepared) -> dict[str, str]:
    return {each.stage.value: each.action for each in prepared.forecasts}


def test_a_new_pipeline(session: StoreSession, user: dict[str, Any], tmp_path: Path) -> None:
    prepared = ready(session, user)
    desired = prepared.desired
    assert (desired.generation, desired.targets) == (1, [Stage.SFT, Stage.RM, Stage.PPO])
    assert desired.document.spec.storage.uri == "s3://bucket"
    assert desired.document.namespace == "local"
    assert desired.document.spec.source("d").uri == str(tmp_path / "dialogues.jsonl")
    assert actions(prepared) == {"sft": "run", "rm": "run", "ppo": "run"}
    assert session.warmed == 1
    assert session.desired("demo") is None, "nothing is wanted before it is applied"


def test_the_same_document_attaches_while_it_runs(session: StoreSession, user: dict[str, Any]) -> None:
    first = ready(session, user).desired
    session.apply(first)
    assert ready(session, user).desired == first, "also before the reconciler has seen it"
    session.run(3)
    again = ready(session, user)
    assert again.desired == first
    assert again.forecasts[0].reason == "is running (attempt 1)"


def test_an_operational_change_is_taken_over_while_it_runs(
    session: StoreSession, user: dict[str, Any]
) -> None:
    first = ready(session, user).desired
    session.apply(first)
    status = session.run(3)
    user["spec"]["stages"]["sft"]["retries"] = 9
    second = ready(session, user).desired
    assert second.generation == 2
    assert changed_under_way(first, second, status) == []
    session.apply(second)
    session.run(40)
    assert [start[0] for start in session.cluster.starts] == [Stage.SFT, Stage.RM, Stage.PPO]


def test_a_training_change_is_named(session: StoreSession, user: dict[str, Any]) -> None:
    first = ready(session, user).desired
    user["spec"]["stages"]["rm"]["epochs"] = 2
    changes = changed_under_way(first, ready(session, user).desired, None)
    assert changes[0] == "spec.stages.rm.epochs: 10 -> 2"
    assert all(line.startswith(("spec.stages.rm", "spec.stages.ppo")) for line in changes)


def test_done_is_skipped_and_a_change_says_why(session: StoreSession, user: dict[str, Any]) -> None:
    session.apply(ready(session, user).desired)
    assert session.run(40).holds(ConditionType.COMPLETE)
    again = ready(session, user)
    assert actions(again) == {"sft": "skip", "rm": "skip", "ppo": "skip"}
    assert again.desired.generation == 2
    assert session.warmed == 1, "Ray is not started to find that all is done"
    session.apply(again.desired)
    status = session.run(2)
    assert {entry.state for entry in status.stages.values()} == {StageState.SKIPPED}
    changed = ready(session, user, overrides=["spec.stages.rm.learningRate=0.5"])
    assert actions(changed) == {"sft": "skip", "rm": "run", "ppo": "run"}
    assert changed.forecasts[1].reason == "changed: spec.stages.rm.learningRate: 0.0001 -> 0.5"
    forced = ready(session, user, rerun=[Stage.SFT])
    assert actions(forced) == {"sft": "run", "rm": "skip", "ppo": "run"}


def test_one_stage_needs_its_inputs(session: StoreSession, user: dict[str, Any]) -> None:
    with pytest.raises(MissingInputError) as missing:
        ready(session, user, stages=[Stage.PPO])
    assert "`zhongjing submit --pipeline demo --stage sft`" in str(missing.value)
    one = ready(session, user, stages=[Stage.RM])
    assert one.desired.targets == [Stage.RM]
    assert actions(one) == {"rm": "run"}


def test_targets_of_a_running_pipeline_are_added_to(session: StoreSession, user: dict[str, Any]) -> None:
    session.apply(ready(session, user, stages=[Stage.SFT]).desired)
    session.run(2)
    both = ready(session, user, stages=[Stage.RM]).desired
    assert both.targets == [Stage.SFT, Stage.RM]
    session.apply(both)
    assert session.run(40).holds(ConditionType.COMPLETE)
    # Once it is over, only what is asked for is wanted.
    assert ready(session, user, stages=[Stage.RM]).desired.targets == [Stage.RM]


def test_defaults_are_those_of_the_first_time(
    session: StoreSession, user: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    session.apply(ready(session, user).desired)
    session.run(40)
    there = session.desired("demo")
    assert there is not None
    # As if the pipeline had been created by a version with another default.
    data = there.document.model_dump(mode="json")
    data["spec"]["stages"]["sft"]["warmupFraction"] = 0.5
    old = there.model_copy(update={"document": type(there.document).model_validate(data)})
    session.apply(old.model_copy(update={"generation": 2}))
    settings = ready(session, user).desired.document.spec.stages.sft
    assert settings is not None
    assert settings.warmup_fraction == 0.5


def test_data_stays_frozen_until_it_is_refreshed(
    session: StoreSession, user: dict[str, Any], tmp_path: Path
) -> None:
    session.apply(ready(session, user).desired)
    session.run(40)
    (tmp_path / "rankings.jsonl").write_text("more rankings")
    same = ready(session, user)
    assert actions(same)["rm"] == "skip"
    assert "source r has changed" in same.notes[0]
    refreshed = ready(session, user, refresh_data=True)
    assert actions(refreshed) == {"sft": "skip", "rm": "run", "ppo": "run"}


def test_a_waited_for_source_arrives(session: StoreSession, user: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "rankings.jsonl").unlink()
    user["spec"]["sources"][1]["wait"] = True
    prepared = ready(session, user)
    assert actions(prepared) == {"sft": "run", "rm": "wait", "ppo": "wait"}
    session.apply(prepared.desired)
    status = session.run(30)
    assert status.settled(prepared.desired)
    assert status.stage(Stage.SFT).state is StageState.SUCCEEDED
    assert status.stage(Stage.RM).state is StageState.WAITING_FOR_INPUT
    assert status.stage(Stage.PPO).state is StageState.BLOCKED
    (tmp_path / "rankings.jsonl").write_text("ranked at last")
    status = session.run(60)
    assert status.holds(ConditionType.COMPLETE)
    assert [start[0] for start in session.cluster.starts] == [Stage.SFT, Stage.RM, Stage.PPO]
    # The same command later keeps what arrived.
    assert actions(ready(session, user)) == {"sft": "skip", "rm": "skip", "ppo": "skip"}


def test_a_dry_run_leaves_nothing_behind(session: StoreSession, user: dict[str, Any]) -> None:
    ready(session, user, upload=False)
    assert session.store.objects == {}
    assert session.warmed == 0


def test_a_user_who_may_not_read_the_store_applies_without_a_forecast(
    session: StoreSession, user: dict[str, Any]
) -> None:
    session.apply(ready(session, user, stages=[Stage.SFT]).desired)

    def refuse(where: str) -> None:
        assert "pipeline.json" in where or "status.json" in where, "the object is read, the store is not"

    session.store.fault = refuse
    blind = ready(session, user, stages=[Stage.RM], rerun=[Stage.RM], reads_store=False)
    assert (blind.desired.generation, blind.desired.targets) == (2, [Stage.SFT, Stage.RM])
    assert (blind.desired.sources, blind.desired.reruns) == ([], {Stage.RM: 1})
    assert (blind.plan, blind.forecasts, blind.notes) == ({}, [], [])
