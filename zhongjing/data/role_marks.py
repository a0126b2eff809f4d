"""Dialogues written into one text, with marks for who speaks: ``Human: ... Assistant: ...``.

Published so by BELLE (``Human:`` and ``Assistant:`` in the instruction), Anthropic's hh-rlhf (two line breaks
before them), OpenAssistant-Guanaco (``### Human:``), HuatuoGPT (问： and 答：) and others (``<user>:``).
"""

from __future__ import annotations

import re

from zhongjing.data.records import Role, Turn

_USERS = r"human|user|用户|患者|病人|问"
_ASSISTANTS = r"assistant|bot|gpt|chatgpt|doctor|医生|助手|答"
# In angle brackets or behind ## anywhere, as a word only at the beginning of a line and with its colon.
_MARK = re.compile(
    r"(?:(?:^|\n)[ \t]*#{0,4}|#{2,4})[ \t]*"
    rf"(?:(?P<user>{_USERS})|(?P<assistant>{_ASSISTANTS}))[ \t]*[:：]"
    rf"|<(?:(?P<user_tag>{_USERS})|(?P<assistant_tag>{_ASSISTANTS}))>[ \t]*[:：]?",
    re.IGNORECASE,
)


def marked_turns(text: str) -> tuple[Turn, ...] | None:
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
