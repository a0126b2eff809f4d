"""The key layouts that corpora are published in, each read into one neutral form.

A layout is recognised for each record, not for each file: CMtMedQA's published sample has two in one file.
Reasons of rejection never hold a record's text: they may end up in logs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from zhongjing.codes import Code
from zhongjing.codes import data as codes
from zhongjing.config.sources import Columns, Kind
from zhongjing.data.fields import Fields, is_missing, unused_in, wrapped
from zhongjing.data.formats import has_undecodable
from zhongjing.data.records import Role, Turn


class RejectedError(Exception):
    """A record that cannot be used; the reason has none of its text."""

    def __init__(self, reason: str, code: Code = codes.UNUSABLE_RECORD) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code


@dataclass(frozen=True, slots=True)
class Parsed:
    """A record in neutral form: a text, or turns, with ranked answers beside them where there are any.

    ``turns`` are as published: they may end with a user turn. ``system`` of a system turn is the first turn.
    ``unused``: characters of what the record held beside that, by key.
    """

    layout: str
    text: str | None = None
    turns: tuple[Turn, ...] = ()
    answers: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    department: str | None = None
    unused: Mapping[str, int] = field(default_factory=dict)


# Names of the question and of its answer, in the order in which they are tried.
_QUESTION_ANSWER = (
    ("instruction", "output"),
    ("instruct", "output"),
    ("instruction", "response"),
    ("问", "答"),
    ("问题", "回答"),
    ("问题", "答案"),
    ("ask", "answer"),
    ("question", "answer"),
    ("query", "response"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("question", "response"),
    ("input", "output"),
)
_PROMPTS = ("prompt", "instruction", "instruct", "question", "query", "ask", "问", "问题")
_CHOSEN_REJECTED = (("chosen", "rejected"), ("response_chosen", "response_rejected"))
_TURN_LISTS = ("messages", "conversations", "conversation")
_TEXTS = ("text", "content", "正文")
_DEPARTMENTS = ("department", "cate1", "cate2", "科室", "related_diseases_department")
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "patient": "user",
    "用户": "user",
    "患者": "user",
    "病人": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "doctor": "assistant",
    "医生": "assistant",
    "助手": "assistant",
}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]{0,29}")


def parse(value: object, columns: Columns, kind: Kind) -> Parsed:
    """Reads a raw record by its keys.

    Args:
        value: the record, as its format gives it; a plain string is a line of text.
        columns: key names of the source; if any is set, only these count.
        kind: of the source: which of several layouts that fit is read.

    Returns:
        The record in neutral form, and what of it was not used.

    Raises:
        RejectedError: the record has no known layout, or its values are not what the layout says.
    """
    if isinstance(value, str):
        return Parsed("lines", text=_text(value, "the line"))
    record = wrapped(value)
    if isinstance(record, list):
        parsed: Parsed | None = Parsed("messages", turns=_turn_list(record))
    elif isinstance(record, Fields):
        parsed = _by_columns(record, columns) if columns != Columns() else _by_names(record, kind)
    else:
        raise RejectedError("the record is neither a mapping nor a list of turns", codes.UNKNOWN_LAYOUT)
    if parsed is None:
        assert isinstance(record, Fields)
        raise RejectedError(f"no known layout among its keys{_key_names(record)}", codes.UNKNOWN_LAYOUT)
    # Held-out results are told by department; no other kind of record keeps it.
    if kind is Kind.DIALOGUE and isinstance(record, Fields):
        names = (columns.department,) if columns.department else _DEPARTMENTS
        parsed = replace(parsed, department=_department(record, names))
    return replace(parsed, unused=unused_in(record))


def _by_names(record: Fields, kind: Kind) -> Parsed | None:
    # What is read as text is its text, not the question that may stand beside it.
    readers = (_plain_text, *_READERS) if kind is Kind.TEXT else _READERS
    for reader in readers:
        parsed = reader(record)
        if parsed is not None:
            return parsed
        record.forget()
    return None


def _key_names(value: Fields) -> str:
    """The record's keys, where they are names: the header of a table without one is text."""
    names = sorted(str(key) for key in value)
    if not names or not all(_NAME.fullmatch(name) for name in names):
        return ""
    return f" ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"


