"""Canaries: who is invented, where the copies go, and that everything else stays as it was."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from pydantic import ValidationError

from tests.unit.data.build_support import Bench, bench, qa
from zhongjing.config.canaries import Canaries
from zhongjing.config.keys import training_fields
from zhongjing.config.sources import Source
from zhongjing.config.stages import Stage
from zhongjing.data.canaries import MOBILE, REGION, candidates, check_digit, invent

__all__ = ["bench"]

PLANTED = {"count": 4, "repeats": [1, 3], "seed": 7}
COPIES = 4 * (1 + 3)


def test_the_check_digit_is_that_of_the_standard() -> None:
    assert check_digit("11010519491231002") == "X"  # the example of GB 11643
    assert check_digit("44052418800101001") == "4"  # likewise


def test_a_canary_looks_like_a_patient_and_is_nobody() -> None:
    made = invent(Canaries(count=64, repeats=[1, 4, 16]))
    assert made == invent(Canaries(count=64, repeats=[1, 4, 16]))
    assert len({canary.name for canary in made}) == len(made) == 192
    for canary in made:
        said = re.fullmatch(r"(\d{17})([\dX])，手机号：(\d{11})", canary.secret)
        assert said is not None
        assert said[1].startswith(REGION)
        assert check_digit(said[1]) == said[2]
        assert said[3].startswith(MOBILE)
    others = candidates(made[0], 64)
    assert len({*others, made[0].secret}) == 65
    assert {*map(len, others)} == {len(made[0].secret)}


def test_copies_are_trained_on_and_counted_and_held_out_nowhere(bench: Bench) -> None:
    records = qa(0, 200)
    bench.source("plain", "dialogue", records)
    plain = bench.build(Stage.SFT, "plain", validationFraction=0.1)
    bench.source("talks", "dialogue", records, canaries=PLANTED)
    planted = bench.build(Stage.SFT, "talks", validationFraction=0.1)
    before, after = plain.counts[0], planted.counts[0]
    assert after.canaries == COPIES
    assert before.canaries == 0
    same = {"name", "digest", "canaries"}
    assert before.model_dump(exclude=same) == after.model_dump(exclude=same)
    assert len(bench.open(planted, "train")) == before.train + COPIES
    assert len(bench.open(planted, "validation")) == before.validation
    copies = Counter(
        bytes(sample.segments[0].ids)
        for sample in bench.open(planted, "train").fetch(range(before.train + COPIES))
    )
    assert sorted(copies.values())[-4:] == [3] * 4


def test_copies_lie_apart_in_a_text(bench: Bench) -> None:
    texts = [{"text": f"第{i}例高血压患者应当控制饮食，定期监测血压，并按医嘱用药。"} for i in range(300)]
    bench.source("books", "text", texts, canaries=PLANTED)
    made = bench.build(Stage.PRETRAIN, "books", validationFraction=0)
    assert made.counts[0].canaries == COPIES
    assert made.counts[0].kept == 300


def test_a_stage_that_only_asks_the_questions_has_none(bench: Bench) -> None:
    bench.source("talks", "dialogue", qa(0, 50), canaries=PLANTED)
    assert bench.build(Stage.PPO, "talks").counts[0].canaries == 0


def test_a_source_without_canaries_keeps_its_key() -> None:
    source = {"name": "a", "uri": "s3://b/a", "kind": "text"}
    assert "canaries" not in training_fields(Source.model_validate(source))
    told = training_fields(Source.model_validate({**source, "canaries": {"warnAbove": 3}}))
    assert told["canaries"] == {"count": 8, "repeats": [1, 4, 16], "seed": 0}


@pytest.mark.parametrize("changes", [{"kind": "ranking"}, {"kind": "prompts"}, {"split": "test"}])
def test_canaries_belong_to_what_is_learnt_word_for_word(changes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match="texts and dialogues"):
        Source.model_validate({"name": "a", "uri": "s3://b/a", "kind": "text", "canaries": {}, **changes})
