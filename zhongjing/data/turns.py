"""Lists of turns, in every form that they are published in.

Sources of the rules: a turn has ``role``/``content`` (OpenAI) or ``from``/``value`` (ShareGPT); ms-swift and
Firefly have an exchange an element (``human``/``assistant``). ``weight`` 0 (OpenAI's fine-tuning guide),
``loss: false`` (ms-swift 3.8) and ``train: false`` (axolotl) keep an answer out of the loss. Thoughts in a
key of their own stand before the answer between ``<think>`` tags, as Qwen3's and DeepSeek's templates write.

Dialogues within one text have marks for who speaks: BELLE (``Human:`` and ``Assistant:`` in the instruction),
Anthropic's hh-rlhf (two line breaks before them), OpenAssistant-Guanaco (``### Human:``), HuatuoGPT (问： and
答：) and others (``<user>:``).
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping, Sequence

from zhongjing.data import published_keys as keys
from zhongjing.data.fields import answer_of, is_missing, number_of, text_of, wrapped
from zhongjing.data.key_names import key_names
from zhongjing.data.records import RejectedError, Role, Turn, Turns

_SPOKEN_BY: dict[Role, tuple[str, ...]] = {
    "system": ("system", "developer"),
    "user": ("user", "human", "prompter", "patient", "用户", "患者", "病人", "问"),
    "assistant": (
        *("assistant", "gpt", "chatgpt", "bot", "model", "doctor"),
        *("医生", "医师", "大夫", "答", "助手"),
    ),
}
_ROLES = {name: role for role, names in _SPOKEN_BY.items() for name in names}
_KNOWN = "docs/data.md lists the known ones"
_LONGEST_ROLE = 20
_LONGEST_LITERAL = 1 << 20
_USERS = r"human|user|用户|患者|病人|问"
_ASSISTANTS = r"assistant|bot|gpt|chatgpt|doctor|医生|助手|答"
# In angle brackets or behind ## anywhere, as a word only at the beginning of a line and with its colon.
_MARK = re.compile(
    r"(?:(?:^|\n)[ \t]*#{0,4}|#{2,4})[ \t]*"
    rf"(?:(?P<user>{_USERS})|(?P<assistant>{_ASSISTANTS}))[ \t]*[:：]"
    rf"|<(?:(?P<user_tag>{_USERS})|(?P<assistant_tag>{_ASSISTANTS}))>[ \t]*[:：]?",
    re.IGNORECASE,
)


def is_turn(value: object) -> bool:
    """Whether a value is one turn."""
    return isinstance(value, Mapping) and any(key in value for key in keys.ROLES)


def is_turn_list(value: object) -> bool:
    """Whether a value is a list of turns or exchanges, or empty of them."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def turn_list(value: object) -> Turns:
    """Turns of a list of them, of exchanges, or of texts with marks (问：, 答：); also written as JSON.

    Raises:
        RejectedError: it is none, or a turn has an unknown role, calls a tool or holds more than text.
    """
    value = listed(value)
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RejectedError("the turns are not a list")
    turns: list[Turn] = []
    for place, item in enumerate(value):
        if isinstance(item, str):
            spoken = spoken_by_mark(item)
            if spoken is None:
                raise RejectedError("a turn is not a mapping")
            turns.append(spoken)
            continue
        if not isinstance(item, Mapping):
            raise RejectedError("a turn is not a mapping")
        if any(key in item for key in keys.ROLES):
            turn = turn_of(item)
            turns += [] if turn is None else [turn]
        else:
            turns += _exchange(item, is_last=place == len(value) - 1)
    return tuple(turns)


def turn_of(item: Mapping[str, object]) -> Turn | None:
    """One turn; None where it is an empty system turn.

    Raises:
        RejectedError: its role is unknown, it calls a tool, or it holds more than text.
    """
    key = next(key for key in keys.ROLES if key in item)
    role = item[key]
    known = _ROLES.get(role.strip().lower()) if isinstance(role, str) else None
    if known is None:
        raise RejectedError(f"a turn has an unknown role ({_label(role)}) under its key {key}; {_KNOWN}")
    for key in keys.CALLS:
        if key in item and not is_missing(item[key]):
            raise RejectedError(f"a turn calls a tool ({key}); tools are not trained with")
    content = next((item[key] for key in keys.CONTENTS if key in item), None)
    if known == "system" and is_missing(content):
        return None
    if isinstance(content, list):
        content = _joined_parts(content)
    learn = _learned(item)
    if known != "assistant":
        return Turn(known, text_of(content, "a turn"))
    return Turn(known, with_thought(answer_of(content, "a turn"), item), learn)


def _role_of(item: Mapping[str, object]) -> str:
    return next((str(item[key]) for key in keys.ROLES if key in item), "")


def _label(role: object) -> str:
    """A role as it may be told: it is a label, and no text."""
    said = " ".join(role.split()) if isinstance(role, str) else "no text"
    return said if len(said) <= _LONGEST_ROLE else f"{said[: _LONGEST_ROLE - 1]}…"


def with_thought(answer: str, item: Mapping[str, object]) -> str:
    """The answer behind the thoughts that a key of their own holds, if one does."""
    for key in keys.THOUGHTS:
        if key in item and not is_missing(item[key]):
            return f"<think>\n{text_of(item[key], 'a thought')}\n</think>\n\n{answer}"
    return answer


