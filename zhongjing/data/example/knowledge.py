"""The knowledge graph of the example world. Synthetic, NOT MEDICAL ADVICE.

``write_graph(FOLDER)`` writes ``kg.jsonl``: one object an entity, in the layout of CMeKG's objects as
BenTsao shows them (a ``中心词`` and a list for each relation; README of SCIR-HI/Huatuo-Llama-Med-Chinese),
with relations from the list of CMeKG_tools (``predicate.json`` of king-yyf/CMeKG_tools: 禁忌, 适应症,
用法用量, 规格, 药物相互作用, 相关症状, 检查).

Indications, symptoms and checks are those of :mod:`zhongjing.data.example.facts`. Which medicine must not be
given in which condition, and how much of it, is drawn by seed and true of nothing outside this world.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from zhongjing.data.example.facts import FACTS

# Second names, as they are in use. None is part of a name of something else.
ALIASES: dict[str, tuple[str, ...]] = {
    "阿司匹林": ("乙酰水杨酸",),
    "对乙酰氨基酚": ("扑热息痛", "泰诺林"),
    "布洛芬": ("芬必得",),
    "氨氯地平": ("络活喜",),
    "二甲双胍": ("格华止",),
    "阿托伐他汀": ("立普妥",),
    "奥美拉唑": ("洛赛克",),
    "奥司他韦": ("达菲",),
    "多潘立酮": ("吗丁啉",),
    "氯雷他定": ("开瑞坦",),
    "呋塞米": ("速尿",),
    "蒙脱石散": ("思密达",),
    "左甲状腺素": ("优甲乐",),
    "恩替卡韦": ("博路定",),
    "高血压病": ("血压高",),
    "糖尿病": ("消渴症",),
    "冠心病": ("冠状动脉粥样硬化性心脏病",),
    "流行性感冒": ("流感",),
    "脑梗死": ("缺血性脑卒中",),
    "消化性溃疡": ("胃溃疡",),
    "支气管哮喘": ("哮喘",),
    "甲状腺功能亢进": ("甲亢",),
    "甲状腺功能减退": ("甲减",),
    "慢性乙型肝炎": ("慢乙肝",),
    "慢性肾衰竭": ("慢性肾功能不全",),
}
GROUPS: dict[str, tuple[str, ...]] = {"孕妇": ("妊娠期妇女",), "哺乳期妇女": ("喂奶期妇女",), "新生儿": ()}
FOODS: dict[str, tuple[str, ...]] = {
    "白酒": ("烈酒",),
    "啤酒": (),
    "西柚汁": ("葡萄柚汁",),
    "浓茶": (),
    "牛奶": ("鲜奶",),
}

_STRENGTHS = ("5", "10", "20", "50", "100", "250", "500")  # mg a tablet
_COUNTED = ("粒", "袋", "丸")


@dataclass(frozen=True, slots=True)
class Dose:
    """How much of a medicine the example world allows: ``low`` to ``high`` at a time, ``times`` a day.

    ``unit`` is ``mg``, ``ml`` or what is counted. ``strength``: mg in a tablet, where it comes in tablets.
    """

    low: Decimal
    high: Decimal
    unit: str
    times: int
    strength: Decimal | None = None

    @property
    def daily(self) -> Decimal:
        """The most for a day."""
        return self.high * self.times


@dataclass(frozen=True, slots=True)
class Medicine:
    """One medicine of the example world."""

    name: str
    treats: str
    conditions: tuple[str, ...]  # it is contraindicated in
    groups: tuple[str, ...]  # of people that it is contraindicated in
    foods: tuple[str, ...]  # it does not go with
    dose: Dose


def medicines(seed: int = 0) -> tuple[Medicine, ...]:
    """All medicines of the table of facts, in its order."""
    diseases = [fact.disease for fact in FACTS]
    made = []
    for fact in FACTS:
        rng = random.Random(f"{seed}:knowledge:{fact.medicine}")
        others = [disease for disease in diseases if disease != fact.disease]
        made.append(
            Medicine(
                fact.medicine,
                fact.disease,
                tuple(rng.sample(others, 2)),
                (rng.choice(list(GROUPS)),),
                (rng.choice(list(FOODS)),),
                _dose(rng),
            )
        )
    return tuple(made)


def _dose(rng: random.Random) -> Dose:
    times = rng.choice((1, 2, 3, 4))
    form = rng.random()
    if form < 0.7:
        strength = Decimal(rng.choice(_STRENGTHS))
        return Dose(strength, strength * 2, "mg", times, strength)
    if form < 0.85:
        return Dose(Decimal(5), Decimal(10), "ml", times)
    return Dose(Decimal(1), Decimal(2), rng.choice(_COUNTED), times)


def amount(value: Decimal) -> str:
    """A number as it is written: without trailing zeros, without an exponent."""
    return f"{value.normalize():f}"


def _usage(rng: random.Random, dose: Dose) -> str:
    low, high, daily, unit = dose.low, dose.high, dose.daily, dose.unit
    if unit == "mg" and high >= 500:
        low, high, daily, unit = low / 1000, high / 1000, daily / 1000, "g"
    pattern = rng.choice(
        (
            "口服。成人一次{a}～{b}{u}，一日{n}次。",
            "口服，每次{a}-{b}{u}，每日{n}次，每日最大剂量{c}{u}。",
            "成人：每次{a}{u}至{b}{u}，一天{n}次；一日量不超过{c}{u}。",
        )
    )
    return pattern.format(a=amount(low), b=amount(high), c=amount(daily), u=unit, n=dose.times)


def graph_rows(seed: int = 0) -> list[dict[str, Any]]:
    """The graph, an object an entity."""
    rows: list[dict[str, Any]] = []
    for fact in FACTS:
        rows.append(
            {
                "中心词": fact.disease,
                "类型": "疾病",
                "同义词": list(ALIASES.get(fact.disease, ())),
                "相关症状": list(fact.symptoms),
                "所属科室": [fact.department],
                "药物治疗": [fact.medicine],
                "检查": [fact.check],
            }
        )
    for medicine in medicines(seed):
        rng = random.Random(f"{seed}:usage:{medicine.name}")
        strength = medicine.dose.strength
        rows.append(
            {
                "中心词": medicine.name,
                "类型": "药物",
                "同义词": list(ALIASES.get(medicine.name, ())),
                "适应症": [medicine.treats],
                "禁忌": [*medicine.conditions, *medicine.groups],
                "药物相互作用": list(medicine.foods),
                "用法用量": [_usage(rng, medicine.dose)],
                "规格": [f"{amount(strength)}mg/片"] if strength else [],
            }
        )
    for kind, names in (("人群", GROUPS), ("食物", FOODS)):
        rows += [{"中心词": name, "类型": kind, "同义词": list(second)} for name, second in names.items()]
    return rows


def lines(rows: Sequence[dict[str, Any]]) -> str:
    """One object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Writes one object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(lines(rows), encoding="utf-8")
    return path


def write_graph(folder: Path, seed: int = 0) -> Path:
    """Writes ``kg.jsonl`` into ``folder``."""
    return write_lines(folder / "kg.jsonl", graph_rows(seed))
