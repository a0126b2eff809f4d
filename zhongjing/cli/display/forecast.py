"""What becomes of each stage of a document that is submitted: a table, and objects for programs."""

from __future__ import annotations

from typing import Any

from zhongjing.cli.display.text import table
from zhongjing.pipeline.prepare import Forecast


def plan_lines(forecasts: list[Forecast]) -> list[str]:
    """The plan as a table; where several fields changed, each on a line of its own."""
    if not forecasts:
        return []
    header, *rows = table(
        ["stage", "plan", "why"], [[each.stage.value, each.action, each.reason] for each in forecasts]
    )
    lines = [header]
    for forecast, row in zip(forecasts, rows, strict=True):
        lines.append(row)
        lines += [f"{'':10}{change}" for change in forecast.changes if len(forecast.changes) > 1]
    return lines


def plan_object(forecast: Forecast) -> dict[str, Any]:
    """A forecast for programs."""
    return {
        "stage": forecast.stage.value,
        "action": forecast.action,
        "reason": forecast.reason,
        "key": forecast.key,
        "changes": list(forecast.changes),
    }
