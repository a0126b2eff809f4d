"""Where a JSON value ends, also one that is malformed."""

from __future__ import annotations

import json
import re

_STRUCTURE = re.compile(r'["\[\]{}]')
_STRING_END = re.compile(r'[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_DECODER = json.JSONDecoder()


def value_end(data: str, start: int) -> int | None:
    """End of the object, array or string at ``start``. First by the C decoder, else by its brackets."""
    try:
        return _DECODER.raw_decode(data, start)[1]
    except (ValueError, RecursionError):
        pass
    depth, position = 0, start
    while True:
        match = _STRUCTURE.search(data, position)
        if match is None:
            return None
        position = match.end()
        mark = match.group()
        if mark == '"':
            string = _STRING_END.match(data, position)
            if string is None:
                return None
            position = string.end()
        else:
            depth += 1 if mark in "[{" else -1
        if depth <= 0:
            return position
