"""Turns what a command returns or raises into an exit code and a message without a traceback.

=====  =================================================================================================
code   meaning
=====  =================================================================================================
0      what was asked for has succeeded
1      a stage failed or waits for its input, or something unexpected happened (traceback in a log file)
2      bad input: document, option, source, model
3      the backend or the object store cannot be reached
130    interrupted
=====  =================================================================================================
"""

from __future__ import annotations

import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from zhongjing.cli.console import Console, write_line
from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.codes.command import INVALID_OPTION, MISSING_PACKAGE
from zhongjing.errors import ConfigError, ZhongjingError

OK = 0
FAILED = 1
BAD_INPUT = 2
UNREACHABLE = 3
INTERRUPTED = 130


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Wraps a command: it returns its exit code (None is 0) or raises; the shell gets one number.

    The options ``output`` (``json``: the error is printed as one JSON object) and ``workdir`` (where the
    log of an unexpected error goes) are read if the command has them.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        console = Console(json_mode=kwargs.get("output") == "json")
        try:
            code = command(*args, **kwargs) or OK
        except ZhongjingError as error:
            code = report(error, console)
        except KeyboardInterrupt:
            write_line(sys.stderr, "interrupted")
            code = INTERRUPTED
        except BrokenPipeError:
            _silence_stdout()
            code = OK
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("", "zhongjing", "jobs"):
                code = report_unexpected(error, console, kwargs.get("workdir"))
            else:
                code = report(_missing_package(error), console)
        except Exception as error:
            if _is_typer(error):
                raise
            code = report_unexpected(error, console, kwargs.get("workdir"))
        if code != OK:
            raise typer.Exit(code)

    return run


def report(error: ZhongjingError, console: Console) -> int:
    """Prints an expected error; returns its exit code."""
    if console.json_mode:
        console.result(error.as_dict())
    write_line(sys.stderr, f"error: {error}")
    return error.exit_code


def report_unexpected(error: BaseException, console: Console, workdir: Path | None) -> int:
    """Writes the traceback to a file and prints where; returns 1."""
    log = write_traceback(error, workdir)
    if console.json_mode:
        console.result(
            {
                "error": type(error).__name__,
                "message": str(error),
                "where": None,
                "remedy": None,
                "log": str(log),
            }
        )
    write_line(sys.stderr, f"error: {type(error).__name__}: {error}")
    write_line(sys.stderr, f"  this is a defect of Zhongjing; the traceback is in {log}")
    return FAILED


def write_traceback(error: BaseException, workdir: Path | None) -> Path:
    """Writes ``error``'s traceback below the workdir (else into the temporary folder); returns the file."""
    import traceback

    text = "".join(traceback.format_exception(error))
    name = f"error-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{os.getpid()}.log"
    folder = workdir or DEFAULT_WORKDIR
    if folder.is_dir():
        try:
            (folder / "logs").mkdir(exist_ok=True)
            file = (folder / "logs" / name).resolve()
            file.write_text(text, encoding="utf-8")
        except OSError:
            pass  # a full or read-only disk may be the very error
        else:
            return file
    file = Path(tempfile.gettempdir()) / f"zhongjing-{name}"
    file.write_text(text, encoding="utf-8")
    return file


def run(app: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Runs a command line; returns the exit code.

    Usage errors (an unknown option, a missing argument) become 2, and with ``-o json`` one JSON object.
    """
    try:
        code = app(args=list(arguments), prog_name=program, standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if not _is_typer(error):
            raise
        if asks_for_json(arguments):
            problem = ConfigError(_message_of(error), code=INVALID_OPTION, remedy=f"{program} --help")
            return report(problem, Console(json_mode=True))
        error.show()  # type: ignore[attr-defined]
        return int(getattr(error, "exit_code", BAD_INPUT))
    return code if isinstance(code, int) else OK


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a command line that could not be parsed wanted JSON."""
    joined = " ".join(arguments)
    return any(
        f" {form} " in f" {joined} " for form in ("-o json", "-ojson", "--output json", "--output=json")
    )


def _is_typer(error: Exception) -> bool:
    # Typer before 0.2x raised click's exceptions, later ones its own copy: both can show themselves.
    return isinstance(error, typer.Exit | typer.Abort) or (
        hasattr(error, "exit_code") and hasattr(error, "format_message") and hasattr(error, "show")
    )


def _message_of(error: Exception) -> str:
    formatted = getattr(error, "format_message", None)
    return str(formatted()) if formatted is not None else str(error)


def _missing_package(error: ModuleNotFoundError) -> ConfigError:
    return ConfigError(
        f"this command needs the package {error.name}, which is not installed",
        code=MISSING_PACKAGE,
    )


def _silence_stdout() -> None:
    # `zhongjing logs | head`: the interpreter would complain again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
