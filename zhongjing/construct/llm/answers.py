"""From the text of an answer to a checked value: JSON, mended where need be, then a pydantic model."""

from __future__ import annotations

import re
from typing import TypeVar

import json_repair
from pydantic import BaseModel, ConfigDict, ValidationError

from zhongjing.construct.llm.checks import Fault

T = TypeVar("T", bound=BaseModel)
_THOUGHTS = re.compile(
    r"\s*<think>.*?</think>", re.DOTALL
)  # of reasoning models, where a server leaves them in


class AnswerModel(BaseModel):
    """Base of what the model is to write: nothing but the fields, and of their types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def read_answer(text: str, finish_reason: str, kind: type[T]) -> T | Fault:
    """The value that ``text`` holds, or what is wrong with it.

    An answer that ended at ``max_tokens`` is cut: mending it would only make it seem whole.
    """
    if finish_reason == "length":
        return Fault("cut", "the answer was cut at max_tokens", "结果太长，没有写完，请写得简洁些")
    if finish_reason == "content_filter" or not text.strip():
        return Fault("empty", "the answer is empty", "没有给出结果")
    text = _THOUGHTS.sub("", text)
    if not _is_closed(text):
        return Fault("no json", "the answer is no whole JSON", "结果不是完整的JSON对象")
    try:
        value = json_repair.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        return Fault("no json", "the answer is no whole JSON", "结果不是完整的JSON对象")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        told = f"JSON的结构不符合要求（{place}：{first['type']}）"
        return Fault("wrong schema", "the answer's JSON is not as asked for", told)


def _is_closed(text: str) -> bool:
    """Whether the JSON has its end: json_repair closes a cut answer silently."""
    depth, quoted, escaped = 0, False, False
    seen = False
    for character in text:
        if escaped:
            escaped = False
        elif quoted:
            escaped = character == "\\"
            quoted = character != '"'
        elif character == '"' and depth:
            quoted = True
        elif character in "{[":
            depth, seen = depth + 1, True
        elif character in "}]":
            depth -= 1
    return seen and depth <= 0 and not quoted
