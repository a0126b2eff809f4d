"""What a check finds."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from zhongjing.codes import Code, machine
from zhongjing.errors import ZhongjingError

SKEW_LIMIT = 300.0  # seconds; S3 refuses signatures that are 15 minutes off
SKEW_NOTED = 30.0


class Status(StrEnum):
    """How a finding is to be taken. Only ``fails`` makes the command fail."""

    FINE = "fine"
    WARN = "warn"
    FAILS = "fails"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report.

    Attributes:
        name: what was looked at, e.g. ``memory``.
        status: how it is to be taken.
        finding: what was found, with numbers and units.
        remedy: what to do; none where all is fine.
        code: name of the catalogue's code; none where all is fine.
    """

    name: str
    status: Status
    finding: str
    remedy: str | None = None
    code: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The form that ``-o json`` prints and that probes send."""
        return asdict(self)


def fine(name: str, finding: str) -> Finding:
    """All is well."""
    return Finding(name, Status.FINE, finding)


def warn(name: str, finding: str, code: Code, remedy: str | None = None) -> Finding:
    """It works, but something should be known; the remedy is the code's unless given."""
    return Finding(name, Status.WARN, finding, remedy or code.remedy, code.name)


def fails(name: str, finding: str, code: Code, remedy: str | None = None) -> Finding:
    """It does not work; the remedy is the code's unless given."""
    return Finding(name, Status.FAILS, finding, remedy or code.remedy, code.name)


def graded(
    name: str,
    finding: str,
    code: Code,
    *,
    bad: bool = False,
    poor: bool = False,
    more: str = "",
    remedy: str | None = None,
) -> Finding:
    """Fails if ``bad``, warns if ``poor``, each with ``more`` added; else fine."""
    if not (bad or poor):
        return fine(name, finding)
    return (fails if bad else warn)(name, finding + more, code, remedy)


def of_error(name: str, error: ZhongjingError) -> Finding:
    """An expected error as a finding."""
    place = f"{error.where}: " if error.where else ""
    return Finding(name, Status.FAILS, f"{place}{error.message}", error.remedy, error.code.name)


def skew(name: str, seconds: float, whose: str, harm: str) -> Finding:
    """Whether this machine's clock is near enough to another's.

    Args:
        name: of the finding.
        seconds: that this machine is ahead.
        whose: the other clock's owner.
        harm: what comes of a clock that is far off.
    """
    off, way = abs(seconds), "ahead of" if seconds > 0 else "behind"
    about = f"this machine's clock is {off:.1f} s {way} {whose}"
    more = f": {harm}" if off > SKEW_LIMIT else ""
    return graded(name, about, machine.WRONG_CLOCK, bad=off > SKEW_LIMIT, poor=off > SKEW_NOTED, more=more)


def gib(size: float) -> str:
    """Bytes as text: ``812 MiB``, ``1.5 GiB``, ``139 GiB``, ``2.4 TiB``."""
    for unit, scale in (("TiB", 2**40), ("GiB", 2**30)):
        if size >= scale:
            value = size / scale
            return f"{value:.1f} {unit}" if value < 10 else f"{value:.0f} {unit}"
    return f"{size / 2**20:.0f} MiB"
