"""Values of a record's fields as texts, and why a record cannot be used.

Reasons of rejection never hold a record's text: they may end up in logs.
"""

from __future__ import annotations

import math
import re

from zhongjing.codes import Code
from zhongjing.codes import data as codes
from zhongjing.data.fields import is_missing
from zhongjing.data.formats import has_undecodable

_MACHINE_WORDS = {"nan", "none", "null"}  # what programs write where there was no answer; 无 is one
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,29}")


class RejectedError(Exception):
    """A record that cannot be used; the reason has none of its text."""

    def __init__(self, reason: str, code: Code = codes.UNUSABLE_RECORD) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


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
        raise RejectedError(f"{what} holds half of a surrogate pair")
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
    """Whether a key may be told: the header of a table without one is text."""
    return _NAME.fullmatch(key) is not None
