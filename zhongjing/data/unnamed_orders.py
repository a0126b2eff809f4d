"""Orders of answers under keys that nothing names. To pass them over would train on another order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zhongjing.codes import data as codes
from zhongjing.data.fields import Fields, is_name, number_of, wrapped
from zhongjing.data.records import RejectedError
from zhongjing.data.turns import listed

FIRST_BEST = "the first best"
"""Ends the layout of a record whose list of answers gives their order itself."""
LIKE_RANKS = " (each number from 1 once, as ranks are)"
"""Ends the layout of a record whose scores may be ranks."""
_NAMED_RANKS = re.compile(r"(rank|ranks|ranking|排序|排名|名次|次序)$")
# Of an answer that is a mapping: `id`, `answer_id`, `modelId` name it and order nothing.
_IDENTIFIER = re.compile(r"(^|_)id$|[a-z]Id$|^ID$")
# Of a mapping: the keys by which answers are called, `A`, `甲`, `answer_1`, `response b`.
_LABEL = re.compile(r"(.*[_\s-])?\w|.*\d")
_BETWEEN = re.compile(r"\s*[,，、;；>＞]\s*|\s+")


def check_first_best(record: Fields, count: int, listing: Sequence[str], ignored: Sequence[str]) -> None:
    """Refuses a record with an unused value that looks like an order of its answers.

    Args:
        record: one whose list of answers was taken to be in order.
        count: of the answers.
        listing: the keys that the list may have: numbers in its elements count as well.
        ignored: paths that the source says are no order.

    Raises:
        RejectedError: a list of numbers (or of letters) as long as the answers was not used.
    """
    path = next((each for each in _orders(record, "", count, listing) if each not in ignored), None)
    if path is not None:
        name = path if is_name(path) else "a list of numbers"
        raise RejectedError(
            f"{name} beside the answers may say their order: name it as columns.ranks (1 is the best) or "
            "columns.scores (the highest is the best), beside columns.answers; if it says neither, "
            "name it in columns.ignore",
            codes.AMBIGUOUS_RECORD,
        )


def like_ranks(scores: object, name: str) -> bool:
    """Whether the scores of a record's answers are the numbers from 1 to that of the answers, each once.

    Raises:
        RejectedError: they are, and their key is named after ranks: the order would be the opposite.
    """
    if not isinstance(scores, list) or len(scores) < 2 or not all(map(_is_number, scores)):
        return False
    if not _counts_from(1, scores):
        return False
    if _NAMED_RANKS.search(name.lower()):
        raise RejectedError(
            f"columns.scores names {name}, which holds ranks: as scores the worst answer would be the best; "
            f"write columns.ranks: {name}",
            codes.AMBIGUOUS_RECORD,
        )
    return True


def _orders(value: object, path: str, count: int, listing: Sequence[str]) -> Iterator[str]:
    """Paths, as `columns` has them, of unused values that give each answer a number."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, list) and is_order(item, count):
                yield path
            yield from _orders(item, path, count, listing)
        items = [item for item in value if isinstance(item, Fields)]
        if path in listing and len(items) == count > 1:
            for name, _ in items[0].left:
                if _IDENTIFIER.search(str(name)):
                    continue
                if all(name in item and _is_number(item.peek(name)) for item in items):
                    yield f"{path}.{name}"
    elif isinstance(value, Fields):
        for name, held in value.left:
            below = f"{path}.{name}" if path else str(name)
            if is_order(held, count):
                yield below
            else:
                yield from _orders(wrapped(held), below, count, listing)
        for name, held in value.taken:
            yield from _orders(held, f"{path}.{name}" if path else str(name), count, listing)


def is_order(value: object, count: int) -> bool:
    """Whether a value gives each of the answers a number, or names each by its letter."""
    value = listed(value)
    if isinstance(value, str) and _BETWEEN.search(value.strip()):
        value = [part for part in _BETWEEN.split(value.strip().strip("[]()")) if part]
        if all(map(_is_number, value)) and not _is_ranks(value):
            return False  # "120 80" is a blood pressure
    if isinstance(value, Mapping):
        # {"A": 2, "B": 1} is about the answers, {"age": 40, "weight": 60} is not.
        labelled = all(_LABEL.fullmatch(str(key)) for key in value)
        value = list(value.values())
        if not labelled and not (all(map(_is_number, value)) and _is_ranks(value)):
            return False
    if not isinstance(value, list) or len(value) != count or count < 2:
        return False
    letters = {chr(ord("A") + place) for place in range(count)}
    return all(map(_is_number, value)) or {str(one).strip().upper() for one in value} == letters


def _is_ranks(values: Sequence[Any]) -> bool:
    return _counts_from(0, values) or _counts_from(1, values)


def _counts_from(first: int, values: Sequence[Any]) -> bool:
    """Whether numbers, also written as texts, are those from ``first`` on, each once, in any order."""
    return sorted(map(float, values)) == list(range(first, first + len(values)))


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, bool) or number_of(value, "a number") is not None
    except RejectedError:
        return False
