"""Unknown keys are named, with the line to write under ``columns``."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.unit.data.reading import read
from tests.unit.data.support import json_lines
from zhongjing.codes import data as codes
from zhongjing.config.sources import Kind
from zhongjing.data.records import Rejected


def written(reason: str) -> dict[str, str]:
    """The ``columns`` that a reason says to write."""
    line = reason.partition("`columns: ")[2].partition("`")[0] if "`columns: {" in reason else ""
    return dict(yaml.safe_load(line))


@pytest.mark.parametrize(
    ("kind", "record", "columns"),
    [
        (
            "dialogue",
            {"就诊号": "1", "患者提问": "头痛", "医生回复": "休息"},
            {"prompt": "患者提问", "response": "医生回复"},
        ),
        ("dialogue", {"q": "头痛", "a": "休息"}, {"prompt": "q", "response": "a"}),
        (
            "ranking",
            {"患者提问": "头痛", "候选回复": ["一", "二"], "医生排序": [1, 2]},
            {"prompt": "患者提问", "answers": "候选回复", "ranks": "医生排序"},
        ),
        ("prompts", {"患者主诉": "头痛"}, {"prompt": "患者主诉"}),
        ("text", {"病历全文": "头痛三天"}, {"text": "病历全文"}),
        (
            "text",
            {"患者提问": "头痛", "诊疗意见": "休息", "科室": "内科"},
            {"prompt": "患者提问", "response": "诊疗意见"},
        ),
        ("text", {"患者提问": "头痛", "处置": "休息"}, {"prompt": "患者提问", "response": "..."}),
        ("dialogue", {"问诊对话": [{"role": "user", "content": "问"}] * 2}, {"messages": "问诊对话"}),
    ],
)
def test_unknown_keys_are_named_with_the_line_to_copy(
    kind: str, record: dict[str, Any], columns: dict[str, str]
) -> None:
    [refused] = read(json_lines([record]), Kind(kind))
    assert isinstance(refused, Rejected)
    assert refused.code is codes.UNKNOWN_LAYOUT
    assert all(key in refused.reason for key in record)
    assert written(refused.reason) == columns


@pytest.mark.parametrize(
    ("kind", "record", "columns"),
    [
        ("dialogue", {"问题": "头痛", "医生意见": "休息"}, {"prompt": "问题", "response": "医生意见"}),
        ("dialogue", {"问题": "头痛", "处置": "休息"}, {"prompt": "问题", "response": "..."}),
        (
            "ranking",
            {"问题": "头痛", "候选": ["一", "二"], "名次": [1, 2]},
            {"prompt": "问题", "answers": "候选", "ranks": "名次"},
        ),
    ],
)
def test_a_known_question_beside_unknown_keys_names_them_too(
    kind: str, record: dict[str, Any], columns: dict[str, str]
) -> None:
    [refused] = read(json_lines([record]), Kind(kind))
    assert isinstance(refused, Rejected)
    assert all(key in refused.reason for key in record)
    assert written(refused.reason) == columns


def test_a_table_too_and_what_is_written_then_reads_it() -> None:
    data = "就诊号,患者提问,医生回复\n1,头痛,休息\n2,发烧,喝水\n".encode("gb18030")
    refused = read(data)[0]
    assert isinstance(refused, Rejected)
    assert not any(isinstance(each, Rejected) for each in read(data, columns=written(refused.reason)))


def test_keys_that_tell_nothing_are_named_too() -> None:
    [refused] = read(json_lines([{"甲": "头痛", "乙": "休息"}]))
    assert isinstance(refused, Rejected)
    assert "(乙, 甲)" in refused.reason
    assert written(refused.reason) == {"prompt": "...", "response": "..."}


def test_many_and_long_keys_are_shortened() -> None:
    [refused] = read(json_lines([{f"{'长' * 30}{number}": "x" for number in range(20)}]))
    assert isinstance(refused, Rejected)
    assert refused.reason.count("长…") == 12
    assert ", ...)" in refused.reason


@pytest.mark.parametrize(
    "key",
    ["我头痛三天了，怎么办", "孩子发烧了吃什么药", "高血压可以吃柚子", "I have a headache today", "?", "12"],
)
def test_keys_that_are_text_are_not_told(key: str) -> None:
    [refused] = read(json_lines([{key: "x", "乙": "y"}]))
    assert isinstance(refused, Rejected)
    assert refused.reason == "no known layout among its keys"


def test_a_typo_under_columns_is_told_with_the_key_that_was_meant() -> None:
    columns = {"prompt": "患者提向", "response": "医生回复"}
    [refused] = read(json_lines([{"患者提问": "头痛", "医生回复": "休息", "id": 1}]), columns=columns)
    assert isinstance(refused, Rejected)
    assert refused.code is codes.UNKNOWN_LAYOUT
    assert "did you mean '患者提问'?" in refused.reason
    assert "(id, 医生回复, 患者提问)" in refused.reason
    assert written(refused.reason) == {"prompt": "患者提问", "response": "医生回复"}
