"""A status survives being kept in a TrainingPipeline, and its columns say what people look for."""

from __future__ import annotations

import json
import random
import string
from typing import Any

import pytest

from tools.crd_status import stage_status, status_schema
from zhongjing.backends.kubernetes.status_codec import (
    MESSAGE_CHARACTERS,
    Extras,
    columns,
    decode,
    decode_live,
    encode,
    listing_uri,
    live_progress,
    progress_of,
)
from zhongjing.config.stages import Stage
from zhongjing.pipeline.actions import Conclude, apply
from zhongjing.pipeline.state import (
    Condition,
    ConditionType,
    PipelineStatus,
    StageState,
    StageStatus,
    StopReason,
    stamp,
)
from zhongjing.storage.layout import Layout
from zhongjing.storage.manifest import FrozenObject, FrozenSource, MixtureCounts, SourceCounts
from zhongjing.storage.progress import Activity, Failure, Progress

LAYOUT = Layout("s3://bucket", "ns", "p")
STAGES = (Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO)


def words(random_: random.Random) -> str:
    return "".join(random_.choices(string.ascii_letters + " 中医药\n\"'{}", k=random_.randint(1, 40)))


def maybe(random_: random.Random, value: Any) -> Any:
    return value if random_.random() < 0.5 else None


def any_stage(random_: random.Random) -> StageStatus:
    when = stamp(random_.uniform(1e9, 2e9))
    failure = Failure(error="DataError", code="EmptySource", message=words(random_), retriable=True)
    return StageStatus(
        state=random_.choice(list(StageState)),
        key=maybe(random_, "abc123"),
        reason=random_.choice(["", "Running", "JobFailed"]),
        message=words(random_),
        remedy=maybe(random_, words(random_)),
        failure=maybe(random_, failure),
        attempt=random_.randint(0, 9),
        failures=random_.randint(0, 9),
        failed_at_step=maybe(random_, random_.randint(0, 999)),
        submission_id=maybe(random_, "p-12345678-sft-a1"),
        spec_hash=maybe(random_, "ff"),
        confirmed=random_.random() < 0.5,
        stop_reason=maybe(random_, random_.choice(list(StopReason))),
        stop_requested_at=maybe(random_, when),
        manifest_uri=maybe(random_, "s3://b/m"),
        model_uri=maybe(random_, "s3://b/n"),
        fields=random_.choice(
            [{}, {"settings": {"learningRate": 1e-5, "none": None, "list": [1, {"a": []}]}}]
        ),
        changes=random_.choice([[], [words(random_)]]),
        submitted_at=maybe(random_, when),
        started_at=maybe(random_, when),
        finished_at=maybe(random_, when),
        next_retry_at=maybe(random_, when),
        unknown_since=maybe(random_, when),
    )


def any_status(random_: random.Random) -> PipelineStatus:
    status = PipelineStatus(
        uid="12345678",
        observed_generation=random_.randint(0, 5),
        stages={stage: any_stage(random_) for stage in STAGES if random_.random() < 0.7},
        sources=[
            FrozenSource(
                name=f"source-{number}",
                objects=[FrozenObject(uri="s3://b/o", size=number, digest="d")] * number,
                digest=f"d{number}",
            )
            for number in range(random_.randint(0, 3))
        ],
        started_at=maybe(random_, stamp(1.5e9)),
        failures=random_.randint(0, 3),
        updated_at=random_.choice(["", stamp(1.6e9)]),
    )
    for _ in range(random_.randint(0, 3)):
        concluded = Conclude(
            random_.choice(list(ConditionType)), "Reason", words(random_), maybe(random_, words(random_))
        )
        status = apply(status, [concluded], random_.uniform(1e9, 2e9))
    return status


@pytest.mark.parametrize("seed", range(200))
def test_what_is_encoded_is_decoded(seed: int) -> None:
    status = any_status(random.Random(seed))
    value = json.loads(json.dumps(encode(status, Extras("zj", STAGES, {"seed": 1}, layout=LAYOUT))))
    listings = {listing_uri(LAYOUT, source): source for source in status.sources}
    assert decode(value, "12345678", listings.__getitem__) == status


