"""Layouts of constructed records, and where parts end."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from zhongjing.config.sources import Kind, Source
from zhongjing.construct import parts
from zhongjing.construct.parts import Making, cut, line_of
from zhongjing.data.readers import ReadStats, read_object, read_rows
from zhongjing.data.records import (
    Dialogue,
    Position,
    Prompt,
    Ranking,
    Record,
    Rejected,
    Row,
    TextRecord,
    Turn,
)

AT = Position("raw", "s3://raw/a.jsonl", 3, 4)
ASKED = (Turn("system", "你是医生。"), Turn("user", "问？"), Turn("assistant", "答", learn=False))
PUBLISHED = [
    ("CMtMedQA_sample.json", Kind.DIALOGUE),
    ("medical_sft_1K.jsonl", Kind.DIALOGUE),
    ("sharegpt_zh_1K.jsonl", Kind.DIALOGUE),
    ("toyhom_internal_medicine_gb18030.csv", Kind.DIALOGUE),
    ("dpo_zh_500.jsonl", Kind.RANKING),
    ("huatuo26M_sample.json", Kind.PROMPTS),
    ("medical_qa_corpus.jsonl", Kind.TEXT),
    ("fever_textbook.txt", Kind.TEXT),
]


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (TextRecord("第一章\n发热", AT), Kind.TEXT),
        (Dialogue((*ASKED, Turn("user", "还？"), Turn("assistant", "完")), AT, "内科"), Kind.DIALOGUE),
        (Ranking((*ASKED, Turn("user", "还？")), ("乙", "甲", "丙"), (1, 0, 1), AT), Kind.RANKING),
        (Prompt((*ASKED, Turn("user", "还？")), AT), Kind.PROMPTS),
    ],
)
def test_every_kind_is_read_back_with_all_that_training_uses(record: Record, kind: Kind) -> None:
    stats = ReadStats()
    value = json.loads(line_of(record, {AT.uri: 2}))
    source = Source(name="raw", uri="s3://out/", kind=kind)
    assert list(read_rows(AT.uri, [Row(AT.index, AT.line, value, "")], source, stats)) == [record]
    assert not stats.unused.report()  # where a record comes from is told nowhere as left out
    assert value["_origin"] == "2#3"


@pytest.mark.parametrize(("name", "kind"), PUBLISHED)
def test_published_records_are_read_back_as_they_were(name: str, kind: Kind) -> None:
    folder = os.environ.get("ZHONGJING_DATA")
    if not folder or not (Path(folder) / name).is_file():
        pytest.skip("ZHONGJING_DATA has no such file")
    source = Source(name="raw", uri=f"{folder}/{name}", kind=kind)
    making = Making([], source, [source.place])
    read = [record for record in read_object(source.place, source) if not isinstance(record, Rejected)]
    for record in read:
        making.add(record)
    assert read
    assert not making.reasons
    rows = (Row(index, None, json.loads(line), line) for index, line in enumerate(making.lines))
    back = list(read_rows("s3://out/part", rows, source))
    assert [replace(record, position=AT) for record in back] == [
        replace(record, position=AT) for record in read
    ]


def test_records_alone_decide_where_a_part_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_CHARACTERS", 10)
    monkeypatch.setattr(parts, "PART_RECORDS", 3)
    texts = ["一二三四五六", "七八九十一二", "三", "四", "五", "六"]
    records = [TextRecord(text, AT) for text in texts]
    found = list(cut(records, lambda: 7))
    assert [len(part.records) for part in found] == [2, 3, 1]
    assert [part.name for part in found] == ["part-00000", "part-00001", "part-00002"]
    assert [(part.begin, part.end) for part in found] == [(0, 7), (7, 7), (7, 7)]
    assert list(cut([], lambda: 0)) == []
