"""The text of a log that comes as one JSON string: read piece by piece, whatever its size.

The Jobs API answers ``{"logs": "..."}`` with the whole log, which of a job of days may be larger than the
memory of the process that asks.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator

LINE_CHARACTERS = 2**20
"""Longer lines (a progress bar without line ends) come in parts of this length."""

_START = re.compile(r'\s*\{\s*"logs"\s*:\s*"')
_NOTHING = re.compile(r'\s*\{\s*"logs"\s*:\s*null')
# What can be decoded by itself: no escape is cut, nor one half of a pair that stands for one character.
_WHOLE = re.compile(
    r"""(?:
        [^"\\]+
      | \\[^u]
      | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
      | \\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=[^\\])|(?=\\[^u]))
    )*""",
    re.VERBOSE,
)
_OPENING = 1000  # characters within which the string begins


def log_lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Lines of the log in an answer of the Jobs API. Holds a chunk and a line at most.

    Raises:
        ValueError: the body is no such answer, or ends before the log does.
    """
    rest = ""
    for text in _texts(chunks):
        *lines, rest = (rest + text).split("\n")
        yield from lines
        while len(rest) > LINE_CHARACTERS:
            yield rest[:LINE_CHARACTERS]
            rest = rest[LINE_CHARACTERS:]
    if rest:
        yield rest


def _texts(chunks: Iterable[bytes]) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest, inside = "", False
    for chunk in chunks:
        rest += decoder.decode(chunk)
        if not inside:
            start = _START.match(rest)
            if start is None:
                if _NOTHING.match(rest):
                    return
                if len(rest) > _OPENING:
                    break
                continue
            rest, inside = rest[start.end() :], True
        found = _WHOLE.match(rest)
        assert found is not None, "it matches nothing, too"
        yield str(json.loads(f'"{found[0]}"', strict=False))
        rest = rest[found.end() :]
        if rest.startswith('"'):
            return
    raise ValueError("this is not a whole log of the Jobs API")
