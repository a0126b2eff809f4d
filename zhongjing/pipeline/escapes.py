"""Control sequences of terminals: Ray paints what it says, also what ends up in files and conditions."""

from __future__ import annotations

import re

# ECMA-48: CSI sequences (colours, cursor), OSC strings (titles, links), two-character escapes.
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")


def without_escapes(text: str) -> str:
    """The text as a terminal would show it, without colours and movements of the cursor."""
    return _SEQUENCE.sub("", text) if "\x1b" in text else text
