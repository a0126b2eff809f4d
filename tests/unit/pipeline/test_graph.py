"""Which stage needs which, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.pipeline.support import user_document
from zhongjing.config.resolve import resolve
from zhongjing.config.stages import TRAINING, Stage
from zhongjing.errors import ConfigError
from zhongjing.pipeline import graph
from zhongjing.pipeline.graph import Need


def document(**settings: Any) -> Any:
    return resolve(user_document(**settings))


def test_the_whole_pipeline() -> None:
    whole = document()
    assert graph.needs(whole, Stage.PRETRAIN) == (Need("from", "base"),)
    assert graph.upstream(whole, Stage.SFT) == (Stage.PRETRAIN,)
    assert graph.upstream(whole, Stage.RM) == (Stage.PRETRAIN,)
    assert graph.upstream(whole, Stage.PPO) == (Stage.SFT, Stage.RM)
    assert graph.closure(whole, [Stage.PPO]) == [Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO]
    assert graph.closure(whole, [Stage.RM]) == [Stage.PRETRAIN, Stage.RM]


def test_without_pretrain_both_start_from_the_base() -> None:
    short = document(stages=("sft", "rm"))
    assert graph.needs(short, Stage.SFT) == graph.needs(short, Stage.RM) == (Need("from", "base"),)
    assert graph.closure(short, [Stage.SFT, Stage.RM]) == [Stage.SFT, Stage.RM]


def test_places_outside_the_pipeline_are_no_stages() -> None:
    given = document(stages=("ppo",), ppo={"from": "s3://elsewhere/sft", "reward": "owner/reward"})
    assert graph.needs(given, Stage.PPO) == (
        Need("from", "s3://elsewhere/sft"),
        Need("reward", "owner/reward"),
    )
    assert graph.closure(given, [Stage.PPO]) == [Stage.PPO]


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        ({"rm": {"from": "sft"}}, "spec.stages.rm.from"),
        ({"sft": {"from": "rm"}}, "spec.stages.sft.from"),
        ({"sft": {"from": "sft"}}, "spec.stages.sft.from"),
        ({"pretrain": {"from": "ppo"}}, "spec.stages.pretrain.from"),
        ({"ppo": {"from": "rm"}}, "spec.stages.ppo.from"),
        ({"ppo": {"reward": "sft"}}, "spec.stages.ppo.reward"),
        ({"stages": ("ppo",)}, "spec.stages.ppo.from"),
        ({"stages": ("sft",), "sft": {"from": "pretrain"}}, "spec.stages.sft.from"),
    ],
)
def test_wrong_inputs_name_their_place(settings: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as refused:
        graph.check(document(**settings))
    assert refused.value.where == place
    assert refused.value.remedy


def test_the_reward_model_never_starts_from_sft() -> None:
    with pytest.raises(ConfigError, match="pretrained base"):
        graph.check(document(rm={"from": "sft"}))


def test_targets() -> None:
    whole = document()
    assert graph.targets(whole) == list(TRAINING)
    assert graph.targets(whole, [Stage.RM, Stage.SFT]) == [Stage.SFT, Stage.RM]
    with pytest.raises(ConfigError, match="no stage ppo"):
        graph.targets(document(stages=("sft",)), [Stage.PPO])
    with pytest.raises(ConfigError, match="no stages"):
        graph.targets(document(stages=()))
