"""Losses of data above a share are warnings that name the field to change."""

from __future__ import annotations

from typing import Any

import pytest

from zhongjing.config.stages import AnySettings, PpoSettings, RmSettings, SftSettings, Stage
from zhongjing.data.losses import data_warnings
from zhongjing.data.order import mixture_counts
from zhongjing.storage.manifest import MixtureCounts, SourceCounts

SETTINGS: dict[Stage, type[AnySettings]] = {
    Stage.SFT: SftSettings,
    Stage.RM: RmSettings,
    Stage.PPO: PpoSettings,
}


def settings(stage: Stage, **fields: Any) -> AnySettings:
    return SETTINGS[stage].model_validate({"data": [{"source": "own"}], "maxLength": 128, **fields})


def warn(stage: Stage, fields: dict[str, Any] | None = None, **counts: int) -> list[str]:
    source = SourceCounts(name="own", digest="d", **{"read": 100, **counts})
    return data_warnings(stage, settings(stage, **(fields or {})), [source])


@pytest.mark.parametrize(
    ("stage", "fields", "counts", "told"),
    [
        (Stage.RM, {}, {"read": 289, "too_long": 104}, "104 of 289 records (36%) are dropped"),
        (Stage.RM, {}, {"too_long": 6}, "spec.stages.rm.maxLength (128); raise it"),
        (Stage.RM, {}, {"truncated": 51}, "lose the beginning of their prompt"),
        (
            Stage.SFT,
            {},
            {"read": 342, "truncated": 234},
            "234 of 342 records (68%) lose their earliest turns",
        ),
        (Stage.SFT, {}, {"truncated": 50}, "spec.stages.sft.maxLength (128); raise it"),
        (
            Stage.PPO,
            {"maxNewTokens": 32, "maxPromptLength": 64},
            {"truncated": 50},
            "spec.stages.ppo.maxPromptLength (64)",
        ),
        (
            Stage.PPO,
            {"maxNewTokens": 100, "maxPromptLength": 64},
            {"truncated": 50},
            "spec.stages.ppo.maxLength - maxNewTokens (28)",
        ),
        (Stage.SFT, {}, {"unanswered": 9}, "no answer"),
        (Stage.SFT, {}, {"leaks": 6}, "testFraction"),
        (Stage.SFT, {}, {"quarantined": 6}, "spec.sources.own.columns"),
    ],
)
def test_a_loss_above_the_share_names_the_field_to_change(
    stage: Stage, fields: dict[str, Any], counts: dict[str, int], told: str
) -> None:
    (sentence,) = warn(stage, fields, **counts)
    assert sentence.startswith("own: ")
    assert told in sentence


def test_the_share_above_which_is_warned_is_a_field() -> None:
    assert warn(Stage.SFT, truncated=5) == []
    assert len(warn(Stage.SFT, truncated=6)) == 1
    assert warn(Stage.SFT, {"warnAboveFraction": 0.1}, truncated=6) == []
    assert len(warn(Stage.SFT, {"warnAboveFraction": 0.0}, truncated=1)) == 1
    assert warn(Stage.SFT, {"warnAboveFraction": 0.0}) == []
    assert warn(Stage.SFT, read=0) == []
    assert warn(Stage.SFT, duplicates=90) == [], "what a duplicate holds is there"


def test_prompts_of_test_data_are_warned_of_only_where_many_are_cut() -> None:
    """A seventh of the example's held-out dialogues is longer than the demo's prompts."""
    chosen = settings(Stage.PPO, maxNewTokens=32, maxPromptLength=64)
    for truncated, expected in ((17, 0), (40, 1)):
        exam = SourceCounts(name="exam", digest="d", read=137, test=137, truncated=truncated)
        assert len(data_warnings(Stage.PPO, chosen, [exam])) == expected


def test_samples_that_a_mixture_repeats_are_counted_and_warned_of() -> None:
    chosen = settings(Stage.SFT, mixture={"singleTurn": 7, "multiTurn": 1})
    groups = [0] * 30 + [1] * 70
    counts = mixture_counts(groups, ("singleTurn", "multiTurn", "nlpTask", "general"), chosen)
    assert counts == [
        MixtureCounts(name="singleTurn", samples=30, drawn=120),  # maxRepeats is 4
        MixtureCounts(name="multiTurn", samples=70, drawn=17),
    ]
    assert [each.repeated for each in counts] == [90, 0]
    (said,) = data_warnings(Stage.SFT, chosen, (), counts)
    assert "singleTurn: 120 samples an epoch are drawn of 30 (75% are repeated)" in said
    assert "spec.stages.sft.mixture" in said
    assert mixture_counts(groups, ("a", "b"), settings(Stage.SFT)) == []
    weighted = settings(Stage.RM, data=[{"source": "a", "weight": 9}, {"source": "b", "weight": 1}])
    (said,) = data_warnings(Stage.RM, weighted, (), mixture_counts([0, 1, 1], ("a", "b"), weighted))
    assert "weights in spec.stages.rm.data" in said
