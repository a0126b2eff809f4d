"""Ranks wait for one another's transfers beside the collectives: as long as anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training_support import run_ranks

pytestmark = pytest.mark.integration


def test_long_work_of_a_rank_is_waited_for_and_seen(tmp_path: Path) -> None:
    first, second = run_ranks("meeting", tmp_path, 2, kind="works")
    # Two seconds of work, although nobody waits longer than 0.8 seconds for nothing.
    assert first["got"] == second["got"] == [0, 10]
    assert first["beats"] >= 3, "what another rank does moves the progress that rank 0 publishes"


def test_nobody_waits_for_ever_for_a_rank_that_does_nothing(tmp_path: Path) -> None:
    first, _ = run_ranks("meeting", tmp_path, 2, kind="hangs")
    assert first["error"] == "BarrierError: no rank has done anything for 0.8 s"


def test_the_failure_of_a_rank_ends_the_waiting_of_the_others(tmp_path: Path) -> None:
    first, second = run_ranks("meeting", tmp_path, 2, kind="fails")
    assert first["error"] == "BarrierError: another rank failed: rank 1: ValueError: no room"
    assert second["error"] == "ValueError: no room"