def test_a_new_object_has_an_empty_status() -> None:
    assert decode({}, "12345678", pytest.fail) == PipelineStatus(uid="12345678")


def test_fields_of_a_newer_release_are_passed_over() -> None:
    value = encode(running(Stage.RM), Extras("zj"))
    value["somethingNew"] = 1
    value["stages"]["rm"]["somethingNew"] = {"a": 1}
    assert decode(value, "1", pytest.fail) == running(Stage.RM)


def known(value: Any, schema: dict[str, Any], path: str = "status") -> None:
    """Every field is one that the CRD has: the API server refuses others."""
    if isinstance(value, dict) and "properties" in schema:
        for name, each in value.items():
            assert name in schema["properties"], f"{path}.{name} is not in the CRD"
            known(each, schema["properties"][name], f"{path}.{name}")
    elif isinstance(value, list):
        for each in value:
            known(each, schema["items"], f"{path}[]")


@pytest.mark.parametrize("seed", range(20))
def test_the_crd_knows_every_field(seed: int) -> None:
    status = any_status(random.Random(seed))
    live = {stage: live_progress(progress(stage)) for stage in STAGES}
    known(encode(status, Extras("zj", STAGES, {"seed": 1}, live, LAYOUT)), status_schema())


def test_the_crd_has_no_stage_field_that_is_never_written() -> None:
    written = set(StageStatus().model_dump(mode="json", by_alias=True)) | {"progress"}
    assert set(stage_status()["properties"]) == written


def progress(stage: Stage, **fields: Any) -> Progress:
    given: dict[str, Any] = {
        "activity": Activity.TRAINING,
        "step": 42,
        "total_steps": 100,
        "eta_seconds": 200.4,
        "metrics": {"loss": 1.05, "accuracy": 0.875, "reward_mean": 0.5},
        "updated_at": stamp(1.6e9),
    }
    return Progress(stage=stage, key="k", attempt=1, **(given | fields))


def test_the_objects_status_has_the_counts_and_warnings_of_a_stages_data() -> None:
    counts = SourceCounts(name="own", digest="d", read=289, kept=185, truncated=51, too_long=104, tied=3)
    told = progress(
        Stage.RM,
        sources=[counts],
        mixture=[MixtureCounts(name="own", samples=30, drawn=120)],
        warnings=["own: 104 of 289 records (36%) are dropped"],
    )
    live = live_progress(told)
    assert live["sources"][0] == {
        **dict.fromkeys(
            ("train", "validation", "test", "unanswered", "duplicates", "leaks", "quarantined", "canaries"), 0
        ),
        "name": "own",
        "read": 289,
        "kept": 185,
        "truncated": 51,
        "tooLong": 104,
        "tied": 3,
    }
    assert live["mixture"] == [{"name": "own", "samples": 30, "drawn": 120}]
    assert live["warnings"] == told.warnings
    assert progress_of(live, Stage.RM, StageStatus(key="k", attempt=1)) == told.model_copy(
        update={"sources": [counts.model_copy(update={"digest": ""})], "eta_seconds": 200}
    ), "what commands show of it"
    known(encode(running(Stage.RM), Extras("zj", STAGES, {}, {Stage.RM: live}, LAYOUT)), status_schema())
    assert not {"sources", "mixture", "warnings"} & live_progress(progress(Stage.RM)).keys()


def test_progress_of_a_newer_release_is_read_as_far_as_it_is_known() -> None:
    """Commands are older than the controller as often as not."""
    live = live_progress(progress(Stage.RM, sources=[SourceCounts(name="own", digest="d", read=3, kept=3)]))
    live |= {"activity": "pondering", "another": 1, "sources": [live["sources"][0] | {"weighed": 2}]}
    found = progress_of(live, Stage.RM, StageStatus(key="k", attempt=1))
    assert (found.activity, found.step, found.sources[0].read) == (Activity.STARTING, 42, 3)
    newer = {"stages": {"distil": {"progress": live}, "rm": {"progress": live}}}
    assert list(decode_live(newer)) == [Stage.RM]


