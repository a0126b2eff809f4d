"""The display of a terminal: one bar a stage, held-out values above them as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from zhongjing.cli.display.counts import News
from zhongjing.cli.display.view import RunView, StageView
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import StageState

if TYPE_CHECKING:
    from rich.console import RenderableType

_STYLES: dict[StageState, str] = {
    StageState.SKIPPED: "dim",
    StageState.SUCCEEDED: "green",
    StageState.FAILED: "red",
    StageState.BLOCKED: "red",
    StageState.WAITING_FOR_INPUT: "yellow",
    StageState.SUSPENDED: "yellow",
    StageState.PENDING: "dim",
}


class LiveDisplay:
    """Redraws a block of bars at the bottom of the terminal.

    Args:
        stream: the terminal.
    """

    def __init__(self, stream: TextIO) -> None:
        self._console = Console(file=stream, highlight=False)
        self._live = Live(console=self._console, refresh_per_second=4, transient=False)
        self._messages: dict[Stage, str] = {}
        self._news = News()
        self._spinners: dict[Stage, Spinner] = {}

    def __enter__(self) -> LiveDisplay:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def note(self, text: str) -> None:
        """A line above the bars."""
        self._console.print(Text(text), soft_wrap=True)

    def update(self, view: RunView) -> None:
        """Redraws."""
        for text in self._news.of_run(view):
            self.note(text)
        for stage in view.stages:
            self._above(stage)
        self._live.update(self._block(view), refresh=True)

    def _above(self, stage: StageView) -> None:
        for text in self._news.of_stage(stage):
            self.note(f"{stage.stage:<8} {text}")
        message = stage.status.message
        if message and message != self._messages.get(stage.stage):
            self._messages[stage.stage] = message
            self.note(f"{stage.stage:<8} {stage.doing}: {message}")

    def _block(self, view: RunView) -> RenderableType:
        grid = Table.grid(padding=(0, 1))
        grid.add_column(no_wrap=True)
        grid.add_column(no_wrap=True)
        grid.add_column(width=24)
        for _ in range(4):
            grid.add_column(no_wrap=True, overflow="ellipsis")
        for stage in view.stages:
            grid.add_row(*self._row(stage))
        return Group(grid)

    def _row(self, stage: StageView) -> list[RenderableType]:
        style = _STYLES.get(stage.state, "bold")
        doing: RenderableType = Text(stage.doing, style=style)
        if stage.state.is_active:
            spinner = self._spinners.setdefault(stage.stage, Spinner("dots"))
            spinner.update(text=Text(stage.doing, style=style))
            doing = spinner
        steps = f"{stage.step}/{stage.total_steps}" if stage.total_steps else ""
        return [
            Text(stage.stage.value, style="bold"),
            doing,
            ProgressBar(total=1.0, completed=stage.fraction, width=24),
            Text(steps),
            Text(stage.headline),
            Text(stage.speed),
            Text(stage.eta),
        ]
