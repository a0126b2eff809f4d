"""What ``jobs/<stage>.py`` calls: sets the process up before libraries that read its environment load."""

from __future__ import annotations

from collections.abc import Sequence

from zhongjing.config.stages import Stage
from zhongjing.train.job.scratch import keep_downloads_in_scratch


def main(stage: Stage, arguments: Sequence[str] | None = None) -> int:
    """Runs one attempt of a stage. Returns the exit status: 0 done or suspended, 1 failed."""
    keep_downloads_in_scratch()
    from zhongjing.train.job.driver import main as run

    return run(stage, arguments)
