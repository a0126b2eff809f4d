"""Turns what a command returns or raises into an exit code and a message without a traceback.

=====  =================================================================================================
code   meaning
=====  =================================================================================================
0      what was asked for has succeeded
1      a stage failed or waits for its input, or something unexpected happened
2      bad input: document, option, source, model
3      the backend or the object store cannot be reached
130    interrupted
=====  =================================================================================================

The traceback of a failure is kept in a file (:mod:`zhongjing.cli.errorlog`), which the message names. Bad
input has none: code, place and remedy say all.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import typer

from zhongjing.cli import errorlog
from zhongjing.cli.console import Console, write_line
from zhongjing.cli.options import DEFAULT_WORKDIR
from zhongjing.cli.target import commands_of
from zhongjing.codes import unexpected
from zhongjing.codes.code import BAD_INPUT, FAILED, INTERRUPTED, UNREACHABLE
from zhongjing.codes.command import INVALID_OPTION, MISSING_PACKAGE
from zhongjing.errors import ConfigError, ZhongjingError

__all__ = ["BAD_INPUT", "FAILED", "INTERRUPTED", "OK", "UNREACHABLE", "guarded", "run"]

OK = 0


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
        """What programs read; the traceback's key depends on the command."""
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


def guarded(command: Callable[..., int | None]) -> Callable[..., None]:
    """Wraps a command: it returns its exit code (None is 0) or raises; the shell gets one number.

    The options ``output`` (``json``: the error is printed as one JSON object) and ``workdir`` (where the
    log of an error goes) are read if the command has them.
    """

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        console = Console(json_mode="json" in (kwargs.get("output") or ()))
        try:
            code = command(*args, **kwargs) or OK
        except KeyboardInterrupt:
            code = _interrupted(console)
        except BrokenPipeError:
            _silence_stdout()
            code = OK
        except Exception as error:
            if _is_typer(error):
                raise
            code = report(error, console, kwargs)
        if code != OK:
            raise typer.Exit(code)

    return run


def report(error: Exception, console: Console, options: Mapping[str, Any]) -> int:
    """Tells of the error that ended a command, keeps a failure's traceback; returns the exit code.

    Args:
        error: what ended it.
        console: where to tell.
        options: of the command: the place and the document that remedies speak of.
    """
    workdir = options.get("workdir") or DEFAULT_WORKDIR
    expected = error if isinstance(error, ZhongjingError) else _recognised(error, workdir)
    log = None if _is_bad_input(error) else errorlog.keep(error, workdir)
    trace = str(log) if log is not None else None
    if expected is not None:
        problem, code = problem_of(expected, trace), expected.exit_code
    else:
        kind = type(error).__name__
        message = f"{kind}: {error}" if str(error) else kind
        found = unexpected.UNEXPECTED
        problem, code = Problem(kind, found.name, message, None, found.remedy, trace), found.exit_code
    return _tell(_complete(problem, options), code, console)


def _is_bad_input(error: Exception) -> bool:
    return isinstance(error, ZhongjingError) and error.exit_code == BAD_INPUT


def _complete(problem: Problem, options: Mapping[str, Any]) -> Problem:
    """The problem with the commands that it names made whole."""
    commands = commands_of(options)
    name, _, stage = (options.get("result") or "").partition("/")
    name = options.get("pipeline") or options.get("name") or name or None
    remedy = problem.remedy and commands.complete(problem.remedy, name, stage or None)
    return replace(problem, message=commands.complete(problem.message, name, stage or None), remedy=remedy)


def _tell(problem: Problem, code: int, console: Console) -> int:
    if console.json_mode:
        console.result({**problem.as_dict(), "log": problem.traceback, "exitCode": code})
    for line in problem.lines():
        write_line(sys.stderr, line)
    return code


def _interrupted(console: Console) -> int:
    found = unexpected.INTERRUPTED
    if console.json_mode:
        problem = Problem(found.name, found.name, "interrupted", None, found.remedy)
        console.result({**problem.as_dict(), "log": None, "exitCode": found.exit_code})
    write_line(sys.stderr, "interrupted")
    return found.exit_code


def run(app: typer.Typer, arguments: Sequence[str], program: str) -> int:
    """Runs a command line; returns the exit code.

    Usage errors (an unknown option, a missing argument) are told as all others are.
    """
    token = errorlog.COMMAND_LINE.set([program, *arguments])
    try:
        code = app(args=list(arguments), prog_name=program, standalone_mode=False)
    except typer.Abort:
        return INTERRUPTED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        if not _is_typer(error):
            raise
        return _wrong_usage(error, arguments, program)
    finally:
        errorlog.COMMAND_LINE.reset(token)
    return code if isinstance(code, int) else OK


def _wrong_usage(error: Any, arguments: Sequence[str], program: str) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()  # the help itself
        return BAD_INPUT
    command = context.command_path if context is not None else program
    from zhongjing.config.commands import program as called

    words = command.split(" ")
    remedy = " ".join([called() if words[0] == "zhongjing" else words[0], *words[1:], "--help"])
    problem = problem_of(ConfigError(_message_of(error), code=INVALID_OPTION, remedy=remedy))
    console = Console(json_mode=asks_for_json(arguments))
    code = _tell(problem, INVALID_OPTION.exit_code, console)
    if context is not None and not console.json_mode:
        write_line(sys.stderr, context.get_usage())
    return code


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
    message = str(formatted()) if formatted is not None else str(error)
    return message.replace(": Value error, ", ": ")  # pydantic's words before those of a check


def _recognised(error: Exception, workdir: Path) -> ZhongjingError | None:
    """An error of Python's own that says what is wrong plainly enough; else None."""
    if isinstance(error, ModuleNotFoundError) and (error.name or "").split(".")[0] not in _OWN:
        return ConfigError(
            f"this command needs the package {error.name}, which is not installed", code=MISSING_PACKAGE
        )
    if isinstance(error, OSError):
        from zhongjing.storage.files import disk_error, is_disk_full

        if is_disk_full(error) or isinstance(error, PermissionError):
            named = isinstance(error.filename, str)  # writing to an open file names none
            return disk_error(error, Path(error.filename) if named else workdir)
    return None


_OWN = ("", "zhongjing", "jobs")


def _silence_stdout() -> None:
    # `zhongjing logs | head`: the interpreter would complain again when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
