"""Doses in one notation, and names of drugs: what two texts have in common and what they do not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zhongjing.construct.llm.doses import Dose, doses, number
from zhongjing.construct.llm.drugs import DrugNames

NUMBERS = {
    "3": 3,
    "0.25": 0.25,
    "1/2": 0.5,
    "半": 0.5,
    "两": 2,
    "十": 10,
    "二十五": 25,
    "一百二十": 120,
    "零点五": 0.5,
    "二五": 25,
}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers(text: str, value: float) -> None:
    assert number(text) == value


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("每次0.5g", "每次500毫克"),
        ("一日三次", "每天3次"),
        ("tid", "每日三次"),
        ("每8小时1次", "一天３次"),
        ("bid", "2次/日"),
        ("两天一次", "每2天1次"),
        ("每次两片", "每次２片"),
        ("一片半", "1.5片"),
        ("10万单位", "100000IU"),
        ("连服7天", "服用一周"),
        ("每次1-2粒", "每次1～2粒"),
        ("1,000mg", "1克"),
        ("250μg", "0.25mg"),
    ],
)
def test_the_same_dose_in_two_notations(one: str, other: str) -> None:
    assert doses(one) == doses(other) != set()


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("每次0.5g", "每次0.6g"),
        ("每次5ml", "每次5mg"),
        ("一日三次", "一日两次"),
        ("两天一次", "一天一次"),
        ("每次1-2片", "每次1片"),
        ("连服7天", "连服14天"),
        ("2%软膏", "1%软膏"),
        ("每次半片", "每次一片"),
    ],
)
def test_other_doses(one: str, other: str) -> None:
    assert doses(one) != doses(other)


def test_what_is_no_dose() -> None:
    assert doses("我今年30岁，三天前开始发烧38.5度，好了两个月又犯，住在3楼") == set()
    assert doses("每天涂3次") == {Dose("a day", 3.0)}


def test_drugs_of_a_list_and_by_their_endings() -> None:
    names = DrugNames.of(["阿莫西林", "阿莫西林胶囊", "布洛芬缓释胶囊", "胶"])
    assert names.added("可以吃阿莫西林胶囊", "吃阿莫西林行吗") == {"阿莫西林胶囊"}
    assert names.added("可以吃阿莫西林", "吃阿莫西林胶囊行吗") == set()
    assert names.added("建议服用左氧氟沙星", "吃什么药") == {"氟沙星"}
    assert names.added("建议用他汀", "他汀能吃吗") == set()
    assert names.added("头孢克肟也可以", "头孢可以吗") == {"头孢克肟"}
    assert names.digest != DrugNames.of(["阿莫西林"]).digest


def test_the_published_list_of_drugs() -> None:
    data = os.environ.get("ZHONGJING_DATA")
    if data is None:
        pytest.skip("ZHONGJING_DATA names no folder")
    names = DrugNames.load(Path(data) / "medical_kg" / "drug.txt")
    assert len(names.names) > 3000
    assert [mention.name for mention in names.find("先吃藿香正气水，再用氨茶碱氯化钠注射液")] == [
        "藿香正气水",
        "氨茶碱氯化钠注射液",
    ]
