"""What the commands say, and where: results on stdout, and with ``-o json`` everything else on stderr."""

from __future__ import annotations

import codecs
import io
import json
import sys
from collections.abc import Iterable
from typing import Any, TextIO

from zhongjing.pipeline.escapes import without_escapes


class Console:
    """The command's two streams.

    Args:
        json_mode: stdout is kept for one JSON object; what people read goes to stderr.
    """

    def __init__(self, *, json_mode: bool = False) -> None:
        self.json_mode = json_mode

    @property
    def stream(self) -> TextIO:
        """Where people read. Looked up on every use: tests and shells replace the streams."""
        return sys.stderr if self.json_mode else sys.stdout

    @property
    def interactive(self) -> bool:
        """Whether people read on a terminal that can redraw."""
        import os

        return self.stream.isatty() and os.environ.get("TERM", "") != "dumb"

    def say(self, text: str = "") -> None:
        """One line (or several) for people."""
        write_line(self.stream, text)

    def say_lines(self, lines: Iterable[str]) -> None:
        """Lines for people."""
        for line in lines:
            self.say(line)

    def warn(self, text: str) -> None:
        """One line on stderr in either mode."""
        write_line(sys.stderr, text)

    def result(self, value: dict[str, Any]) -> None:
        """The one JSON object of ``-o json``."""
        plain = codecs.lookup(sys.stdout.encoding or "utf-8").name == "utf-8"
        write_line(sys.stdout, json.dumps(value, ensure_ascii=not plain, indent=2, default=str))

    def raw(self, text: str) -> None:
        """Exactly this text on stdout: documents, schemas, log lines; without colours in a pipe."""
        sys.stdout.write(text if sys.stdout.isatty() else without_escapes(text))
        sys.stdout.flush()


def escape_unencodable() -> None:
    """Has this process's streams escape what their encoding lacks, in what is read and in what is written.

    A terminal that is said to be ASCII is taken for UTF-8, as Python itself takes that of the C locale (PEP
    538). In any other encoding an escape stands for what it lacks, or for bytes that are none of it.
    """
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            is_ascii = codecs.lookup(stream.encoding).name == "ascii"
            stream.reconfigure(encoding="utf-8" if is_ascii else None, errors="backslashreplace")


def write_line(stream: TextIO, text: str) -> None:
    """Writes a line at once, also where the terminal's encoding lacks a character.

    Escape sequences, as Ray's words have them, are for terminals only.
    """
    if not stream.isatty():
        text = without_escapes(text)
    try:
        stream.write(f"{text}\n")
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()
