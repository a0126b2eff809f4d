"""How long a preparation takes yet."""

from __future__ import annotations

import pytest

from zhongjing.train.meter import TimeLeft


def test_time_left_follows_the_last_minute() -> None:
    left = TimeLeft()
    assert left.seconds(0.0, 100.0) is None
    # What an earlier attempt made is passed in seconds ...
    assert left.seconds(0.5, 110.0) == pytest.approx(10.0)
    # ... and a minute later only what is being made counts: a hundredth in ten seconds.
    for step in range(1, 8):
        seconds = left.seconds(0.5 + step / 100, 110.0 + 10.0 * step)
    assert seconds == pytest.approx(430.0)


def test_another_activity_begins_anew() -> None:
    left = TimeLeft()
    left.seconds(0.0, 0.0)
    assert left.seconds(0.9, 9.0) == pytest.approx(1.0)
    assert left.seconds(0.0, 10.0) is None
    assert left.seconds(0.1, 11.0) == pytest.approx(9.0)
    assert left.seconds(1.0, 20.0) == 0.0
