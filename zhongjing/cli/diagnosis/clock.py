"""How far this machine's clock is from others'. Signatures, tokens and certificates hold for a time."""

from __future__ import annotations

from zhongjing.cli.diagnosis.finding import Finding, fails, fine, warn
from zhongjing.codes import machine

SKEW_LIMIT = 300.0  # seconds; S3 refuses signatures that are 15 minutes off
SKEW_NOTED = 30.0


def judge_skew(name: str, seconds: float, whose: str, harm: str) -> Finding:
    """Near enough to work.

    Args:
        name: of the finding.
        seconds: that this machine is ahead.
        whose: the other clock's owner.
        harm: what comes of a clock that is far off.
    """
    way = "ahead of" if seconds > 0 else "behind"
    about = f"this machine's clock is {abs(seconds):.1f} s {way} {whose}"
    if abs(seconds) > SKEW_LIMIT:
        return fails(name, f"{about}: {harm}", machine.WRONG_CLOCK)
    return warn(name, about, machine.WRONG_CLOCK) if abs(seconds) > SKEW_NOTED else fine(name, about)
