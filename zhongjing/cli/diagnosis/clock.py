"""The clock: it goes at its pace, and is not behind the files of the package.

How far it is from the object store's stands with the store's checks.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import zhongjing
from zhongjing.cli.diagnosis.finding import Finding, fails, fine
from zhongjing.cli.diagnosis.situation import Situation
from zhongjing.codes import machine

SAMPLE_SECONDS = 1.0
_TOLERANCE = 0.2  # seconds that the two clocks may differ over the sample
_DAY = 86_400.0


@dataclass(frozen=True, slots=True)
class Facts:
    """Two clocks over a sample.

    Attributes:
        now: seconds since the epoch (UTC).
        newest: when the newest of the package's files was written, in seconds since the epoch.
        wall: seconds that the wall clock went on during the sample.
        monotonic: seconds that the monotonic clock went on.
    """

    now: float
    newest: float
    wall: float
    monotonic: float


def check(situation: Situation) -> Iterable[Finding]:
    """Watches the clocks for a second."""
    yield judge(gather())


def gather() -> Facts:
    """Watches the clocks."""
    wall, monotonic = time.time(), time.monotonic()
    time.sleep(SAMPLE_SECONDS)
    return Facts(
        now=time.time(),
        newest=max(file.stat().st_mtime for file in Path(zhongjing.__file__).parent.glob("*.py")),
        wall=time.time() - wall,
        monotonic=time.monotonic() - monotonic,
    )


def judge(facts: Facts) -> Finding:
    """A clock that can be right."""
    about = f"{datetime.fromtimestamp(facts.now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if facts.now < facts.newest - _DAY:
        late = (facts.newest - facts.now) / _DAY
        return fails(
            "clock", f"{about}: {late:.0f} days before this package was written", machine.WRONG_CLOCK
        )
    if abs(facts.wall - facts.monotonic) > _TOLERANCE:
        return fails(
            "clock",
            f"{about}: it went {facts.wall:.2f} s while {facts.monotonic:.2f} s passed",
            machine.WRONG_CLOCK,
        )
    return fine("clock", f"{about}, at the pace of the monotonic clock")
