"""What is asked before an answer: the turns of a record up to its last question, from whichever keys hold it.

Parts are joined in one order, one a line: the instruction, the context, the question, its second part, the
options. A part that is left out (CMB's options, a context) would make another question of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from zhongjing.codes import data as codes
from zhongjing.data import published_keys as keys
from zhongjing.data.fields import Fields, is_missing, text_of
from zhongjing.data.records import Parsed, RejectedError, Turn, Turns
from zhongjing.data.turns import history_of, is_turn_list, listed, turn_list, turns_in

_ASKED = (*keys.TURN_LISTS, *keys.QUESTIONS, *keys.INPUTS)
_REPEATED = 8  # characters; a shorter text may stand in another by chance
_LETTERED = re.compile(r"[(（]?(?P<letter>[A-Za-z])(?:(?P<mark>[)）.．、:：])|\s)")


def prompt_of(record: Fields, *, whole: object = None) -> Parsed:
    """The turns before an answer; none where nothing is asked.

    A list that equals ``whole`` holds the answer too, and is no prompt.
    """
    for name in record.present(_ASKED):
        if not is_turn_list(value := turns_in(record.peek(name))):
            continue
        turns = turn_list(record.take(name, turns_in))
        if whole is None or value != turns_in(whole):
            return Parsed(name, turns=with_system(turns, record))
    question, how, unused = _question_of(record)
    if question is None:
        return Parsed("")
    history = record.take("history", listed) if "history" in record else None
    turns = (*history_of(history), Turn("user", question))
    return Parsed(how, turns=with_system(turns, record), unused=unused)


def _question_of(record: Fields) -> tuple[str | None, str, Mapping[str, int]]:
    """What is asked, as far as its parts are there; the keys; characters of them that were left out."""
    parts: list[str] = []
    used: list[str] = []
    unused: dict[str, int] = {}
    asked = one_name(record, keys.QUESTIONS, "the question", "prompt")
    leading = (_named(record, keys.INSTRUCTIONS), asked, _named(record, keys.INPUTS))
    if asked == "ask" and is_missing(record.peek("ask")) and not is_missing(record.peek("title")):
        parts, used = [text_of(record["title"], "the question")], ["ask"]  # the title repeats it in short
    elif all(name is None or is_missing(record.peek(name)) for name in leading):
        name = next((name for name in leading if name is not None), None)
        if name is None:
            return None, "", {}
        text_of(record[name], "the question")
        raise RejectedError("the question is missing")
    _refuse_repeated(record, leading[0], asked)
    for name in (leading[0], _named(record, keys.CONTEXTS), asked, leading[2]):
        if name is None or is_missing(record.peek(name)):
            continue
        value = record[name]
        if name == "questions" and isinstance(value, list):
            said = [text for item in value for text in (item if isinstance(item, list) else [item])]
            value, others = said[:1], said[1:]
            if others:  # other words for the same question
                unused["questions[]"] = sum(len(text) for text in others if isinstance(text, str))
        beside = name in keys.CONTEXTS or (name in keys.INPUTS and parts)
        parts.append(text_of(value, name if beside else "the question"))
        used.append(name)
    options = _named(record, keys.OPTIONS)
    if options is not None and not is_missing(record.peek(options)):
        parts.append(_option_lines(record[options]))
        used.append(options)
    return "\n".join(parts), "+".join(used), unused


def _refuse_repeated(record: Fields, instruction: str | None, asked: str | None) -> None:
    """Refuses a question that holds the instruction again: one of them is the other in a template."""
    if instruction is None or asked is None:
        return
    texts = [text.strip() for name in (instruction, asked) if isinstance(text := record.peek(name), str)]
    shorter, longer = sorted(texts, key=len) if len(texts) == 2 else ("", "")
    if len(shorter) >= _REPEATED and shorter in longer:
        raise ambiguous_keys(instruction, asked, "the question", "prompt")


def _option_lines(value: object) -> str:
    """Options to choose from, one a line behind its letter."""
    if isinstance(value, Mapping):
        pairs = [(str(key), value[key]) for key in value]
    elif isinstance(value, list):
        all_have = all(isinstance(item, str) and _LETTERED.match(item.strip()) for item in value)
        pairs = [_lettered(place, item, all_have) for place, item in enumerate(value)]
    else:
        return text_of(value, "the options")
    lines = [
        f"{letter.strip()}. {text_of(text, 'an option')}" if letter else text_of(text, "an option")
        for letter, text in pairs
        if not _is_empty(text)
    ]
    return "\n".join(lines)


def _is_empty(option: object) -> bool:
    """Whether an option is a table's empty cell; 无 and none are options as good as any."""
    text = option.strip().lower() if isinstance(option, str) else None
    return text in ("", "nan") if text is not None else is_missing(option)


def _lettered(place: int, item: object, all_have: bool) -> tuple[str, object]:
    """The letter of an option, empty where it begins with its own, and its text."""
    if isinstance(item, Mapping):
        letter, text = (
            first_of(item, ("key", "label", "letter")),
            first_of(item, ("value", "text", "content")),
        )
        return (chr(ord("A") + place) if is_missing(letter) else str(letter)), text
    letter = chr(ord("A") + place)
    own = _LETTERED.match(item.strip()) if isinstance(item, str) else None
    # "B 超" begins with a letter as well: where not all do, one with its mark and in its place is one.
    has_letter = all_have or (own is not None and own["mark"] and own["letter"].upper() == letter)
    return ("" if has_letter else letter), item


def with_system(turns: Turns, record: Fields, names: Sequence[str] = keys.SYSTEMS) -> Turns:
    """The turns behind the system turn that a key of its own holds, unless they begin with one."""
    name = next((name for name in record.present(names) if not is_missing(record.peek(name))), None)
    if name is None or (turns and turns[0].role == "system"):
        return turns
    return (Turn("system", text_of(record[name], "the system turn")), *turns)


def one_name(record: Fields, names: Sequence[str], what: str, column: str) -> str | None:
    """The one of the names that says something; of equal values the first."""
    there = record.present(names)
    having = [name for name in there if not is_missing(record.peek(name))]
    if not having:
        return next(iter(there), None)
    for other in having[1:]:
        if record.peek(other) != record.peek(having[0]):
            raise ambiguous_keys(having[0], other, what, column)
        record[other]
    return having[0]


def ambiguous_keys(name: str, other: str, what: str, column: str) -> RejectedError:
    """That two keys could both be what is looked for."""
    return RejectedError(
        f"{name} and {other} could both be {what}: name one as columns.{column}", codes.AMBIGUOUS_RECORD
    )


def _named(record: Fields, names: Sequence[str]) -> str | None:
    having = record.present(names)
    return next((name for name in having if not is_missing(record.peek(name))), having[0] if having else None)


def first_of(record: Mapping[str, object], names: Sequence[str]) -> object:
    """The value of the first of the names that is there; the others are not used."""
    return next((record[name] for name in names if name in record), None)