def running(stage: Stage, **others: StageState) -> PipelineStatus:
    stages = {Stage(name): StageStatus(state=state) for name, state in others.items()}
    stages[stage] = StageStatus(state=StageState.RUNNING, attempt=1)
    condition = Condition(type=ConditionType.PROGRESSING, status=True, reason="Running")
    return PipelineStatus(uid="1", stages=stages, conditions=[condition])


def test_columns_of_a_running_stage() -> None:
    status = running(Stage.RM, pretrain=StageState.SKIPPED, sft=StageState.PENDING)
    live = {Stage.RM: live_progress(progress(Stage.RM))}
    assert columns(status, Extras("zj", (Stage.RM, Stage.PPO), live=live)) == {
        "targets": "rm,ppo",
        "stage": "rm",
        "state": "Running",
        "progress": "42%",
        "eta": "3m20s",
        "metric": "accuracy 0.875",
    }


def test_a_stage_that_lost_a_worker_shows_no_time_of_arrival() -> None:
    status = running(Stage.RM)
    lost = status.conditions[0].model_copy(update={"reason": "ClusterNotReady"})
    live = {Stage.RM: live_progress(progress(Stage.RM))}
    shown = columns(status.model_copy(update={"conditions": [lost]}), Extras("zj", live=live))
    assert (shown["state"], shown["progress"], "eta" in shown) == ("ClusterNotReady", "42%", False)


def test_columns_of_pipelines_that_do_not_run() -> None:
    def shown(condition: Condition | None, **stages: StageState) -> tuple[Any, ...]:
        status = PipelineStatus(
            uid="1",
            stages={Stage(name): StageStatus(state=state) for name, state in stages.items()},
            conditions=[condition] if condition is not None else [],
        )
        value = columns(status, Extras("zj"))
        return value.get("stage"), value["state"], value.get("progress")

    def holds(type_: ConditionType, reason: str = "") -> Condition:
        return Condition(type=type_, status=True, reason=reason)

    done, pending, blocked = StageState.SUCCEEDED, StageState.PENDING, StageState.BLOCKED
    assert shown(None) == (None, "Pending", None)
    assert shown(holds(ConditionType.COMPLETE), sft=done, rm=done) == ("rm", "Complete", "100%")
    queued = holds(ConditionType.PROGRESSING, "Queued")
    assert shown(queued, pretrain=done, sft=pending) == ("sft", "Queued", None)
    failed = holds(ConditionType.FAILED, "Diverged")
    assert shown(failed, pretrain=done, sft=StageState.FAILED, ppo=blocked) == ("sft", "Failed", None)
    waits = holds(ConditionType.PROGRESSING, "WaitingForInput")
    assert shown(waits, sft=done, rm=StageState.WAITING_FOR_INPUT, ppo=blocked)[0] == "rm"


def test_live_progress_has_no_number_that_json_cannot_hold() -> None:
    strange = progress(
        Stage.SFT, metrics={"loss": float("nan"), "norm": float("inf"), "rate": 1.0}, eta_seconds=float("inf")
    )
    live = live_progress(strange)
    json.dumps(live, allow_nan=False)
    assert live["metrics"] == {"rate": 1.0}
    assert "etaSeconds" not in live
    assert live_progress(progress(Stage.SFT, total_steps=0, step=3)).get("percent") is None
    assert live_progress(progress(Stage.SFT, activity=Activity.DONE, total_steps=0))["percent"] == 100


def test_live_progress_is_kept_beside_the_stage() -> None:
    live = {Stage.RM: live_progress(progress(Stage.RM))}
    value = encode(running(Stage.RM), Extras("zj", live=live))
    assert decode_live(value) == live
    assert decode(value, "1", pytest.fail) == running(Stage.RM)


def test_messages_are_bounded() -> None:
    status = apply(PipelineStatus(uid="1"), [Conclude(ConditionType.FAILED, "X", "m" * 99999)], 0.0)
    message = encode(status, Extras("zj"))["conditions"][-1]["message"]
    assert len(message) == MESSAGE_CHARACTERS
    assert message.endswith("...")
