"""The Markdown tables of a run."""

from __future__ import annotations

from collections.abc import Sequence

from tests.faults.checks import Comparison
from tests.faults.harness import Blow


def blow_table(blows: Sequence[Blow]) -> str:
    """One line a kill."""
    head = ["#", "moment", "victim", "was", "attempt", "checkpoint", "resumed at", "seconds", "what happened"]
    rows = [
        [
            str(blow.strike.number),
            blow.strike.moment,
            blow.victim,
            f"{blow.activity} {blow.step}",
            f"{blow.attempt_before} -> {blow.attempt_after}",
            str(blow.checkpoint),
            "-" if blow.resumed is None or blow.attempt_after == blow.attempt_before else str(blow.resumed),
            "-" if blow.seconds is None else f"{blow.seconds:.0f}",
            _went(blow),
        ]
        for blow in blows
    ]
    return _table(head, rows)


def comparison_table(compared: Sequence[Comparison]) -> str:
    """One line a stage: the figures of both runs."""
    rows = [
        [
            each.stage.value,
            name,
            repr(each.undisturbed[name]),
            repr(each.disturbed.get(name)),
            str(each.attempts),
            "equal" if each.same_weights else "differ",
        ]
        for each in compared
        for name in sorted(each.undisturbed)
    ]
    return _table(["stage", "held-out", "undisturbed", "disturbed", "attempts", "files of the result"], rows)


def _went(blow: Blow) -> str:
    if blow.problems:
        return "; ".join(f"FAILED: {text}" for text in blow.problems)
    what = "went on" if blow.attempt_after == blow.attempt_before else "resumed"
    codes = ", ".join(str(code) for code in blow.given_up)
    return f"{what}; no retries were left, submit ended with {codes} and was given again" if codes else what


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
