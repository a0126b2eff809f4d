"""The comparison of a disturbed run with the undisturbed one sees what it is there to see."""

from __future__ import annotations

import pytest

from tests.faults.checks import compare, rollout_problems
from tests.faults.observe import STAGES, Result
from tests.manifests import stage_manifest
from zhongjing.config.stages import Stage
from zhongjing.storage.manifest import ModelArtifact, ModelFile, StageManifest
from zhongjing.storage.progress import MetricPoint


def manifest(stage: Stage, loss: float, digest: str = "d", **fields: int) -> StageManifest:
    artifact = ModelArtifact(uri="s3://x", format="full", files=[ModelFile(name="m", size=1, sha256=digest)])
    return stage_manifest(
        stage, model=artifact, metrics_before={"loss": 2.0}, metrics={"loss": loss}, **fields
    )


def points(*steps: int, kind: str = "train", value: float = 1.0, speed: float = 1.0) -> list[MetricPoint]:
    values = {"loss": value, "tokens_per_second": speed}
    return [
        MetricPoint.model_validate({"kind": kind, "step": step, "time": "", "values": values})
        for step in steps
    ]


def problems(other: Result) -> list[str]:
    one = {stage: Result(manifest(stage, 1.0), tuple(points(1, 2, 3, 4))) for stage in STAGES}
    return [text for each in compare(one, {**one, Stage.SFT: other}) for text in each.problems]


def test_speed_and_rounding_are_no_difference() -> None:
    other = Result(manifest(Stage.SFT, 1.0 + 1e-9), tuple(points(1, 2, 3, 4, speed=9.0)))
    assert problems(other) == []


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Result(manifest(Stage.SFT, 1.001), tuple(points(1, 2, 3, 4))), "loss 1.0 became 1.001"),
        (Result(manifest(Stage.SFT, 1.0, tokens=90), tuple(points(1, 2, 3, 4))), "tokens: 80 became 90"),
        (Result(manifest(Stage.SFT, 1.0), tuple(points(1, 2, 2, 3, 4))), "twice [('train', 2)]"),
        (Result(manifest(Stage.SFT, 1.0), tuple(points(1, 2, 4))), "missing [('train', 3)]"),
        (Result(manifest(Stage.SFT, 1.0), tuple(points(1, 3, 2, 4))), "out of order"),
        (Result(manifest(Stage.SFT, 1.0), tuple(points(1, 2, 3, 4, value=2.0))), "loss 1.0 became 2.0"),
    ],
)
def test_each_difference_is_named(other: Result, words: str) -> None:
    found = problems(other)
    assert found
    assert all(text.startswith("sft: ") for text in found)
    assert words in found[0]


def test_other_weights_are_told_apart() -> None:
    one = {stage: Result(manifest(stage, 1.0), ()) for stage in STAGES}
    other = {stage: Result(manifest(stage, 1.0, digest="e"), ()) for stage in STAGES}
    assert [each.same_weights for each in compare(one, other)] == [False] * 4


def test_rollouts_exactly_once_and_in_order() -> None:
    assert rollout_problems(points(1, 5, 9, kind="rollout"), 12, 4) == []
    assert rollout_problems(points(1, 5, 5, 9, kind="rollout"), 12, 4)
    assert rollout_problems(points(1, 9, kind="rollout"), 12, 4)
    assert rollout_problems(points(1, 9, 5, kind="rollout"), 12, 4)
