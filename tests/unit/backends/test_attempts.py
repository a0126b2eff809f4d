"""The log of an attempt, from Ray or from the store."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import pytest

from tests.unit.pipeline.support import LAYOUT, MemoryStore, desired_state
from zhongjing.backends.attempts import read_log
from zhongjing.codes.ray import RAY_UNREACHABLE
from zhongjing.config.stages import Stage
from zhongjing.errors import BackendUnavailableError
from zhongjing.pipeline.attempt_logs import driver_log
from zhongjing.pipeline.session import Session
from zhongjing.pipeline.state import PipelineStatus, StageState, StageStatus


class _Place:
    """What a session says of a stage that runs."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.entry = StageStatus(state=StageState.RUNNING, attempt=1, key="k")

    def desired(self, name: str) -> Any:
        return desired_state()

    def status(self, name: str) -> PipelineStatus:
        return PipelineStatus(uid="0123abcd", stages={Stage.SFT: self.entry})

    def layout(self, name: str) -> Any:
        return LAYOUT


def _breaks_off(*lines: str) -> Iterator[str]:
    yield from lines
    raise BackendUnavailableError("Ray does not answer", code=RAY_UNREACHABLE)


@pytest.mark.parametrize("told", [(), ("one",)])
def test_the_kept_log_is_told_only_where_ray_told_no_line(told: tuple[str, ...]) -> None:
    place = _Place()
    place.store.put(driver_log(LAYOUT, Stage.SFT, "k", 1), b"one\ntwo\n")
    session = cast("Session", place)
    lines = read_log(session, "demo", Stage.SFT, None, lambda identity: _breaks_off(*told), past=True)
    if not told:
        assert list(lines) == ["one", "two"]
        return
    assert next(lines) == "one"
    with pytest.raises(BackendUnavailableError):
        next(lines)
