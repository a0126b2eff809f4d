from __future__ import annotations

from decimal import Decimal

import pytest

from zhongjing.construct.kg.doses import dose_range, is_daily, number, quantities, times_a_day
from zhongjing.construct.kg.graph import Triple

NUMBERS = {"3": "3", "0.25": "0.25", "三": "3", "两": "2", "十": "10", "十二": "12", "二十": "20",
           "一百五十": "150", "零点五": "0.5", "半": "0.5", "一千": "1000"}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers(text: str) -> None:
    assert number(text) == Decimal(NUMBERS[text])


@pytest.mark.parametrize(
    ("text", "low", "high", "unit"),
    [
        ("0.25～0.5g".replace("～", "~"), "250", "500", "mg"),
        ("每次250mg至500mg", "250", "500", "mg"),
        ("0。75g", "750", "750", "mg"),
        ("两片", "2", "2", "片"),
        ("一到两粒", "1", "2", "粒"),
        ("半片", "0.5", "0.5", "片"),
        ("一片半", "1", "1.5", "片"),
        ("10毫升", "10", "10", "ml"),
        ("50微克", "0.05", "0.05", "mg"),
        ("5万单位", "50000", "50000", "iu"),
    ],
)
def test_amounts(text: str, low: str, high: str, unit: str) -> None:
    (found,) = quantities(text)
    assert (found.low, found.high, found.unit) == (Decimal(low), Decimal(high), unit)


@pytest.mark.parametrize("text", ["三天", "2周", "5岁", "10mgx", "第二", "05克"])
def test_no_amounts(text: str) -> None:
    assert not list(quantities(text))


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("一日三次", 3), ("每天2次", 2), ("日服两次", 2), ("tid", 3), ("b.i.d", 2), ("qd", 1), ("qn", 1),
        ("qid", 4), ("q8h", 3), ("每6小时一次", 4), ("早晚各一次", 2), ("三餐后", 3), ("睡前", 1),
        ("2次/日", 2), ("3次/d", 3),
    ],
)  # fmt: skip
def test_how_often(text: str, count: int) -> None:
    found = times_a_day(text)
    assert found is not None
    assert found[0] == count


@pytest.mark.parametrize(
    ("text", "daily"),
    [
        ("每天2g", True), ("一天三次，每次2g", False), ("每次2g，一日总量6g", True), ("2g/日", True),
        ("2g每天3次", False), ("2g", False), ("24小时内4g", True), ("每日3次2g", False),
    ],
)  # fmt: skip
def test_for_a_day_or_for_one_time(text: str, daily: bool) -> None:
    found = list(quantities(text))
    assert is_daily(text, found[-1]) is daily


@pytest.mark.parametrize(
    ("text", "low", "high", "daily"),
    [
        ("口服。成人一次0.25～0.5g，一日3次。", "250", "500", "1500"),
        ("口服，每次5-10mg，每日1次，每日最大剂量20mg。", "5", "10", "20"),
        ("一日量不超过2g", None, None, "2000"),
    ],
)
def test_ranges_by_their_text(text: str, low: str | None, high: str | None, daily: str) -> None:
    found = dose_range(Triple("药", "用法用量", text), [])
    assert found is not None
    expected = tuple(None if each is None else Decimal(each) for each in (low, high, daily))
    assert (found.low, found.high, found.daily) == expected


def test_ranges_by_their_attributes_and_pieces_by_their_strength() -> None:
    usage = Triple("药", "用法用量", "口服", {"low": "0.25", "high": "0.5", "times": "3", "unit": "g"})
    found = dose_range(usage, [Triple("药", "规格", "0.25g*24片")])
    assert found is not None
    assert found.daily == 1500
    (tablets,) = quantities("三片")
    assert found.amount(tablets, tablets.high) == 750
    (drops,) = quantities("三滴")
    assert found.amount(drops, drops.high) is None


def test_no_range_in_a_text_without_amounts() -> None:
    assert dose_range(Triple("药", "用法用量", "遵医嘱"), []) is None