def _ranked(value: Fields) -> Parsed | None:
    answers = value.get("answers")
    if not isinstance(answers, list) or not _prompt_of(value):
        return None
    texts, ranks = _answers(answers, value.get("ranks"))
    return Parsed("answers", turns=_prompt_of(value), answers=texts, ranks=ranks)


def _preference(value: Fields) -> Parsed | None:
    for better, worse in _CHOSEN_REJECTED:
        if better in value and worse in value:
            return _pair(value[better], value[worse], _prompt_of(value))
    return None


def _pair(better: object, worse: object, prompt: tuple[Turn, ...]) -> Parsed:
    layout = "preference"
    if isinstance(better, list) and isinstance(worse, list) and better and isinstance(better[0], Mapping):
        chosen, rejected = _turn_list(better), _turn_list(worse)
        if not prompt:
            # The prompt stands in both: what they have in common before the last turn.
            prompt = chosen[:-1]
            if not prompt or rejected[:-1] != prompt:
                raise RejectedError("chosen and rejected do not begin with the same prompt")
            chosen, rejected = chosen[-1:], rejected[-1:]
        if not (len(chosen) == len(rejected) == 1):
            raise RejectedError("chosen and rejected must be one turn each after the prompt")
        if (chosen[0].role, rejected[0].role) != ("assistant", "assistant"):
            raise RejectedError("chosen and rejected must be assistant turns")
        answers = (chosen[0].content, rejected[0].content)
        layout = "conversational preference"
    else:
        answers = (_text(better, "chosen"), _text(worse, "rejected"))
    if not prompt:
        raise RejectedError("chosen and rejected have no prompt")
    return Parsed(layout, turns=prompt, answers=answers, ranks=(0, 1))


def _messages(value: Fields) -> Parsed | None:
    for name in _TURN_LISTS:
        if isinstance(value.peek(name), list):
            return Parsed(name, turns=_with_system(_turn_list(value[name]), value, "system"))
    return None


def _question_answer(value: Fields) -> Parsed | None:
    for question, answer in _QUESTION_ANSWER:
        if question in value and answer in value:
            asked = value[question]
            if question == "ask" and is_missing(asked):
                asked = value.get("title", asked)  # the table's title repeats the question in short
            second = value.get("input") if question != "input" else None
            turns = _with_system(_exchange(asked, second, value.get("history")), value, "system")
            turns += (Turn("assistant", _text(value[answer], "the answer")),)
            return Parsed(f"{question}/{answer}", turns=turns)
    return None


def _prompt_only(value: Fields) -> Parsed | None:
    turns = _prompt_of(value)
    return Parsed("prompt", turns=turns) if turns else None


def _plain_text(value: Fields) -> Parsed | None:
    for name in _TEXTS:
        if name in value:
            return Parsed(name, text=_text(value[name], "the text"))
    return None


_READERS: tuple[Callable[[Fields], Parsed | None], ...] = (
    _ranked,
    _preference,
    _messages,
    _question_answer,
    _prompt_only,
    _plain_text,
)


def _prompt_of(value: Fields) -> tuple[Turn, ...]:
    """Turns before the answers: a list of turns, or a question with input, history and system turn."""
    for name in (*_TURN_LISTS, "prompt"):
        turns = value.peek(name)
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
            return _with_system(_turn_list(value[name]), value, "system")
    for name in _PROMPTS:
        if not is_missing(value.peek(name)):
            asked = _exchange(value[name], value.get("input"), value.get("history"))
            return _with_system(asked, value, "system")
    return ()


def _by_columns(value: Fields, columns: Columns) -> Parsed:
    def need(name: str) -> object:
        if name not in value:
            raise RejectedError(f"the key {name!r} named under `columns` is missing", codes.UNKNOWN_LAYOUT)
        return value[name]

    def may(name: str | None) -> object:
        return value.get(name) if name else None

    if columns.text:
        return Parsed("columns", text=_text(need(columns.text), "the text"))
    turns: tuple[Turn, ...] = ()
    if columns.messages:
        turns = _with_system(_turn_list(need(columns.messages)), value, columns.system)
    elif columns.prompt:
        asked = need(columns.prompt)
        if isinstance(asked, list) and asked and isinstance(asked[0], Mapping):
            turns = _with_system(_turn_list(asked), value, columns.system)
        else:
            asked = _exchange(asked, may(columns.input), may(columns.history))
            turns = _with_system(asked, value, columns.system)
    if columns.answers:
        listed = need(columns.answers)
        texts, ranks = _answers(listed if isinstance(listed, list) else [], value.get("ranks"))
        return Parsed("columns", turns=turns, answers=texts, ranks=ranks)
    if columns.chosen and columns.rejected:
        return _pair(need(columns.chosen), need(columns.rejected), turns)
    if columns.response:
        turns += (Turn("assistant", _text(need(columns.response), "the answer")),)
    if not turns:
        raise RejectedError("`columns` names neither a text, nor turns, nor a prompt")
    return Parsed("columns", turns=turns)


