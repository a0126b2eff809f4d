"""Scenarios by words of the opening question."""

from __future__ import annotations

import pytest

from zhongjing.data.records import Turn
from zhongjing.data.scenarios import OTHER, SCENARIOS, scenario_of


@pytest.mark.parametrize(
    ("question", "scenario"),
    [
        ("胃镜检查大概多少钱", "医疗费用"),
        ("孩子发烧吃什么药", "用药建议"),
        ("怀孕可以吃阿莫西林胶囊吗", "用药建议"),
        ("血小板偏高说明什么", "指标解读"),
        ("腰疼应该挂什么科", "就医建议"),
        ("维生素C有什么作用", "功效作用"),
        ("糖尿病人平时要注意什么", "注意事项"),
        ("高血压可以吃西瓜吗", "注意事项"),
        ("为什么夜里总是出汗", "病因分析"),
        ("鼻炎怎么治疗", "治疗方案"),
        ("乙肝会传染给家人吗", "后果表述"),
        ("嗓子疼是不是感冒了", "病情诊断"),
        ("什么叫痔核脱出", "疾病表述"),
        ("你好医生", OTHER),
    ],
)
def test_a_question_has_the_scenario_that_it_asks_for(question: str, scenario: str) -> None:
    assert (
        scenario_of((Turn("system", "你是医生"), Turn("user", question), Turn("assistant", "。"))) == scenario
    )


def test_there_are_more_than_ten() -> None:
    assert len({*SCENARIOS, OTHER}) == 12
