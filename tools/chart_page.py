"""helm/README.md: every value of the chart with its default and what stands above it in values.yaml.

Every key is listed that has a value, and every one that has a comment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

VALUES_FILE = "helm/values.yaml"
CHART_PAGE_FILE = "helm/README.md"

_KEY = re.compile(r"^(?P<indent> *)(?P<key>[A-Za-z][\w.-]*):(?: |$)")
_OPENING = """\
# The chart's values

Generated from `values.yaml` by `make generated`; do not edit. How to install, size, watch and upgrade a
release stands in [docs/operations.md](../docs/operations.md).

"""

Path_ = tuple[str, ...]


def chart_page(text: str) -> str:
    """The page.

    Args:
        text: of values.yaml.
    """
    values: dict[str, Any] = yaml.safe_load(text)
    comments = _comments(text)
    parts = [_OPENING, _header(text)]
    for name, value in values.items():
        parts.append(f"\n## {name}\n\n")
        if said := comments.get((name,)):
            parts.append(f"{said}\n\n")
        if not isinstance(value, dict) or not value:
            parts.append(f"Default: {_literal(value)}\n")
            continue
        parts.append("| value | default | |\n| --- | --- | --- |\n")
        for path, default in _rows((name,), value, comments):
            said = comments.get(path, "") if len(path) > 1 else ""
            cells = (f"`{'.'.join(path)}`", default, said)
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return "".join(parts)


def _header(text: str) -> str:
    """The comment at the top of the file, which is about all of them."""
    first = text.partition("\n\n")[0].splitlines()
    return " ".join(line.removeprefix("#").strip() for line in first) + "\n"


def _rows(path: Path_, value: Any, comments: dict[Path_, str]) -> Iterator[tuple[Path_, str]]:
    """Keys with a value, and those that have a word of their own; the default as text."""
    if not isinstance(value, dict) or not value:
        yield path, _literal(value)
        return
    if len(path) > 1 and path in comments:
        yield path, ""
    for key, inner in value.items():
        yield from _rows((*path, str(key)), inner, comments)


def _literal(value: Any) -> str:
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _comments(text: str) -> dict[Path_, str]:
    """What stands above each key, as one line."""
    found: dict[Path_, str] = {}
    above: list[str] = []
    open_keys: list[tuple[int, str]] = []
    for line in text.splitlines():
        bare = line.strip()
        if bare.startswith("#"):
            above.append(bare.removeprefix("#").strip().removeprefix("-- "))
            continue
        key = _KEY.match(line)
        if key is not None:
            indent = len(key["indent"])
            open_keys = [each for each in open_keys if each[0] < indent]
            open_keys.append((indent, key["key"]))
            if above:
                found[tuple(name for _, name in open_keys)] = " ".join(above)
        above = []
    return found
