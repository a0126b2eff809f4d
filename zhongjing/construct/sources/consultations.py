"""IMCS-21 (IMCS-V2 of CBLUE): entities, symptoms and reports of consultations in paediatrics.

Layout, of README.md of lemuria-wchen/imcs21-cblue; its ``preprocess.py`` has one label a character::

    {example_id: {"self-report": text,
                  "dialogue": [{"speaker", "sentence", "BIO_label": "O B-Symptom I-Symptom ...",
                                "symptom_norm": [], "symptom_type": [], "local_implicit_info": {}}, ...],
                  "report": [two of {主诉, 现病史, 辅助检查, 既往史, 诊断, 建议}],
                  "implicit_info": {"Symptom": {name: "0" | "1" | "2"}}}, ...}

``0``: the patient does not have the symptom, ``1``: does, ``2``: it cannot be told. Where a sentence has a
symptom twice, 1 goes before 0 before 2, as there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converted, Item, Talk, list_of
from zhongjing.construct.sources.entities import question
from zhongjing.data.records import RejectedError

TASKS = ("ner", "sr", "mrg")
"""IMCS-V2-NER (entities), IMCS-V2-SR (symptoms), IMCS-V2-MRG (reports)."""
TYPES = {
    "Symptom": "症状",
    "Drug": "药品名",
    "Drug_Category": "药物类别",
    "Medical_Examination": "检查",
    "Operation": "操作",
}
SECTIONS = ("主诉", "现病史", "辅助检查", "既往史", "诊断", "建议")
_STATES = {"1": "有", "0": "没有", "2": "无法判断"}
_PRIORITY = ("1", "0", "2")
_EMPTY_ONE_IN = (
    10  # sentences without an entity: so many are kept, or most answers would say that none is there
)
_CONTEXT = 2  # sentences before the one that symptoms are asked of

_SENTENCE_SYMPTOMS = (
    "问诊片段：\n{context}\n最后一句话里提到了哪些症状？患者有没有？请写成“症状：有／没有／无法判断”。",
    "判断当前这句话中的症状及其状态（有、没有、无法判断），症状用标准名称。\n{context}",
    "{context}\n\n从最后一句出发，列出症状并说明患者是否患有，每行一个。",
)
_DIALOGUE_SYMPTOMS = (
    "阅读整段问诊，列出其中的症状，并判断患者是否有该症状（有、没有、无法判断）。\n{context}",
    "{context}\n\n根据以上对话，整理患者的症状清单，每行写“症状：有／没有／无法判断”。",
    "下面是一次在线问诊。患者有哪些症状，没有哪些，哪些还不清楚？请逐行回答。\n{context}",
)
_REPORTS = (
    "根据下面的问诊写一份诊疗报告，包括主诉、现病史、辅助检查、既往史、诊断、建议六部分。\n{context}",
    "{context}\n\n请把以上医患对话整理成病历：主诉、现病史、辅助检查、既往史、诊断、建议。",
    "你是医生助理。请为这次在线问诊撰写报告，依次写明主诉、现病史、辅助检查、既往史、诊断和建议。\n{context}",
    "问诊记录如下，请生成诊疗报告（主诉／现病史／辅助检查／既往史／诊断／建议）。\n{context}",
)


class Consultations:
    """Consultations become tasks.

    Args:
        tasks: some of :data:`TASKS`.
    """

    kind = Kind.DIALOGUE
    members = True

    def __init__(self, tasks: Sequence[str] = TASKS) -> None:
        self.tasks = tuple(tasks)

    def parameters(self) -> dict[str, object]:  # noqa: D102
        return {"tasks": list(self.tasks)}

    def convert(self, item: Item, choice: Choice) -> Converted:  # noqa: D102
        sentences = [_sentence(each) for each in list_of(item, "dialogue", "the item has no dialogue")]
        made = {
            task: list(getattr(self, f"_{task}")(item, sentences, choice))
            for task in TASKS
            if task in self.tasks
        }
        return Converted(
            talks=tuple(talk for talks in made.values() for talk in talks),
            counts={f"imcs-{task}": len(talks) for task, talks in made.items()},
        )

    @staticmethod
    def _ner(item: Item, sentences: Sequence[Mapping[str, Any]], choice: Choice) -> list[Talk]:
        del item
        talks = []
        for place, each in enumerate(sentences):
            found = _entities(each)
            own = Choice(choice.number(f"ner {place}", 1 << 60), each["sentence"])
            if found or own.number("kept", _EMPTY_ONE_IN) == 0:
                text = f"{each['speaker']}：{each['sentence']}"
                talks.append(question(text, found, tuple(TYPES.values()), own))
        return talks

    @staticmethod
    def _sr(item: Item, sentences: Sequence[Mapping[str, Any]], choice: Choice) -> list[Talk]:
        talks = []
        for place, each in enumerate(sentences):
            states = _states(each)
            if states:
                context = _told(sentences[max(0, place - _CONTEXT) : place + 1])
                wording = choice.one(f"sr {place}", _SENTENCE_SYMPTOMS)
                talks.append(Talk((wording.format(context=context), _symptoms(states))))
        whole = item.get("implicit_info")
        of_all = whole.get("Symptom") if isinstance(whole, Mapping) else None
        if isinstance(of_all, Mapping) and of_all:
            context = _told(sentences, item)
            wording = choice.one("sr", _DIALOGUE_SYMPTOMS)
            talks.append(Talk((wording.format(context=context), _symptoms(of_all))))
        return talks

    @staticmethod
    def _mrg(item: Item, sentences: Sequence[Mapping[str, Any]], choice: Choice) -> list[Talk]:
        found = item.get("report")
        reports = [found] if isinstance(found, Mapping) else found
        if not isinstance(reports, list) or not reports:
            raise RejectedError("the item has no report")
        wordings = choice.order("mrg", _REPORTS)
        talks = []
        for report, wording in zip(reports, wordings, strict=False):
            if not isinstance(report, Mapping) or not any(report.get(each) for each in SECTIONS):
                raise RejectedError("a report has none of the six sections")
            answer = "\n".join(f"{each}：{report.get(each) or '无'}" for each in SECTIONS)
            talks.append(Talk((wording.format(context=_told(sentences, item)), answer)))
        return list(dict.fromkeys(talks))


def _sentence(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping) or not all(
        isinstance(value.get(key), str) for key in ("speaker", "sentence")
    ):
        raise RejectedError("a sentence has no speaker and text")
    return value


def _told(sentences: Sequence[Mapping[str, Any]], item: Item | None = None) -> str:
    report = item.get("self-report") if item is not None else None
    first = [f"患者自述：{report}"] if isinstance(report, str) and report.strip() else []
    return "\n".join([*first, *(f"{each['speaker']}：{each['sentence']}" for each in sentences)])


def _entities(sentence: Mapping[str, Any]) -> dict[str, list[str]]:
    """Entities by type, of one BIO label a character."""
    labels = sentence.get("BIO_label")
    text = sentence["sentence"]
    if not isinstance(labels, str):
        raise RejectedError("a sentence has no BIO_label")
    tags = labels.split(" ") if labels else []
    if len(tags) != len(text):
        raise RejectedError("a sentence has not as many labels as characters")
    found: dict[str, list[str]] = {}
    kind, begin = "", 0
    for place, tag in enumerate([*tags, "O"]):
        if tag.startswith("I-") and tag[2:] == kind:
            continue
        if kind:
            found.setdefault(TYPES[kind], []).append(text[begin:place])
        kind, begin = (tag[2:], place) if tag.startswith("B-") else ("", 0)
        if tag.startswith("I-") or (kind and kind not in TYPES) or (not kind and tag != "O"):
            raise RejectedError("a label is none of IMCS-21, or an I- stands without its B-")
    return found


def _states(sentence: Mapping[str, Any]) -> Mapping[str, Any]:
    local = sentence.get("local_implicit_info")
    if isinstance(local, Mapping):
        return local
    names, types = sentence.get("symptom_norm"), sentence.get("symptom_type")
    if not isinstance(names, list) or not isinstance(types, list) or len(names) != len(types):
        raise RejectedError("a sentence has not as many symptom_type as symptom_norm")
    states: dict[str, str] = {}
    for name, state in zip(names, map(str, types), strict=True):
        if state not in _PRIORITY:
            raise RejectedError("a symptom has a state that IMCS-21 does not have")
        states[name] = min(states.get(name, state), state, key=_PRIORITY.index)
    return states


def _symptoms(states: Mapping[str, Any]) -> str:
    lines = []
    for name, state in states.items():
        if str(state) not in _STATES:
            raise RejectedError("a symptom has a state that IMCS-21 does not have")
        lines.append(f"{name}：{_STATES[str(state)]}")
    return "\n".join(lines)
