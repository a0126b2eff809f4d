"""Small copies of published layouts, made by their publishers' rules with sentences of our own.

CMeEE, CMeIE: README_ZH.md of CBLUEbenchmark/CBLUE. CHIP-CDEE: its ``format_checker_CDEE.py``. IMCS-21:
README.md of lemuria-wchen/imcs21-cblue.
"""

from __future__ import annotations

import json
from typing import Any

TEXT = "呼吸道感染可引起咳嗽，胸片有助于诊断。"


def span(text: str, words: str, kind: str, *, behind: bool = False) -> dict[str, Any]:
    """An entity; ``behind``: its end is the place behind it."""
    begin = text.index(words)
    return {
        "start_idx": begin,
        "end_idx": begin + len(words) - (0 if behind else 1),
        "type": kind,
        "entity": words,
    }


def cmeee(text: str = TEXT, *, behind: bool = False) -> dict[str, Any]:
    entities = (("呼吸道感染", "dis"), ("咳嗽", "sym"), ("胸片", "pro"))
    return {"text": text, "entities": [span(text, words, kind, behind=behind) for words, kind in entities]}


def cmeie() -> dict[str, Any]:
    def spo(predicate: str, tail: str, kind: str) -> dict[str, Any]:
        return {
            "Combined": False,
            "predicate": predicate,
            "subject": "呼吸道感染",
            "subject_type": "疾病",
            "object": {"@value": tail},
            "object_type": {"@value": kind},
        }

    return {"text": TEXT, "spo_list": [spo("临床表现", "咳嗽", "症状"), spo("影像学检查", "胸片", "检查")]}


def cdee() -> dict[str, Any]:
    return {
        "id": "1",
        "text": "患者3天前出现右下腹持续性疼痛，无发热。",
        "event": [
            {"core_name": "疼痛", "tendency": "", "character": ["持续性"], "anatomy_list": ["右下腹"]},
            {"core_name": "发热", "tendency": "否定", "character": [], "anatomy_list": []},
        ],
    }


def bio(sentence: str, *entities: tuple[str, str]) -> str:
    """One label a character, between blanks."""
    labels = ["O"] * len(sentence)
    for words, kind in entities:
        begin = sentence.index(words)
        labels[begin : begin + len(words)] = [f"B-{kind}", *[f"I-{kind}"] * (len(words) - 1)]
    return " ".join(labels)


def imcs() -> dict[str, Any]:
    """One consultation, as the value of its identifier."""

    def said(
        place: int, speaker: str, sentence: str, *entities: tuple[str, str], **more: Any
    ) -> dict[str, Any]:
        return {
            "sentence_id": str(place),
            "speaker": speaker,
            "sentence": sentence,
            "dialogue_act": "Other",
            "BIO_label": bio(sentence, *entities),
            "symptom_norm": [],
            "symptom_type": [],
            "local_implicit_info": {},
            **more,
        }

    symptoms = {
        "symptom_norm": ["咳嗽", "发热"],
        "symptom_type": ["1", "0"],
        "local_implicit_info": {"咳嗽": "1", "发热": "0"},
    }
    report = {
        "主诉": "咳嗽两天",
        "现病史": "咳嗽",
        "辅助检查": "暂缺",
        "既往史": "不详",
        "诊断": "感冒",
        "建议": "观察",
    }
    return {
        "diagnosis": "小儿感冒",
        "self-report": "宝宝咳嗽两天，怎么办？",
        "dialogue": [
            said(1, "医生", "有没有发热？", ("发热", "Symptom")),
            said(
                2,
                "患者",
                "咳嗽，不发热，喂过妈咪爱",
                ("咳嗽", "Symptom"),
                ("发热", "Symptom"),
                ("妈咪爱", "Drug"),
                **symptoms,
            ),
        ],
        "report": [report, {**report, "主诉": "咳嗽2天。"}],
        "explicit_info": {"Symptom": ["咳嗽"]},
        "implicit_info": {"Symptom": {"咳嗽": "1", "发热": "0"}},
    }


def imcs_file(count: int) -> str:
    """All consultations of a file: one object, indented, as published."""
    return json.dumps({f"1000{number}": imcs() for number in range(count)}, ensure_ascii=False, indent=2)
