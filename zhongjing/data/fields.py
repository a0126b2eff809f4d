"""A raw record that knows which of its values were used, so that what is left out can be told.

Readers of layouts take a value by ``fields[name]`` or ``fields.get(name)``: that says that it goes into the
record. ``name in fields`` and ``fields.peek(name)`` only look. :func:`unused_in` tells what was not taken.
Reasons of rejection never hold a record's text: they may end up in logs.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from zhongjing.data.records import RejectedError, has_undecodable
from zhongjing.storage.manifest import Unused

_NAMES = 64  # told by name; records keyed by numbers of their own have no end of names
_LONGEST_NAME = 60  # characters; a longer one is a text that took a name's place
OTHER_KEYS = "other keys"
_MISSING = {"", "nan", "none", "null", "n/a", "无"}
_LONGEST_MISSING = max(map(len, _MISSING))
_MACHINE_WORDS = {"nan", "none", "null"}  # what programs write where there was no answer; 无 is one
# Of any script, but no sentence and no number.
_NAME = re.compile(r"(?!\d+$)[\w(（][\w .()（）/-]{0,59}")
_SENTENCE = re.compile(
    r"[我你您她吗呢吧了啊]|(?<!其)他|怎么|怎样|什么|如何|为何|多少|能否|可以|(?:\w+ +){4}\w"
)


class Fields(Mapping[str, object]):
    """A mapping whose values count as used once they are taken.

    Mappings inside it, also those in lists, come out as :class:`Fields`: their values are used one by one.

    Args:
        value: the record as its format gives it.
    """

    __slots__ = ("_taken", "_value")

    def __init__(self, value: Mapping[Any, object]) -> None:
        self._value = value
        self._taken: dict[str, object] = {}

    def __getitem__(self, name: str) -> object:
        if name not in self._taken:
            self._taken[name] = wrapped(self._value[name])
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in self._value

    def __iter__(self) -> Iterator[str]:
        return iter(self._value)

    def __len__(self) -> int:
        return len(self._value)

    def take(self, name: str, read: Callable[[object], object]) -> object:
        """The value as ``read`` understands it: a list that stands as text is used part by part."""
        self._taken[name] = read(self[name])
        return self._taken[name]

    def peek(self, name: str, default: object = None) -> object:
        """The value as its format gives it; looking does not use it."""
        return self._value.get(name, default)

    @property
    def left(self) -> list[tuple[str, object]]:
        """What was not taken, as its format gives it; looking does not use it."""
        return [(name, held) for name, held in self._value.items() if name not in self._taken]

    @property
    def taken(self) -> list[tuple[str, object]]:
        """What was taken, as it was understood."""
        return list(self._taken.items())

    @property
    def names(self) -> frozenset[str]:
        """All keys; looking does not use them."""
        return frozenset(self._value)

    def present(self, names: Iterable[str]) -> list[str]:
        """Those of the names that are there; looking does not use them."""
        return [name for name in names if name in self._value]

    def forget(self) -> None:
        """Nothing counts as used any more: another reader begins anew."""
        self._taken.clear()


def wrapped(value: object) -> object:
    """The value with the mappings in it as :class:`Fields`."""
    if isinstance(value, str | Fields):
        return value
    if isinstance(value, Mapping):
        return Fields(value)
    if isinstance(value, list) and any(isinstance(item, Mapping | list) for item in value):
        return [wrapped(item) for item in value]
    return value


def unused_in(value: object) -> dict[str, int]:
    """Characters of what was not taken of a wrapped record, by path: ``options``, ``messages[].weight``."""
    found: dict[str, int] = {}
    _collect(value, "", found)
    return found


def is_missing(value: object) -> bool:
    """Whether a value says nothing: empty, not a number, or a word for it, as tables have them."""
    if isinstance(value, str):
        text = value.strip()
        return len(text) <= _LONGEST_MISSING and text.lower() in _MISSING
    if isinstance(value, list):
        return not value or (len(value) == 1 and is_missing(value[0]))
    return value is None or (isinstance(value, float) and math.isnan(value))


def text_of(value: object, what: str) -> str:
    """A text or a list of one text, stripped.

    Raises:
        RejectedError: it is none, or an empty one; ``what`` names it.
    """
    if isinstance(value, list):
        if len(value) != 1:
            raise RejectedError(f"{what} is a list of {len(value)} elements, one is expected")
        value = value[0]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        raise RejectedError(f"{what} is missing")
    if not isinstance(value, str):
        raise RejectedError(f"{what} is not a text")
    stripped = value.strip().lstrip("\ufeff")
    if not stripped:
        raise RejectedError(f"{what} is empty")
    if has_undecodable(stripped):
        raise RejectedError(f"{what} contains half of a surrogate pair")
    return stripped


def answer_of(value: object, what: str = "the answer") -> str:
    """As :func:`text_of`; what a program writes for nothing (``nan``) is no answer.

    Raises:
        RejectedError: it is missing.
    """
    text = text_of(value, what)
    if text.lower() in _MACHINE_WORDS:
        raise RejectedError(f"{what} is missing")
    return text


def label_of(value: object) -> str | None:
    """A short text such as a department, or None."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.strip() if isinstance(value, str) and not is_missing(value) else None


def number_of(value: object, what: str) -> float:
    """A finite number, also one that is written as a text.

    Raises:
        RejectedError: it is none; ``what`` names it.
    """
    try:
        number = (
            float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        )
    except ValueError:
        number = None
    if number is None or not math.isfinite(number):
        raise RejectedError(f"{what} is not a number")
    return number


def is_name(key: str) -> bool:
    """Whether a key may be told: the first line of a table without a header is text."""
    return _NAME.fullmatch(key) is not None and _SENTENCE.search(key) is None


class UnusedKeys:
    """What records of a source held that went into none: by path, records and characters."""

    def __init__(self) -> None:
        self._records: Counter[str] = Counter()
        self._characters: Counter[str] = Counter()

    def add(self, unused: Mapping[str, int]) -> None:
        """Counts what one record left over."""
        if not unused:
            return
        told: Counter[str] = Counter()
        for path, characters in unused.items():
            known = path in self._records or len(self._records) < _NAMES
            told[path if known and len(path) <= _LONGEST_NAME else OTHER_KEYS] += characters
        for path, characters in told.items():
            self._records[path] += 1
            self._characters[path] += characters

    def report(self) -> dict[str, Unused]:
        """What was left out, the most characters first."""
        paths = sorted(self._records, key=lambda path: (-self._characters[path], path))
        return {
            path: Unused(records=self._records[path], characters=self._characters[path]) for path in paths
        }


def _collect(value: object, path: str, found: dict[str, int]) -> None:
    if isinstance(value, list):
        for item in value:
            _collect(item, f"{path}[]", found)
    elif isinstance(value, Fields):
        for name, held in value._value.items():
            if name in value._taken:
                taken = value._taken[name]
                if not isinstance(taken, str):
                    _collect(taken, f"{path}.{name}" if path else str(name), found)
            elif size := _characters(held):
                below = f"{path}.{name}" if path else str(name)
                found[below] = found.get(below, 0) + size


def _characters(value: object) -> int:
    """Characters of the texts and numbers in a value; 0 where it says nothing."""
    if is_missing(value):
        return 0
    if isinstance(value, str):
        return len(value.strip())
    if isinstance(value, Mapping):
        return sum(map(_characters, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_characters, value))
    return len(str(value))
