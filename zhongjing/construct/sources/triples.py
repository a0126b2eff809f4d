"""CBLUE's CMeIE and CMeIE-V2: relations of a sentence.

Layout: ``{"text", "spo_list": [{"Combined", "predicate", "subject", "subject_type", "object": {"@value"},
"object_type": {"@value"}}]}``, one a line (README_ZH.md and ``data_process.py`` of CBLUEbenchmark/CBLUE).
There are no places: a head or a tail that does not stand in the text cannot be extracted, and nobody should
learn to make it up.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converted, Item, Talk, list_of, text_of
from zhongjing.data.records import RejectedError

_ALL = (
    "抽取下面文本中的医学关系，每行写一个三元组（主体，关系，客体）。\n{text}",
    "{text}\n\n请列出上文包含的全部“主体—关系—客体”，格式为（主体，关系，客体）。",
    "这段医学文本说明了哪些实体之间的关系？用（主体，关系，客体）逐行写出。\n文本：{text}",
    "为构建医学知识图谱，请把下面的句子整理成三元组（主体，关系，客体），一行一个。\n{text}",
)
_SOME = (
    "找出下面文本中属于“{relations}”的关系，格式为（主体，关系，客体），每行一个。\n{text}",
    "{text}\n\n只看{relations}：上文中有哪些三元组（主体，关系，客体）？",
)
_JSON = (
    "抽取文本中的关系，用 JSON 列表回答，每项含 subject、predicate、object。\n{text}",
    "{text}\n请输出上文的关系三元组，格式为 JSON 数组，键为 subject、predicate、object。",
)
_NONE = ("没有找到这样的关系。", "文中没有可以抽取的关系。")


class Triples:
    """Sentences with relations become questions for them."""

    kind = Kind.DIALOGUE
    members = False

    def parameters(self) -> dict[str, object]:  # noqa: D102
        return {}

    def convert(self, item: Item, choice: Choice) -> Converted:  # noqa: D102
        text = text_of(item, "text", "the item has no text")
        found = list(dict.fromkeys(_triples(text, item)))
        return Converted(talks=(_talk(text, found, choice),), counts={"triples": len(found)})


def _triples(text: str, item: Item) -> list[tuple[str, str, str]]:
    found = []
    for each in list_of(item, "spo_list", "the item has no spo_list"):
        if not isinstance(each, Mapping):
            raise RejectedError("a triple is no object")
        head, relation = each.get("subject"), each.get("predicate")
        tail = each.get("object")
        tails = list(tail.values()) if isinstance(tail, Mapping) else [tail]
        for one in tails:
            if not (isinstance(head, str) and isinstance(relation, str) and isinstance(one, str)):
                raise RejectedError("a triple has no subject, predicate and object")
            if not head or not one or head not in text or one not in text:
                raise RejectedError("the head or tail of a triple is not in the text")
            found.append((head, relation, one))
    return found


def _talk(text: str, found: list[tuple[str, str, str]], choice: Choice) -> Talk:
    way = choice.number("way", 4)
    if way == 0:
        rows = [dict(zip(("subject", "predicate", "object"), each, strict=True)) for each in found]
        return Talk((choice.one("json", _JSON).format(text=text), json.dumps(rows, ensure_ascii=False)))
    wording = choice.one("all", _ALL).format(text=text)
    relations = list(dict.fromkeys(relation for _, relation, _ in found))
    if way == 1 and len(relations) > 1:
        asked = choice.order("relations", relations)[: 1 + choice.number("how many", len(relations) - 1)]
        found = [each for each in found if each[1] in asked]
        wording = choice.one("some", _SOME).format(text=text, relations="、".join(asked))
    answer = "\n".join(f"（{head}，{relation}，{tail}）" for head, relation, tail in found)
    return Talk((wording, answer or choice.one("none", _NONE)))
