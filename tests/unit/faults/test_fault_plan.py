"""The seeded plan of the fault harness."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults.observe import STAGES
from tests.faults.plan import Phase, draw
from tests.faults.victims import Victim
from zhongjing.config.stages import Stage


@pytest.mark.parametrize("seed", range(20))
def test_twenty_kills_reach_every_stage_and_every_victim(seed: int) -> None:
    strikes = draw(seed, 20, uploaders=(Stage.PRETRAIN,))
    assert [strike.number for strike in strikes] == list(range(1, 21))
    assert Counter(strike.stage for strike in strikes) == dict.fromkeys(STAGES, 5)
    assert {strike.victim for strike in strikes} == set(Victim)
    assert len({(strike.stage, strike.victim) for strike in strikes}) == 20
    for strike in strikes:
        assert strike.victim is not Victim.UPLOADER or strike.stage is Stage.PRETRAIN
    # In the order in which they can fall.
    assert [STAGES.index(strike.stage) for strike in strikes] == sorted(
        STAGES.index(s.stage) for s in strikes
    )
    for stage in STAGES:
        phases = [strike.phase for strike in strikes if strike.stage is stage]
        assert phases.count(Phase.PREPARING) <= 1
        assert Phase.PREPARING not in phases[1:]
        assert Phase.FINISHING not in phases[:-1]
        fractions = [strike.fraction for strike in strikes if strike.stage is stage and strike.fraction]
        assert fractions == sorted(fractions)


def test_the_seed_decides_everything() -> None:
    assert draw(3, 20, ()) == draw(3, 20, ())
    assert draw(3, 20, ()) != draw(4, 20, ())


def test_more_kills_than_victims_and_stages_give_room_for() -> None:
    assert len(draw(0, 80, (Stage.PRETRAIN,))) == 80