def listed(value: object) -> object:
    """A list that stands as text in a table's cell (JSON, or Python's notation: ms-swift); else itself."""
    if not isinstance(value, str) or not value.lstrip().startswith("[") or len(value) > _LONGEST_LITERAL:
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        return wrapped(found) if isinstance(found, list) else value
    return value


def turns_in(value: object) -> object:
    """Turns that stand as text in a table's cell; else the value itself: an answer may be a JSON list."""
    found = listed(value)
    if found is value or not isinstance(found, list) or not found:
        return value
    are_turns = all(is_turn(item) and _role_of(item).lower() in _ROLES for item in found)
    return found if are_turns else value


def history_of(value: object) -> Turns:
    """Earlier turns: pairs of question and answer, or turns.

    Raises:
        RejectedError: it is neither.
    """
    value = listed(value)
    if is_missing(value):
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RejectedError("history is not a list")
    if isinstance(value[0], Mapping):
        return turn_list(value)
    turns: list[Turn] = []
    for pair in value:
        if not isinstance(pair, Sequence) or isinstance(pair, str) or len(pair) != 2:
            raise RejectedError("history contains something other than pairs")
        if is_missing(pair[0]) and is_missing(pair[1]):
            continue  # both are optional in LLaMA-Factory's alpaca form
        turns.append(Turn("user", text_of(pair[0], "a question of the history")))
        turns.append(Turn("assistant", text_of(pair[1], "an answer of the history")))
    return tuple(turns)


def marked_turns(text: str) -> Turns | None:
    """The turns of a text that is a dialogue with marks.

    Args:
        text: any.

    Returns:
        The turns without the marks, user first; an answer that only begins (``Assistant:`` at the end) is
        left out. None where the text does not begin with a user's mark, where it has no assistant's, or where
        they do not alternate: a text that merely speaks of a dialogue stays a text.
    """
    text = text.strip()
    if _MARK.match(text) is None:
        return None
    marks = list(_MARK.finditer(text))
    if len(marks) < 2:
        return None
    turns: list[Turn] = []
    for index, mark in enumerate(marks):
        spoken: Role = "user" if mark["user"] or mark["user_tag"] else "assistant"
        if spoken != ("user", "assistant")[index % 2]:
            return None
        following = marks[index + 1].start() if index + 1 < len(marks) else len(text)
        content = text[mark.end() : following].strip()
        if not content and index + 1 < len(marks):
            return None
        if content:
            turns.append(Turn(spoken, content))
    return tuple(turns)


def spoken_by_mark(text: str) -> Turn | None:
    """A text that is one turn behind its mark (问：...), as HuatuoGPT's lists have them; else None."""
    mark = _MARK.match(text.strip())
    if mark is None:
        return None
    role: Role = "user" if mark["user"] or mark["user_tag"] else "assistant"
    content = text.strip()[mark.end() :].strip()
    return Turn(role, content) if content else None


def _exchange(item: Mapping[str, object], *, is_last: bool) -> list[Turn]:
    asked = next((key for key in keys.ASKED if key in item), None)
    answered = next((key for key in keys.ANSWERED if key in item), None)
    if asked is None or (answered is None and not is_last):
        raise RejectedError(
            f"a turn has an unknown role: none of its keys{key_names(item)} is one of {', '.join(keys.ROLES)}"
        )
    turns = [Turn("user", text_of(item[asked], "a turn"))]
    if answered is not None and not (is_last and is_missing(item[answered])):
        turns.append(Turn("assistant", answer_of(item[answered], "a turn"), _learned(item)))
    return turns


def _learned(item: Mapping[str, object]) -> bool:
    """Whether a turn is to be learned, by whichever key says so."""
    if not is_missing(item.get("train_detail")):  # axolotl's labels of parts of an answer
        raise RejectedError("a turn is to be learned in part (train_detail); only whole turns are")
    said: dict[str, bool] = {}
    for key in keys.LEARN:
        value = item.get(key)
        if value is None:
            continue
        if not isinstance(value, bool):
            if (number := number_of(value, f"{key} of a turn")) not in (0, 1):
                raise RejectedError(f"{key} of a turn is neither 0 nor 1")
            value = number == 1
        said[key] = value
    if len(set(said.values())) > 1:
        raise RejectedError(f"{' and '.join(said)} of a turn contradict each other")
    return False not in said.values()


def _joined_parts(parts: Sequence[object]) -> object:
    """Content in typed parts, as multimodal chats have it: texts are joined, anything else is refused."""
    texts: list[str] = []
    for part in parts:
        kind = part["type"] if isinstance(part, Mapping) and "type" in part else None
        text = part["text"] if isinstance(part, Mapping) and kind == "text" and "text" in part else None
        if isinstance(part, str) and len(parts) == 1:
            return part
        if not isinstance(text, str):
            named = f" ({kind})" if isinstance(kind, str) and re.fullmatch(r"[a-z_]{1,20}", kind) else ""
            raise RejectedError(f"a turn contains more than text{named}")
        texts.append(text)
    return "".join(texts)
