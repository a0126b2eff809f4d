"""Keys of records that no layout is known for, and what to write under ``columns`` for them."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache

from zhongjing.config.sources import Columns, Kind
from zhongjing.data import published_keys as keys
from zhongjing.data.fields import is_name

_KNOWN = {
    *(*keys.INSTRUCTIONS, *keys.CONTEXTS, *keys.QUESTIONS, *keys.INPUTS, *keys.OPTIONS, *keys.SYSTEMS),
    *(*keys.TURN_LISTS, *keys.ANSWERS, *keys.RANKED, *keys.RANKS, *keys.SCORES, *keys.TEXTS),
    *(*keys.DEPARTMENTS, *keys.VERDICTS, "history"),
}
_SHOWN = 12
_LONGEST_SHOWN = 20  # characters
_UNKNOWN = "..."
# What keys of each field are often called, the surest first.
_CALLED = {
    "prompt": ("问题", "提问", "主诉", "问", "question", "query", "prompt", "ask", "症状", "描述", "^q$"),
    "response": (
        *("答复", "回复", "回答", "答", "response", "answer", "reply", "output"),
        *("建议", "意见", "^a$"),
    ),
    "answers": ("候选", "回答", "答", "answers", "responses", "candidates"),
    "ranks": ("排序", "排名", "名次", "rank"),
    "scores": ("评分", "打分", "得分", "score", "rating"),
    "text": ("正文", "全文", "内容", "病历", "text", "content"),
    "messages": ("对话", "聊天", "messages", "conversation", "dialog"),
}


def key_names(names: Iterable[str]) -> str:
    """The keys, in brackets; empty where one is no name: the header of a table without one is text."""
    found = sorted(map(str, names))
    if not found or not all(map(is_name, found)):
        return ""
    shown = [name if len(name) <= _LONGEST_SHOWN else f"{name[: _LONGEST_SHOWN - 1]}…" for name in found]
    return f" ({', '.join(shown[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''})"


def columns_for(names: Collection[str], kind: Kind) -> str:
    """A line for the source that names the keys, as far as their names tell what they hold; else empty."""
    return _columns_for(tuple(sorted(map(str, names))), kind)


@lru_cache(maxsize=256)
def _columns_for(names: tuple[str, ...], kind: Kind) -> str:
    if not names or not all(map(is_name, names)):
        return ""
    guessed = {field: _guess(field, names) for field in _CALLED}
    fields: tuple[str, ...] = ("prompt", "response")
    found = {field for field, name in guessed.items() if name is not None}
    if kind is Kind.RANKING:
        order = tuple(field for field in ("ranks", "scores") if guessed[field] is not None)
        fields = ("prompt", "answers", *(order or ("ranks",))[:1])
    elif kind is Kind.PROMPTS:
        fields = ("prompt",)
    elif "messages" in found and not found.issuperset(fields):
        fields = ("messages",)
    elif kind is Kind.TEXT and ("text" in found or found.isdisjoint(fields)):
        fields = ("text",)
    return _line({field: guessed[field] or _UNKNOWN for field in fields})


def unknown_keys(record: object, kind: Kind) -> str:
    """What to add where a record lacks its answer: its keys and the line to write, if a key is not known."""
    if not isinstance(record, Mapping) or _KNOWN.issuperset(record):
        return ""
    told, line = key_names(record), columns_for(record, kind)
    has_turns = any(name in record for name in keys.TURN_LISTS)
    return f"; its keys are{told}: write {line}" if told and line and not has_turns else ""


def missing_key(path: str, names: Collection[str], columns: Columns) -> str:
    """Why a record has no ``path`` of ``columns``: its keys, the one perhaps meant, the line to write."""
    reason = f"the key {path!r} named under `columns` is missing"
    told = key_names(names)
    if not told or path.partition(".")[0] in names:
        return reason
    named = columns.model_dump(by_alias=True, exclude_defaults=True)
    field = next((field for field, one in named.items() if one == path), "")
    near = next(iter(difflib.get_close_matches(path, map(str, names), n=1, cutoff=0.5)), None)
    meant = near or _guess(field, tuple(map(str, names)))
    question = f"; did you mean {near!r}? Its" if near else "; its"
    return f"{reason}{question} keys are{told}: write {_line({**named, field: meant or _UNKNOWN})}"


def _guess(field: str, names: tuple[str, ...]) -> str | None:
    called = _CALLED.get(field, ())
    return next((name for each in called for name in names if re.search(each, name.lower())), None)


def _line(fields: Mapping[str, str]) -> str:
    return "`columns: {" + ", ".join(f"{field}: {name}" for field, name in fields.items()) + "}`"
