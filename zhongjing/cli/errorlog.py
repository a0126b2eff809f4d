"""Where tracebacks are kept: a small file for each error, the newest of them only, for the owner's eyes.

In the workdir's ``logs`` if the workdir exists, else in ``${XDG_STATE_HOME:-~/.local/state}/zhongjing/logs``,
else in the temporary folder. No workdir is ever made for it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path

KEPT = 20  # files in a folder
_ABANDONED_SECONDS = 60.0  # a file that was being written so long ago never will be

COMMAND_LINE: ContextVar[Sequence[str] | None] = ContextVar("COMMAND_LINE", default=None)
"""The command line that runs; none: the process's own."""


def keep(error: BaseException, workdir: Path) -> Path | None:
    """Writes the traceback of ``error``, with all that led to it, to a file of its own.

    Args:
        error: what ended the command.
        workdir: of the command, whether it exists or not.

    Returns:
        The file, or None if nothing can be written anywhere.
    """
    from zhongjing.storage.files import write_private

    now = datetime.now(UTC)
    text = _describe(error, now).encode(errors="backslashreplace")
    own = [workdir.resolve() / "logs"] if workdir.is_dir() else []
    for folder in (*own, *stray_folders()):
        file = folder / f"error-{now:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.log"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_private(file, text)
        except OSError:
            continue  # a disk that is full, or not ours to write, may be the very error
        _prune(folder)
        return file
    return None


def stray_folders() -> Iterator[Path]:
    """Where tracebacks lie that belong to no workdir; the folders may not exist."""
    state = Path(os.environ.get("XDG_STATE_HOME", ""))
    if state.is_absolute():  # the standard wants others ignored
        yield state / "zhongjing" / "logs"
    else:
        with contextlib.suppress(RuntimeError):  # no home
            yield Path("~/.local/state").expanduser() / "zhongjing" / "logs"
    # Shared with others: the folder bears the user's number, so that users do not share it.
    yield Path(tempfile.gettempdir()) / f"zhongjing-{os.getuid()}" / "logs"


def _describe(error: BaseException, now: datetime) -> str:
    import traceback

    from zhongjing import __version__

    folder = "(removed)"
    with contextlib.suppress(OSError):
        folder = str(Path.cwd())
    head = {
        "time": now.isoformat(timespec="seconds"),
        "version": f"zhongjing {__version__}, Python {platform.python_version()}, {platform.platform()}",
        "command": shlex.join(COMMAND_LINE.get() or sys.argv),
        "folder": folder,
        "error": f"{type(error).__name__} {getattr(error, 'code', '')}".strip(),
    }
    lines = [f"{name}: {value}\n" for name, value in head.items()]
    return "".join([*lines, "\n", *traceback.format_exception(error)])


def _prune(folder: Path) -> None:
    """Removes all but the newest files; others may do the same at the same time."""
    with contextlib.suppress(OSError):
        names = sorted(folder.glob("error-*.log"))  # the time stands first in the name
        old = time.time() - _ABANDONED_SECONDS
        abandoned = [file for file in folder.glob(".error-*.partial") if file.stat().st_mtime < old]
        for file in [*names[:-KEPT], *abandoned]:
            file.unlink(missing_ok=True)
