"""Since when the progress of an attempt has not changed, by this process's clock: a worker's may differ."""

from __future__ import annotations

from dataclasses import dataclass

from zhongjing.storage.progress import Progress


@dataclass
class _Seen:
    """When the progress of an attempt last changed."""

    text: str
    since: float
    step: str
    step_since: float


class Staleness:
    """What was last seen of attempts, by their submission ids."""

    def __init__(self) -> None:
        self._known: dict[str, _Seen] = {}

    def look(self, submission_id: str, progress: Progress | None, now: float) -> tuple[float, float]:
        """Notes what an attempt's progress says now.

        Returns:
            Seconds for which it has not changed, and seconds for which it has made no step.
        """
        text = progress.updated_at if progress is not None else ""
        step = ""
        if progress is not None:
            # A rewritten time proves nothing; a step does, and so does what was done within one.
            done = (progress.step, progress.beats, progress.fraction)
            step = f"{progress.activity} {progress.message} {done}"
        mark = self._known.get(submission_id)
        if mark is None:
            mark = self._known[submission_id] = _Seen(text, now, step, now)
        if mark.text != text:
            mark.text, mark.since = text, now
        if mark.step != step:
            mark.step, mark.step_since = step, now
        return now - mark.since, now - mark.step_since

    def excuse(self, submission_id: str | None, now: float) -> None:
        """Has the time without a step begin anew: something else is waited for."""
        mark = self._known.get(submission_id or "")
        if mark is not None:
            mark.step_since = now

    def forget(self, submission_id: str) -> None:
        """Lets go of an attempt, until it is looked at again."""
        self._known.pop(submission_id, None)
