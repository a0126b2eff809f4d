"""Says plainly that this Python is not the one that Zhongjing is installed in. Imports nothing of it."""

from __future__ import annotations

import sys
from pathlib import Path

_BAD_INPUT = 2


def leave(error: ModuleNotFoundError) -> None:
    """Ends the process over a package that a command line cannot do without.

    Raises:
        ModuleNotFoundError: it is a module of Zhongjing itself: a defect, not a matter of the environment.
    """
    package = (error.name or "").partition(".")[0]
    if package in ("zhongjing", "jobs", ""):
        raise error
    made = Path(__file__).resolve().parents[1] / ".venv" / "bin" / "python"
    remedy = (
        f"use the environment that make has made: {made}, or first: . {made.parent / 'activate'}"
        if made.is_file()
        else "make the environment: make setup; or pip install zhongjing"
    )
    sys.stderr.write(
        f"error[MissingPackage]: {sys.executable} has no package {package}, which zhongjing needs\n"
        f"  remedy: {remedy}\n"
    )
    raise SystemExit(_BAD_INPUT)
