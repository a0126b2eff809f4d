"""Nothing of a record is dropped in silence: what no reader took is told by its key."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.data.support import MemoryStore, json_lines
from zhongjing.config.sources import Columns, Kind, Source
from zhongjing.data.fields import OTHER_KEYS, UnusedKeys
from zhongjing.data.layouts import parse
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.storage.manifest import unused_text


@pytest.mark.parametrize(
    ("record", "unused"),
    [
        ({"question": "问", "answer": "答", "hints": {"A": "甲乙", "B": "丙"}}, {"hints": 3}),
        ({"question": "问", "answer": "答", "id": 17, "note": " ", "more": None, "list": []}, {"id": 2}),
        ({"department": "内科", "title": "题目", "ask": "问", "answer": "答"}, {"title": 2}),
        ({"cate1": "nan", "cate2": "骨科", "instruction": "问", "output": "答"}, {}),
        (
            {"messages": [{"role": "user", "content": "问"}, {"role": "bot", "content": "答", "name": "甲"}]},
            {"messages[].name": 1},
        ),
        ([{"role": "user", "content": "问"}, {"role": "bot", "content": "答", "name": "甲"}], {"[].name": 1}),
        (
            {"system": "甲乙丙", "conversations": [{"from": "system", "value": "丁"}]},
            {"system": 3},
        ),
        ({"messages": [{"role": "user", "from": "human", "content": "问"}]}, {"messages[].from": 5}),
    ],
)
def test_what_no_reader_took_is_told_by_its_key(record: Any, unused: dict[str, int]) -> None:
    assert parse(record, Columns(), Kind.DIALOGUE).unused == unused


def test_only_what_columns_name_is_used() -> None:
    record = {"q": "问", "a": "答", "question": "别的", "ks": "内科"}
    parsed = parse(record, Columns(prompt="q", response="a", department="ks"), Kind.DIALOGUE)
    assert (parsed.department, parsed.unused) == ("内科", {"question": 2})


def test_a_department_is_used_by_dialogues_only() -> None:
    record = {"question": "问", "answer": "答", "department": "内科"}
    assert parse(record, Columns(), Kind.PROMPTS).unused == {"answer": 1, "department": 2}


def test_kind_text_takes_the_text_and_tells_the_prompt() -> None:
    parsed = parse({"prompt": "写一段", "text": "正文在此"}, Columns(), Kind.TEXT)
    assert (parsed.text, parsed.unused) == ("正文在此", {"prompt": 3})


def test_keys_without_end_are_counted_together() -> None:
    counts = UnusedKeys()
    for number in range(100):
        counts.add({f"key{number}": 2, "common": 1, "句" * 80: 5})
    report = counts.report()
    assert len(report) < 70
    assert report["common"].records == 100
    assert sum(one.characters for one in report.values()) == 100 * 8
    assert report[OTHER_KEYS].records == 100
    assert (
        unused_text(report, limit=1)
        == f"other keys (100 records, 576 characters), {len(report) - 1} more keys"
    )


def test_a_source_counts_its_unused_keys() -> None:
    store, stats = MemoryStore(), ReadStats()
    store.put("s3://b/x", json_lines([{"问": f"问{n}", "答": "答", "提示": "甲乙丙"} for n in range(3)]))
    source = Source(name="x", uri="s3://b/x", kind=Kind.DIALOGUE)
    assert len(list(read_object("s3://b/x", source, store, stats=stats))) == 3  # type: ignore[arg-type]
    assert unused_text(stats.unused.report()) == "提示 (3 records, 9 characters)"
