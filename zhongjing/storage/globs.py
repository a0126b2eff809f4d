"""Globs over object keys: ``*`` and ``?`` stay inside one segment, ``**`` crosses segments.

Keys are not files: a key may hold any character, and there are no hidden ones.
"""

from __future__ import annotations

import re

_MAGIC = re.compile(r"[*?\[]")


def is_glob(key: str) -> bool:
    """Whether ``key`` has a character that makes it a pattern."""
    return _MAGIC.search(key) is not None


def fixed_folder(key: str) -> str:
    """The leading segments of a pattern that hold no magic: ``a/b/*.json`` gives ``a/b``."""
    fixed: list[str] = []
    for segment in key.split("/")[:-1]:
        if is_glob(segment):
            break
        fixed.append(segment)
    return "/".join(fixed)


def pattern_of(key: str) -> re.Pattern[str]:
    """Compiles a glob into a pattern for ``fullmatch``.

    ``[abc]``, ``[a-z]`` and ``[!abc]`` match one character other than ``/``; an unclosed ``[`` is itself.
    """
    parts: list[str] = []
    position = 0
    while position < len(key):
        character = key[position]
        if key.startswith("**/", position) and (position == 0 or key[position - 1] == "/"):
            parts.append("(?:.*/)?")  # any number of folders, none included
            position += 3
        elif key.startswith("**", position):
            parts.append(".*")
            position += 2
        elif character == "*":
            parts.append("[^/]*")
            position += 1
        elif character == "?":
            parts.append("[^/]")
            position += 1
        elif character == "[" and (end := _class_end(key, position)) > 0:
            inner = key[position + 1 : end]
            negated = inner.startswith("!")
            body = inner[negated:].replace("\\", r"\\").replace("[", r"\[").replace("]", r"\]")
            body = body.replace("^", r"\^").replace("&", r"\&").replace("~", r"\~").replace("|", r"\|")
            parts.append(f"(?!/)[{'^' if negated else ''}{body}]")
            position = end + 1
        else:
            parts.append(re.escape(character))
            position += 1
    return re.compile("".join(parts), re.DOTALL)


def _class_end(key: str, start: int) -> int:
    first = start + 2 if key.startswith("!", start + 1) else start + 1
    return key.find("]", first + 1)
