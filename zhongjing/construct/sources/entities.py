"""CBLUE's CMeEE and CMeEE-V2: nine types of medical entities in a sentence.

Layout: ``{"text", "entities": [{"start_idx", "end_idx", "type", "entity"}]}`` in a JSON array (README_ZH.md
and ``format_checker_CMeEE.py`` of CBLUEbenchmark/CBLUE). ``end_idx`` is the place of the last character in
the README's example, and the place behind it in other copies: either is taken, one for all of an item.
That the type may be asked for in part is the way of michael-wzhu/PromptCBLUE.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converted, Item, Talk, joined, list_of, text_of
from zhongjing.data.records import RejectedError

TYPES = {
    "dis": "疾病",
    "sym": "临床表现",
    "dru": "药物",
    "equ": "医疗设备",
    "pro": "医疗程序",
    "bod": "身体部位",
    "ite": "医学检验项目",
    "mic": "微生物类",
    "dep": "科室",
}
_LINES = (
    "找出下面这段话里的医学实体，类型限于{types}，每行写一个类型。\n{text}",
    "请从以下文本中抽取{types}实体，按“类型：实体、实体”的格式逐行回答。\n\n{text}",
    "{text}\n\n上文提到了哪些医学实体？请按类型列出（{types}）。",
    "你在整理病历。请把下面文字中属于{types}的词语分类摘录出来。\n文字：{text}",
    "医学命名实体识别。可选类型：{types}。\n输入：{text}",
    "阅读：“{text}”\n其中的{types}分别有哪些？没有的类型不用写。",
)
_JSON = (
    "从下面的文本中识别医学实体（{types}），用 JSON 回答，键是类型，值是实体的列表。\n{text}",
    "{text}\n请以 JSON 对象输出上文的医学实体，键限于：{types}。",
)
_NONE = ("没有找到这些类型的实体。", "这段文字中没有所问类型的实体。", "无。")


class Entities:
    """Sentences with entities become questions for them."""

    kind = Kind.DIALOGUE
    members = False

    def parameters(self) -> dict[str, object]:  # noqa: D102
        return {}

    def convert(self, item: Item, choice: Choice) -> Converted:  # noqa: D102
        text = text_of(item, "text", "the item has no text")
        found: dict[str, list[str]] = {}
        for kind, words in _by_type(text, list_of(item, "entities", "the item has no list of entities")):
            found.setdefault(kind, []).append(words)
        talk = question(text, found, tuple(TYPES.values()), choice)
        counts = {"entities": sum(map(len, found.values()))}
        return Converted(talks=(talk,), counts=counts)


def question(text: str, found: Mapping[str, Sequence[str]], types: Sequence[str], choice: Choice) -> Talk:
    """A question for entities of a text, and its answer.

    Args:
        text: that they are in.
        found: entities by type, in their order.
        types: all that may be asked for.
        choice: draws the wording, the format of the answer, and whether all types are asked for.
    """
    asked = _asked(found, types, choice)
    held = {kind: list(dict.fromkeys(found[kind])) for kind in asked if kind in found}
    as_json = choice.number("format", 4) == 0
    wording = choice.one("wording", _JSON if as_json else _LINES)
    if as_json:
        answer = json.dumps(held, ensure_ascii=False)
    elif held:
        answer = "\n".join(f"{kind}：{joined(words)}" for kind, words in held.items())
    else:
        answer = choice.one("none", _NONE)
    return Talk((wording.format(types="、".join(asked), text=text), answer))


def _asked(found: Mapping[str, Sequence[str]], types: Sequence[str], choice: Choice) -> list[str]:
    """All types, or some of them with one that is there."""
    if choice.number("all types", 2) == 0:
        return list(types)
    there = choice.order("there", [kind for kind in types if kind in found])[:1]
    others = choice.order("others", [kind for kind in types if kind not in there])
    wanted = {*there, *others[: 1 + choice.number("how many", max(1, len(types) - 2))]}
    return [kind for kind in types if kind in wanted]


def _by_type(text: str, entities: Sequence[object]) -> list[tuple[str, str]]:
    spans: list[tuple[int, int, str]] = []
    kinds: list[str] = []
    for each in entities:
        if not isinstance(each, Mapping):
            raise RejectedError("an entity is no object")
        begin, end, words, kind = (each.get(key) for key in ("start_idx", "end_idx", "entity", "type"))
        if not isinstance(begin, int) or not isinstance(end, int) or not isinstance(words, str):
            raise RejectedError("an entity has no start_idx, end_idx and entity")
        if kind not in TYPES:
            raise RejectedError("an entity has a type that CMeEE does not have")
        spans.append((begin, end, words))
        kinds.append(TYPES[kind])
    if not any(
        all(0 <= begin < end + more and text[begin : end + more] == words for begin, end, words in spans)
        for more in (1, 0)
    ):
        raise RejectedError("the text at an entity's place is not the entity")
    order = sorted(range(len(spans)), key=lambda place: spans[place][0])
    return [(kinds[place], spans[place][2]) for place in order]
