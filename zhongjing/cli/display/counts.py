"""What became of the records of a run's sources, and what is doubtful about its results: lines and tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zhongjing.cli.display.text import filled
from zhongjing.cli.display.view import RunView, StageView
from zhongjing.config.stages import Stage
from zhongjing.pipeline.headline import describe
from zhongjing.storage.manifest import MixtureCounts, SourceCounts, StageManifest, layouts_text, unused_text

# What people call the counts, in the order of the table; docs/data.md explains them.
_COUNTS: tuple[tuple[str, str], ...] = (
    ("read", "read"),
    ("kept", "kept"),
    ("train", "train"),
    ("validation", "held out"),
    ("test", "test"),
    ("truncated", "cut"),
    ("unanswered", "unanswered"),
    ("too_long", "too long"),
    ("duplicates", "duplicate"),
    ("leaks", "leaked"),
    ("tied", "all tie"),
    ("quarantined", "quarantined"),
    ("canaries", "canaries"),
)


class News:
    """What is told once: of a run its dashboard and what holds it up; of a stage its data, doubts, values."""

    def __init__(self) -> None:
        self._dashboard: str | None = None
        self._held_up = ""
        self._told: dict[Stage, set[str]] = {}

    def of_run(self, view: RunView) -> list[str]:
        """Lines of the run as a whole that are new since the last call."""
        lines: list[str | None] = []
        if view.dashboard_url is not None and view.dashboard_url != self._dashboard:
            self._dashboard = view.dashboard_url
            lines += [f"Ray dashboard: {view.dashboard_url}", view.dashboard_login]
        if view.held_up != self._held_up:
            self._held_up = view.held_up
            lines.append(view.held_up)
        return [line for line in lines if line]

    def of_stage(self, stage: StageView) -> list[str]:
        """Lines of a stage that are new since the last call."""
        told = self._told.setdefault(stage.stage, set())
        new = [line for line in _lines(stage) if line not in told]
        told.update(new)
        return new


def _lines(stage: StageView) -> Iterator[str]:
    progress = stage.progress
    if progress is None:
        return
    for counts in progress.sources:
        yield f"data {counts_line(counts)}"
    for group in progress.mixture:
        if group.repeated:
            drawn = f"{group.drawn} an epoch of {group.samples}"
            yield f"mixture {group.name}: {drawn}, {group.repeated} repeated"
    yield from (f"warning: {each}" for each in progress.warnings)
    if progress.validation:
        yield validation_line(stage)


def validation_line(stage: StageView) -> str:
    """``held-out at step 30: loss 5.21``: of the latest evaluation; nothing before the first."""
    progress = stage.progress
    if progress is None or not progress.validation:
        return ""
    at = "" if progress.validation_step is None else f" at step {progress.validation_step}"
    return f"held-out{at}: {describe(stage.stage, progress.validation)}"


def counts_line(counts: SourceCounts) -> str:
    """``dialogues: 342 read, 339 kept, 234 cut, 3 duplicate``."""
    values = counts.model_dump(mode="python", by_alias=False)
    shown = [
        f"{values[field]} {word}"
        for field, word in _COUNTS
        if field in ("read", "kept") or (values[field] and field not in ("train", "validation", "test"))
    ]
    unused = f"; not used: {unused_text(counts.unused)}" if counts.unused else ""
    read = f"; read as {layouts_text(counts.layouts)}" if counts.layouts else ""
    return f"{counts.name}: {', '.join(shown)}{read}{unused}"


def data_table(counts: Mapping[Stage, Sequence[SourceCounts]]) -> list[str]:
    """Counts of every source of every stage; columns of nothing but 0 are left out. Empty without sources."""
    rows = []
    for stage, sources in counts.items():
        for index, source in enumerate(sources):
            values = source.model_dump(mode="python", by_alias=False)
            cells = [str(values[field] or "") for field, _ in _COUNTS]
            rows.append([stage.value if index == 0 else "", source.name, *cells])
    if not rows:
        return []
    header = ["stage", "records of", *(word for _, word in _COUNTS)]
    return filled(header, rows, right=range(2, len(header)))


def count_lines(stages: Sequence[StageView], manifests: Mapping[Stage, StageManifest]) -> list[str]:
    """Tables of records and mixtures, and all warnings: from results, else from what runs."""
    facts = {stage.stage: _facts(stage, manifests.get(stage.stage)) for stage in stages}
    lines = data_table({stage: sources for stage, (sources, _, _) in facts.items() if sources})
    unused = {
        f"not used of {source.name}: {unused_text(source.unused)}"
        for sources, _, _ in facts.values()
        for source in sources
        if source.unused
    }
    lines += sorted(unused)  # a source that several stages read is told of once
    for stage, (_, mixture, _) in facts.items():
        for group in mixture:
            if group.drawn == group.samples:
                continue
            more = f", {group.repeated} of them repeated" if group.repeated else ""
            lines.append(f"{stage:<8} mixture {group.name}: {group.drawn} an epoch of {group.samples}{more}")
    for stage, (_, _, warnings) in facts.items():
        lines += [f"warning: {stage}: {each}" for each in warnings]
    return lines


def count_object(stage: StageView, manifest: StageManifest | None) -> dict[str, Any]:
    """The same of one stage, for programs."""
    sources, mixture, warnings = _facts(stage, manifest)
    return {
        "data": [each.model_dump(mode="json") for each in sources],
        "mixture": [{**each.model_dump(mode="json"), "repeated": each.repeated} for each in mixture],
        "warnings": list(warnings),
    }


def _facts(
    stage: StageView, manifest: StageManifest | None
) -> tuple[Sequence[SourceCounts], Sequence[MixtureCounts], Sequence[str]]:
    if manifest is not None:
        return manifest.sources, manifest.mixture, manifest.warnings
    progress = stage.progress
    return ((), (), ()) if progress is None else (progress.sources, progress.mixture, progress.warnings)
