"""CBLUE's CHIP-CDEE: clinical findings in a history, each with state, description and body part.

Layout: a JSON array of ``{"id", "text", "event": [{"core_name", "tendency", "character": [], "anatomy_list":
[]}]}``; ``tendency`` is "", 否定 or 不确定 (``format_checker_CDEE.py`` of CBLUEbenchmark/CBLUE). The names in
Chinese are those of michael-wzhu/PromptCBLUE. It leaves out items whose core word was put into the words of
ICD-10 and so does not stand in the text; so is it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converted, Item, Talk, joined, list_of, text_of
from zhongjing.data.records import RejectedError

_TENDENCIES = ("", "否定", "不确定")
_WORDINGS = (
    "抽取下面病历中的临床发现事件，每行写一个事件的主体词、发生状态、描述词和解剖部位。\n{text}",
    "{text}\n\n上面的病史里有哪些临床发现？请写明主体词、发生状态、描述词、解剖部位，没有的写“无”。",
    "请阅读这段现病史或影像所见，列出其中的临床发现事件及其属性（主体词；发生状态；描述词；解剖部位）。\n{text}",
    "临床发现事件抽取。属性：主体词、发生状态（肯定、否定、不确定）、描述词、解剖部位。\n输入：{text}",
    "医生想知道下面的记录里写了哪些异常或阴性发现。请逐条列出，并注明状态、描述和部位。\n记录：{text}",
)
_NONE = ("没有临床发现事件。", "这段文字没有写到临床发现。")


class Events:
    """Histories with findings become questions for them."""

    kind = Kind.DIALOGUE
    members = False

    def parameters(self) -> dict[str, object]:  # noqa: D102
        return {}

    def convert(self, item: Item, choice: Choice) -> Converted:  # noqa: D102
        text = text_of(item, "text", "the item has no text")
        lines = []
        for each in list_of(item, "event", "the item has no list of events"):
            if not isinstance(each, Mapping):
                raise RejectedError("an event is no object")
            name = each.get("core_name")
            if name is not None and not isinstance(name, str):
                raise RejectedError("a core_name is no text")
            name = (name or "").strip()
            if name and name not in text:
                return Converted(counts={"left out: core word is not in the text": 1})
            lines.append(_line(name, each))
        answer = "\n".join(dict.fromkeys(lines)) or choice.one("none", _NONE)
        question = choice.one("wording", _WORDINGS).format(text=text)
        return Converted(talks=(Talk((question, answer)),), counts={"events": len(lines)})


def _line(name: str, event: Mapping[str, Any]) -> str:
    tendency = event.get("tendency") or ""
    if tendency not in _TENDENCIES:
        raise RejectedError("the tendency of an event is not one that CHIP-CDEE has")
    parts = [_words(event, key) for key in ("character", "anatomy_list")]
    held = (("主体词", name), ("发生状态", tendency or "肯定"), ("描述词", parts[0]), ("解剖部位", parts[1]))
    return "；".join(f"{label}：{words or '无'}" for label, words in held)


def _words(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise RejectedError(f"the {key} of an event is no list of texts")
    return joined([each.strip() for each in value if each.strip()])