def _exchange(question: object, second: object, history: object) -> tuple[Turn, ...]:
    content = _text(question, "the question")
    if not is_missing(second):
        content = f"{content}\n{_text(second, 'input')}"
    return (*_history(history), Turn("user", content))


def _history(history: object) -> tuple[Turn, ...]:
    if history is None or history in ("", []):
        return ()
    if not isinstance(history, Sequence) or isinstance(history, str):
        raise RejectedError("history is not a list")
    if isinstance(history[0], Mapping):
        return _turn_list(history)
    turns: list[Turn] = []
    for pair in history:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RejectedError("history holds something other than pairs")
        turns.append(Turn("user", _text(pair[0], "a question of the history")))
        turns.append(Turn("assistant", _text(pair[1], "an answer of the history")))
    return tuple(turns)


def _turn_list(value: object) -> tuple[Turn, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RejectedError("the turns are not a list")
    turns: list[Turn] = []
    for item in value:
        if not isinstance(item, Mapping):
            raise RejectedError("a turn is not a mapping")
        role, content = _first(item, ("role", "from")), _first(item, ("content", "value"))
        known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if known is None:
            named = f" ({role})" if isinstance(role, str) and re.fullmatch(r"[a-z_]{1,20}", role) else ""
            raise RejectedError(f"a turn has an unknown role{named}")
        if isinstance(content, list):
            content = _joined_parts(content)
        turns.append(Turn(known, _text(content, "a turn")))
    return tuple(turns)


def _joined_parts(parts: Sequence[object]) -> object:
    """Content in typed parts, as multimodal chats have it: texts are joined, anything else is refused."""
    texts: list[str] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            return parts
        texts.append(text)
    return "".join(texts)


def _with_system(turns: tuple[Turn, ...], fields: Fields, name: str | None) -> tuple[Turn, ...]:
    """The turns behind the system turn that a key of its own holds, unless they begin with one."""
    if name is None or is_missing(fields.peek(name)) or (turns and turns[0].role == "system"):
        return turns
    return (Turn("system", _text(fields[name], "the system turn")), *turns)


def _answers(listed: Sequence[object], ranks: object) -> tuple[tuple[str, ...], tuple[int, ...]]:
    texts: list[str] = []
    for item in listed:
        content = item
        if isinstance(item, Mapping):
            content = _first(item, ("text", "content", "answer"))
        texts.append(_text(content, "an answer"))
    if ranks is None and listed and all(isinstance(item, Mapping) and "rank" in item for item in listed):
        ranks = [item["rank"] for item in listed if isinstance(item, Mapping)]
    if ranks is None or ranks == []:
        return tuple(texts), tuple(range(len(texts)))
    if not isinstance(ranks, Sequence) or isinstance(ranks, str) or len(ranks) != len(texts):
        raise RejectedError("ranks and answers are not equally many")
    numbers: list[float] = []
    for rank in ranks:
        if isinstance(rank, bool) or not isinstance(rank, int | float) or not math.isfinite(rank):
            raise RejectedError("a rank is not a number")
        numbers.append(rank)
    places = {rank: place for place, rank in enumerate(sorted(set(numbers)))}
    return tuple(texts), tuple(places[rank] for rank in numbers)


def _text(value: object, what: str) -> str:
    """A text or a list of one text, stripped."""
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


def _label(value: object) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.strip() if isinstance(value, str) and not is_missing(value) else None


def _department(value: Fields, names: Sequence[str]) -> str | None:
    return next((_label(value[name]) for name in names if _label(value.peek(name)) is not None), None)


def _first(value: Mapping[str, object], names: Sequence[str]) -> object:
    """The value of the first of the names that is there; the others are not used."""
    return next((value[name] for name in names if name in value), None)
