"""An error as the command line tells it, one form for all: lines for people, keys for programs."""

from __future__ import annotations

from dataclasses import dataclass

from zhongjing.errors import ZhongjingError


@dataclass(frozen=True)
class Problem:
    """What is told of an error.

    Args:
        error: name of its class, for programs.
        code: name of its code, for people and programs (docs/troubleshooting.md has a section for each).
        message: what went wrong; may have several lines.
        where: the place.
        remedy: what to do about it.
        traceback: path or URI of a file with the traceback.
    """

    error: str
    code: str
    message: str
    where: str | None = None
    remedy: str | None = None
    traceback: str | None = None

    def lines(self) -> list[str]:
        """What people read."""
        text = f"{self.where}: {self.message}" if self.where else self.message
        shown = [f"error[{self.code}]: {text}"]
        if self.remedy:
            shown.append(f"  remedy: {self.remedy}")
        if self.traceback:
            shown.append(f"  traceback: {self.traceback}")
        return shown

    def as_dict(self) -> dict[str, str | None]:
        """What programs read; the traceback's key depends on who tells of the error."""
        return {
            "error": self.error,
            "code": self.code,
            "message": self.message,
            "where": self.where,
            "remedy": self.remedy,
        }


def problem_of(error: ZhongjingError, traceback: str | None = None) -> Problem:
    """What is told of an expected error."""
    return Problem(type(error).__name__, error.code.name, error.message, error.where, error.remedy, traceback)
