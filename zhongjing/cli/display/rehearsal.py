"""What would become of stages and their sources, and single examples as they are trained on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from zhongjing.cli.display.counts import data_table
from zhongjing.cli.display.text import table
from zhongjing.pipeline.prepare import Forecast

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from zhongjing.data.rehearsal import Example, StageRehearsal
    from zhongjing.data.samples import Segment

# Around what is to be learnt; on a terminal it is green besides.
TARGET = ("\u27e6", "\u27e7")
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"


def forecast_lines(forecasts: list[Forecast]) -> list[str]:
    """What becomes of each stage, as a table; where several fields changed, each on a line of its own."""
    rows = [[each.stage.value, each.action, each.reason] for each in forecasts]
    header, *shown = table(["stage", "plan", "why"], rows)
    lines = [header] if forecasts else []
    for forecast, row in zip(forecasts, shown, strict=True):
        lines.append(row)
        lines += [f"{'':10}{change}" for change in forecast.changes if len(forecast.changes) > 1]
    return lines


def forecast_object(forecast: Forecast) -> dict[str, Any]:
    """The same of one stage, for programs."""
    return {
        "stage": forecast.stage.value,
        "action": forecast.action,
        "reason": forecast.reason,
        "key": forecast.key,
        "changes": list(forecast.changes),
    }


def rehearsal_lines(stages: Sequence[StageRehearsal]) -> list[str]:
    """Lengths against each stage's limit, the counts, and warnings; nothing where there are no stages."""
    if not stages:
        return []
    rows = []
    for stage in stages:
        for index, source in enumerate(stage.sources):
            tokens = source.tokens
            numbers = [
                tokens.median,
                tokens.p95,
                tokens.largest,
                source.counts.truncated,
                source.counts.too_long,
            ]
            first = [stage.stage.value, stage.limit.rpartition(".")[2]] if index == 0 else ["", ""]
            rows.append([*first, source.counts.name, *map(str, numbers)])
    header = ["stage", "limit", "records of", "median", "95%", "longest", "cut", "too long"]
    lines = ["lengths in tokens of the template's text, before anything is cut"]
    lines += table(header, rows, right=range(3, 8))
    lines += ["", *data_table({stage.stage: [each.counts for each in stage.sources] for stage in stages})]
    for stage in stages:
        lines += [
            f"{stage.stage:<8} {each.counts.name}: {each.error}" for each in stage.sources if each.error
        ]
        lines += [f"warning: {stage.stage}: {each}" for each in stage.warnings]
    return lines


def example_lines(
    example: Example, tokenizer: PreTrainedTokenizerBase, *, text: bool, color: bool
) -> Iterator[str]:
    """One example: its place, its segments' tokens, and what of them is a target.

    Args:
        example: what is trained on.
        tokenizer: turns tokens into the text that the model sees.
        text: whether the record's text may be shown.
        color: whether targets are green.
    """
    at = example.position
    line = f", line {at.line}" if at.line is not None else ""
    cut = ", cut to the stage's limit" if example.cut else ""
    yield f"{example.source}: {at.uri}, record {at.index + 1}{line}{cut}"
    for index, segment in enumerate(example.segments):
        rank = f", rank {example.ranks[index] + 1} (1 is the best)" if example.ranks is not None else ""
        yield f"  {len(segment.ids)} tokens, {int(segment.target.sum())} of them targets{rank}"
        if text:
            shown = marked(segment, tokenizer, color=color)
            yield from (f"    {part}" for part in shown.split("\n"))


def marked(segment: Segment, tokenizer: PreTrainedTokenizerBase, *, color: bool) -> str:
    """The text of a segment, every run of targets between marks. Control characters are blanked."""
    begin, end = (f"{_GREEN}{TARGET[0]}", f"{TARGET[1]}{_PLAIN}") if color else TARGET
    pieces: list[str] = []
    start = 0
    targets = segment.target.tolist()
    for place in range(1, len(targets) + 1):
        if place < len(targets) and targets[place] == targets[start]:
            continue
        decoded = str(tokenizer.decode(segment.ids[start:place].tolist(), skip_special_tokens=False))
        # What a record holds must not move the cursor.
        clean = "".join(char if char.isprintable() or char == "\n" else " " for char in decoded)
        pieces.append(f"{begin}{clean}{end}" if targets[start] else clean)
        start = place
    return "".join(pieces)
