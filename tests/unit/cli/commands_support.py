"""Parses command lines as the program would, without running anything."""

from __future__ import annotations

import functools
import shlex
from typing import Any

import pytest
import typer

from zhongjing.cli.app import app


@functools.cache
def built() -> Any:
    """The program's commands, built once: that takes longer than a parse."""
    return typer.main.get_command(app)


def parse(line: str, where: str) -> None:
    """Fails the test where a command line is not one of ``zhongjing``'s.

    Args:
        line: begins with ``zhongjing`` or ``python -m zhongjing.submit``.
        where: is told of a failure.
    """
    words = shlex.split(line)
    words = words[: next((at for at, word in enumerate(words) if word in ("|", ">", "<", "&&")), len(words))]
    words = ["submit", *words[3:]] if words[:3] == ["python", "-m", "zhongjing.submit"] else words[1:]
    command: Any = built()
    try:
        while hasattr(command, "commands") and words and not words[0].startswith("-"):
            command, words = command.commands[words[0]], words[1:]
        command.make_context("zhongjing", words, resilient_parsing=False)
    except Exception as error:
        pytest.fail(f"{where}: {line}: {type(error).__name__} {getattr(error, 'message', error)}")
