"""The display of pipes, files and CI: one line a change, and at most one every ten seconds in between."""

from __future__ import annotations

import time
from collections.abc import Callable

from zhongjing.cli.display.counts import News
from zhongjing.cli.display.text import clock
from zhongjing.cli.display.view import RunView, StageView
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import StageState
from zhongjing.storage.progress import Activity

_EVERY_SECONDS = 10.0

_Mark = tuple[StageState, int, Activity | None, str]


class PlainDisplay:
    """Writes lines.

    Args:
        write: takes one line without its end.
        now: a clock in seconds.
        every: time between lines of a stage that only goes on, in seconds.
    """

    def __init__(
        self,
        write: Callable[[str], None],
        *,
        now: Callable[[], float] = time.monotonic,
        every: float = _EVERY_SECONDS,
    ) -> None:
        self._write = write
        self._now = now
        self._every = every
        self._start = now()
        self._marks: dict[Stage, _Mark] = {}
        self._spoken: dict[Stage, float] = {}
        self._news = News()

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, text: str) -> None:
        """A line that belongs to no stage."""
        self._line("", text)

    def update(self, view: RunView) -> None:
        """Shows what changed since the last call."""
        for text in self._news.of_run(view):
            self.note(text)
        for stage in view.stages:
            self._stage(stage)

    def _stage(self, stage: StageView) -> None:
        for text in self._news.of_stage(stage):
            self._line(stage.stage, text)
        if stage.activity is Activity.FAILED:
            return  # what it was at when it failed; why it failed comes with the state
        message = stage.progress.message if stage.activity is not None and stage.progress is not None else ""
        mark = (stage.state, stage.status.attempt, stage.activity, message)
        changed = mark != self._marks.get(stage.stage)
        first = stage.stage not in self._marks
        self._marks[stage.stage] = mark
        if first and stage.state is StageState.PENDING:
            return  # nothing to tell yet
        due = self._now() - self._spoken.get(stage.stage, self._start) >= self._every
        if changed or (due and stage.activity is Activity.TRAINING):
            self._spoken[stage.stage] = self._now()
            self._line(stage.stage, stage_line(stage))

    def _line(self, stage: Stage | str, text: str) -> None:
        self._write(f"[{clock(self._now() - self._start)}] {stage:<8} {text}".rstrip())


def stage_line(stage: StageView) -> str:
    """What a stage is doing, in one line."""
    if stage.activity is Activity.TRAINING:
        parts = [f"training {stage.step}/{stage.total_steps}", stage.headline, stage.speed, stage.eta]
        return "  ".join(part for part in parts if part)
    if stage.activity is not None and stage.progress is not None:
        return f"{stage.doing}: {stage.progress.message}" if stage.progress.message else stage.doing
    text = stage.doing
    if stage.state is StageState.QUEUED and stage.status.attempt > 1:
        text += f" (attempt {stage.status.attempt})"
    return f"{text}: {stage.status.message}" if stage.status.message else text
