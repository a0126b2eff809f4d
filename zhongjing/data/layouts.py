"""The key layouts that corpora are published in, each read into one neutral form.

A layout is recognised for each record, not for each file: CMtMedQA's published sample has two in one file.
:mod:`zhongjing.data.published_keys` lists the keys; what no stage trains on (tools, images, unpaired and
stepwise preferences) is refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache

from zhongjing.codes import data as codes
from zhongjing.config.sources import Columns, Kind, RoleMarks
from zhongjing.data import published_keys as keys
from zhongjing.data.fields import (
    Fields,
    answer_of,
    is_missing,
    label_of,
    text_of,
    unused_in,
    wrapped,
)
from zhongjing.data.key_names import columns_for, key_names, missing_key
from zhongjing.data.preferences import check_pair_scores, contents_of, deciding, order_in, ordered, pair_of
from zhongjing.data.questions import ambiguous_keys, one_name, prompt_of, with_system
from zhongjing.data.records import Parsed, RejectedError, Turn, Turns
from zhongjing.data.turns import (
    history_of,
    is_turn,
    is_turn_list,
    listed,
    marked_turns,
    spoken_by_mark,
    turn_list,
    turns_in,
    with_thought,
)
from zhongjing.data.unnamed_orders import FIRST_BEST, LIKE_RANKS, check_first_best, like_ranks

_NO_COLUMNS = Columns()


def parse(value: object, columns: Columns | None, kind: Kind, role_marks: RoleMarks | None = None) -> Parsed:
    """Reads a raw record by its keys.

    Args:
        value: the record, as its format gives it; a plain string is a line of text.
        columns: key names of the source; if any but ``ignore`` is set, only these count.
        kind: of the source: which of several layouts that fit is read.
        role_marks: what marks of who speaks within a question are (:class:`Source`).

    Returns:
        The record in neutral form, and what of it was not used.

    Raises:
        RejectedError: the record has no known layout, its values are not what the layout says, or it can be
            read in two ways.
    """
    if isinstance(value, str):
        return Parsed("lines", text=text_of(value, "the line"))
    record = wrapped(value)
    ignored = columns.ignore if columns is not None else ()
    if isinstance(record, Fields) and (ignored or keys.ORIGIN in record):
        left_out = {*ignored, keys.ORIGIN}
        record = Fields({name: record.peek(name) for name in record if name not in left_out})
    if isinstance(record, list):
        parsed = Parsed("messages", turns=turn_list(record), unused=unused_in(record))
    elif not isinstance(record, Fields):
        raise RejectedError("the record is neither a mapping nor a list of turns", codes.UNKNOWN_LAYOUT)
    elif columns is None or columns.model_copy(update={"ignore": []}) == _NO_COLUMNS:
        parsed = _by_names(record, kind, ignored)
    else:
        departments = (columns.department,) if columns.department else keys.DEPARTMENTS
        parsed = _finished(_by_columns(record, columns), record, kind, departments)
    return parsed if kind is Kind.TEXT else _unmarked(parsed, role_marks)


def _by_names(published: Fields, kind: Kind, ignored: Sequence[str]) -> Parsed:
    record = _lowered(published)
    if kind is not Kind.TEXT and not record.names.isdisjoint(keys.REFUSABLE):
        _refuse_by_name(record, kind)
    for reader in _readers_for(kind, record.names):
        parsed = reader(record, kind)
        if parsed is not None:
            if parsed.layout.endswith(FIRST_BEST):
                check_first_best(record, len(parsed.answers), keys.RANKED, ignored)
            return _finished(parsed, record, kind, keys.DEPARTMENTS)
        record.forget()
    if not record.names.isdisjoint(keys.ROLES) and not record.names.isdisjoint(keys.CONTENTS):
        raise RejectedError(
            f"the record is one turn{key_names(published)}: write a record for each dialogue, "
            'with all its turns: {"messages": [{"role": "user", "content": ...}, ...]}',
            codes.UNKNOWN_LAYOUT,
        )
    line = columns_for(published, kind)
    raise RejectedError(
        f"no known layout among its keys{key_names(published)}" + (f"; write {line}" if line else ""),
        codes.UNKNOWN_LAYOUT,
    )


def _finished(parsed: Parsed, record: Fields, kind: Kind, departments: Sequence[str]) -> Parsed:
    # Held-out results are told by department; no other kind of record keeps it.
    department = _department(record, departments) if kind is Kind.DIALOGUE else None
    return replace(parsed, department=department, unused={**unused_in(record), **parsed.unused})


def _lowered(record: Fields) -> Fields:
    """The record with known names that are published with a capital in their lower case."""
    capitals = {name: name.lower() for name in record.present(keys.CAPITALS) if name.lower() not in record}
    if not capitals:
        return record
    return Fields({capitals.get(name, name): record.peek(name) for name in record})


def _refuse_by_name(record: Fields, kind: Kind) -> None:
    """Refuses what no stage trains on: read by its other keys alone it would teach something else."""
    for name in record.present((*keys.MEDIA, *keys.TOOLS)):
        value = listed(record.peek(name))
        if not is_missing(value) and value != {}:
            why = "calls of tools are not trained" if name in keys.TOOLS else "only text is trained on"
            raise RejectedError(f"the record has {name}; {why}")
    if kind is Kind.PROMPTS:
        return
    if "completions" in record and "labels" in record:
        raise RejectedError("stepwise supervision (completions with labels) is not trained on")
    if "positive_messages" in record or "negative_messages" in record:
        raise RejectedError("pairs for embedding or reranking (positive_messages) are not trained on")
    for name in record.present(keys.VERDICTS):
        verdict = record.peek(name)
        if isinstance(verdict, str):
            verdict = {"true": True, "false": False}.get(verdict.strip().lower())
        if not isinstance(verdict, bool) or any(worse in record for _, worse in keys.PAIRS):
            continue
        if kind is Kind.RANKING:
            raise RejectedError(f"an unpaired preference ({name}) has one answer, a comparison needs two")
        if not verdict:
            raise RejectedError(f"the answer is marked as a bad one ({name}: false)")


# Readers of one layout each: None where the record does not have it.


def _ranked(record: Fields, kind: Kind) -> Parsed | None:
    for name in record.present(keys.RANKED):
        answers = record.peek(name)
        if kind is Kind.RANKING:
            answers = listed(answers)
        if not isinstance(answers, list) or (kind is not Kind.RANKING and len(answers) == 1):
            continue
        prompt = prompt_of(record)
        if not prompt.turns:
            continue
        # Our own layout has the best first; another layout's list has an order only where it says so.
        own = name == "answers" and "questions" not in record
        ranks, scores = order_in(record, keys.RANKS), order_in(record, keys.SCORES)
        listing = record.take(name, listed)
        graded = ordered(listing, ranks, scores, best_first=own, beside=deciding(record, len(answers)))
        return replace(graded, turns=prompt.turns, unused=prompt.unused)
    return None


def _numbered(record: Fields, kind: Kind) -> Parsed | None:
    """A column for each answer, and one for its rank or score: ``答案1``, ``排名1``, ``答案2``, ``排名2``."""
    columns = _numbered_columns(tuple(record))
    numbers = columns["answers"]
    if len(numbers) < 2 or not (prompt := prompt_of(record)).turns:
        return None
    # A question with fewer answers than others has empty cells.
    there = [number for number, name in numbers.items() if not is_missing(record.peek(name))]

    def beside(what: str) -> list[object] | None:
        cells = {number: record[name] for number, name in columns[what].items() if number in numbers}
        given = any(not is_missing(cells.get(number)) for number in there)
        return [cells.get(number) for number in there] if given else None

    answers = [record[numbers[number]] for number in there]
    graded = ordered(answers, beside("ranks"), beside("scores"), best_first=False)
    return replace(graded, turns=prompt.turns, unused=prompt.unused)


@lru_cache(maxsize=1024)
def _numbered_columns(names: tuple[str, ...]) -> dict[str, dict[str, str]]:
    """Names of answers, ranks and scores by what they end in."""
    found: dict[str, dict[str, str]] = {what: {} for what in keys.NUMBERED}
    for name in map(str, names):
        for what, called in keys.NUMBERED.items():
            match = re.fullmatch(f"(?:{'|'.join(called)}){keys.NUMBERS}", name.strip().lower())
            if match and (other := found[what].setdefault(match[1], name)) != name:
                raise RejectedError(
                    f"{other} and {name} both belong to answer {match[1]}", codes.AMBIGUOUS_RECORD
                )
    return found


def _preference(record: Fields, kind: Kind) -> Parsed | None:
    for better, worse in keys.PAIRS:
        if better in record and worse in record:
            prompt = prompt_of(record, whole=record.peek(better))
            check_pair_scores(record)
            pair = record.take(better, turns_in), record.take(worse, turns_in)
            return replace(pair_of(*pair, prompt.turns), unused=prompt.unused)
    return None


def _rejected_beside(record: Fields, kind: Kind) -> Parsed | None:
    """A whole dialogue, and what was rejected in place of its last answer (ms-swift)."""
    name = record.present(keys.REJECTED_BESIDE)[0]
    if is_missing(record.peek(name)):
        return None
    parsed = _messages(record, kind) or _question_answer(record, kind)
    if parsed is None or not parsed.turns or parsed.turns[-1].role != "assistant":
        return None
    before, chosen = parsed.turns[:-1], parsed.turns[-1]
    check_pair_scores(record)
    rejected = record.take(name, turns_in)
    if is_turn_list(rejected):
        whole = turn_list(rejected)
        if len(whole) > 1 and _without_system(before) != _without_system(whole[:-1]):
            raise RejectedError(f"the dialogue and {name} do not begin with the same prompt")
        if not whole or whole[-1].role != "assistant":
            raise RejectedError(f"{name} does not end with an answer")
        rejected = whole[-1].content
    pair = pair_of(chosen.content, rejected, before)
    layout = f"{parsed.layout} over {name}"
    return replace(parsed, layout=layout, turns=before, answers=pair.answers, ranks=pair.ranks)


def _without_system(turns: Turns) -> list[tuple[str, str]]:
    return [turn for turn in contents_of(turns) if turn[0] != "system"]


def _messages(record: Fields, kind: Kind) -> Parsed | None:
    found = [name for name in record.present(keys.TURN_LISTS) if _holds_turns(name, record.peek(name))]
    if not found:
        return None
    name, *others = found
    turns = turn_list(record.take(name, listed))
    for other in others:
        if turn_list(record.take(other, listed)) != turns:
            raise ambiguous_keys(name, other, "the turns", "messages")
    return Parsed(name, turns=with_system(turns, record))


def _question_answer(record: Fields, kind: Kind) -> Parsed | None:
    name = one_name(record, keys.ANSWERS, "the answer", "response")
    prompt = prompt_of(record)
    if name is None or not prompt.turns:
        return None
    layout = f"{prompt.layout}/{name}"
    value = record.take(name, turns_in)
    if name == "output" and isinstance(value, list) and len(value) == 2 and isinstance(value[0], str):
        # LLaMA-Factory's earlier form of a pair: the better answer, then the worse.
        pair = pair_of(value[0], value[1], prompt.turns)
        return replace(pair, layout=f"{layout}, {FIRST_BEST}", unused=prompt.unused)
    turns = _answer_turns(value)
    if not is_missing(record.peek("complex_cot")):
        if len(turns) != 1:
            raise RejectedError("Complex_CoT comes with an answer of several turns")
        # As the publishers' own training code writes them (HuatuoGPT-o1).
        thought = text_of(record["complex_cot"], "a thought")
        content = f"## Thinking\n\n{thought}\n\n## Final Response\n\n{turns[0].content}"
        turns = (replace(turns[0], content=content),)
        layout += " with Complex_CoT"
    elif len(turns) == 1:
        turns = (replace(turns[0], content=with_thought(turns[0].content, record)),)
    return Parsed(layout, turns=(*prompt.turns, *turns), unused=prompt.unused)


def _prompt_only(record: Fields, kind: Kind) -> Parsed | None:
    prompt = prompt_of(record)
    return replace(prompt, layout="prompt") if prompt.turns else None


def _plain_text(record: Fields, kind: Kind) -> Parsed | None:
    name = record.present(keys.TEXTS)[0]
    if kind in (Kind.DIALOGUE, Kind.RANKING) and not record.names.isdisjoint(keys.ROLES):
        held = record.peek(name)
        # A text with role marks is a whole dialogue: `from` beside it may say where it is from.
        if not isinstance(held, str) or marked_turns(held) is None:
            return None  # a turn
    return Parsed(name, text=text_of(record[name], "the text"))


Reader = Callable[[Fields, Kind], Parsed | None]
# Each reader with the keys of which it needs one; the first one that finds its layout counts.
_READERS: Mapping[Reader, frozenset[str]] = {
    _ranked: frozenset(keys.RANKED),
    _preference: frozenset(better for better, _ in keys.PAIRS),
    _rejected_beside: frozenset(keys.REJECTED_BESIDE),
    _messages: frozenset(keys.TURN_LISTS),
    _question_answer: frozenset(keys.ANSWERS),
    _prompt_only: frozenset(),
    _plain_text: frozenset(keys.TEXTS),
}
# What is read as text is its text, not the question that may stand beside it; of prompts no answer counts.
_READERS_OF: dict[Kind, tuple[Reader, ...]] = {
    Kind.TEXT: (_plain_text, *_READERS),
    Kind.RANKING: (_ranked, _preference, _numbered, *_READERS),
    Kind.PROMPTS: (_messages, _prompt_only, _preference, _plain_text),
}


@lru_cache(maxsize=1024)
def _readers_for(kind: Kind, names: frozenset[str]) -> tuple[Reader, ...]:
    """The readers that may find something under these keys; most records of a file have the same."""
    readers = _READERS_OF.get(kind, _READERS)
    needed = ((each, _READERS.get(each)) for each in readers)
    return tuple(each for each, found in needed if not found or not names.isdisjoint(found))


def _by_columns(record: Fields, columns: Columns) -> Parsed:
    def need(path: str, read: Callable[[object], object] = lambda value: value) -> object:
        found = record.take(path, read) if path in record else _at(record, path)
        if found is _NOTHING:
            raise RejectedError(missing_key(path, record, columns), codes.UNKNOWN_LAYOUT)
        return found

    def may(path: str | None) -> object:
        found = _at(record, path) if path else None
        return None if found is _NOTHING else found

    if columns.text:
        return Parsed("columns", text=text_of(need(columns.text), "the text"))
    turns: Turns = ()
    if columns.messages:
        turns = turn_list(need(columns.messages, listed))
    elif columns.prompt:
        asked = need(columns.prompt)
        if is_turn_list(asked):
            turns = turn_list(asked)
        else:
            parts = [
                text_of(part, "the question") for part in (asked, may(columns.input)) if not is_missing(part)
            ]
            question = "\n".join(parts) or text_of(asked, "the question")
            turns = (*history_of(may(columns.history)), Turn("user", question))
    if (columns.messages or columns.prompt) and (not turns or turns[0].role != "system"):
        system = may(columns.system)
        if not is_missing(system):
            turns = (Turn("system", text_of(system, "the system turn")), *turns)
    if columns.answers:
        named = [path for path in (columns.ranks, columns.scores) if path]
        if named:  # then nothing else counts, and their order in the list least of all
            ranks, scores = listed(may(columns.ranks)), listed(may(columns.scores))
            if ranks is None and scores is None:
                need(named[0])
        else:
            ranks, scores = order_in(record, keys.RANKS), order_in(record, keys.SCORES)
        graded = ordered(need(columns.answers, listed), ranks, scores, best_first=not named)
        if graded.layout.endswith(FIRST_BEST):
            check_first_best(record, len(graded.answers), (columns.answers,), columns.ignore)
        elif columns.scores and ranks is None and like_ranks(scores, columns.scores):
            graded = replace(graded, layout=graded.layout + LIKE_RANKS)
        return replace(graded, layout=f"columns: {graded.layout}", turns=turns)
    if columns.chosen and columns.rejected:
        pair = pair_of(need(columns.chosen, turns_in), need(columns.rejected, turns_in), turns)
        return replace(pair, layout=f"columns: {pair.layout}")
    if columns.response:
        turns += _answer_turns(need(columns.response, turns_in))
    if not turns:
        raise RejectedError("`columns` names neither a text, nor turns, nor a prompt")
    return Parsed("columns", turns=turns)


_NOTHING = object()


def _at(value: object, path: str) -> object:
    """What stands at a path such as ``chosen.value`` or ``data.0``; a key with the dots in it goes first."""
    if isinstance(value, Fields) and path in value:
        return value[path]
    name, dot, rest = path.partition(".")
    if isinstance(value, list) and name.isdigit():
        found = value[int(name)] if int(name) < len(value) else _NOTHING
    elif isinstance(value, list) and value and dot == "" and all(isinstance(item, Fields) for item in value):
        each = [_at(item, name) for item in value]
        found = _NOTHING if _NOTHING in each else each
    else:
        found = value[name] if isinstance(value, Fields) and name in value else _NOTHING
    return found if not dot or found is _NOTHING else _at(found, rest)


def _holds_turns(name: str, value: object) -> bool:
    value = listed(value)
    if not isinstance(value, list) or not value:
        return value == [] and name != "data"
    # Any list may be called data; HuatuoGPT's turns have their marks.
    marked = isinstance(value[0], str) and (name != "data" or spoken_by_mark(value[0]) is not None)
    return marked or isinstance(value[0], Mapping)


def _answer_turns(value: object) -> Turns:
    """An answer: a text, a turn, or turns that begin with an assistant's.

    Raises:
        RejectedError: it is none of them.
    """
    if is_turn(value):
        value = [value]
    return turn_list(value) if is_turn_list(value) else (Turn("assistant", answer_of(value)),)


def _unmarked(parsed: Parsed, role_marks: RoleMarks | None) -> Parsed:
    """The record with the turns that stand with role marks in a question."""
    if role_marks == "keep":
        return parsed
    given = parsed.turns if parsed.text is None else (Turn("user", parsed.text),)
    turns: list[Turn] = []
    for turn in given:
        marked = marked_turns(turn.content) if turn.role == "user" else None
        if marked is not None and role_marks is None:
            raise RejectedError(
                "a question has role marks (such as Human: and Assistant:): set roleMarks of the source to "
                "split (they are turns) or keep (they are text)",
                codes.AMBIGUOUS_RECORD,
            )
        turns += marked or [turn]
    if tuple(turns) == given:
        return parsed
    return replace(parsed, layout=f"{parsed.layout}, role marks split", text=None, turns=tuple(turns))


def _department(record: Fields, names: Sequence[str]) -> str | None:
    for name in names:
        if name in record and label_of(record.peek(name)) is None:
            continue
        label = label_of(_at(record, name))
        if label is not None:
            return label
    return None
