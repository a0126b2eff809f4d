"""Amounts and frequencies in Chinese medical text: ``每次0.25～0.5g，一日三次``, ``两片 tid``.

Masses are compared in mg, volumes in ml; what is counted (片, 粒, ...) has its own unit and meets a mass only
by the strength of a piece. Abbreviations of frequency are those of prescriptions (qd, bid, tid, qid, q8h).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from zhongjing.construct.kg.graph import Triple
from zhongjing.construct.kg.linker import fold

_SCALES: dict[str, tuple[str, Decimal]] = {
    **dict.fromkeys(("mg", "毫克"), ("mg", Decimal(1))),
    **dict.fromkeys(("g", "克"), ("mg", Decimal(1000))),
    **dict.fromkeys(("ug", "μg", "µg", "mcg", "微克"), ("mg", Decimal("0.001"))),
    **dict.fromkeys(("ml", "毫升", "cc"), ("ml", Decimal(1))),
    **dict.fromkeys(("l", "升"), ("ml", Decimal(1000))),
    **dict.fromkeys(("万iu", "万单位", "万u"), ("iu", Decimal(10000))),
    **dict.fromkeys(("iu", "单位", "国际单位"), ("iu", Decimal(1))),
    **{unit: (unit, Decimal(1)) for unit in ("粒", "袋", "丸", "支", "滴", "喷", "包", "枚", "贴", "瓶")},
    **dict.fromkeys(("片", "颗"), ("片", Decimal(1))),
}
_UNITS = "|".join(sorted(map(re.escape, _SCALES), key=len, reverse=True))
_CHINESE = {
    "零": 0, "〇": 0, "一": 1, "二": 2, "两": 2, "三": 3, "四": 4,
    "五": 5, "六": 6, "七": 7, "八": 8, "九": 9,
}  # fmt: skip
_NUMBER = r"(?:\d+(?:[.。]\d+)?|[零〇一二两三四五六七八九十百千半]+(?:点[零〇一二三四五六七八九]+)?)"
_QUANTITY = re.compile(
    rf"(?P<low>{_NUMBER})\s*(?P<inner>{_UNITS})?\s*(?:(?:-|~|—|–|至|到)+\s*(?P<high>{_NUMBER})\s*)?"
    rf"(?P<unit>{_UNITS})(?P<half>半)?(?![a-z])"
)

# How often a day. A number group counts; ``hours`` is the time between two doses.
_DAY = r"(?:每一?|一|1)\s*(?:日|天)|日|天天"
_TIMES = (
    re.compile(rf"(?:{_DAY})\s*(?:服|用|吃|口服|喝)?\s*(?P<count>{_NUMBER})\s*(?:次|回|遍|顿)"),
    re.compile(rf"(?P<count>{_NUMBER})\s*(?:次|回|遍|顿)\s*(?:/|每|一)\s*(?:日|天|d)"),
)
_HOURS = re.compile(rf"(?:每隔?|间隔|q)\s*(?P<hours>{_NUMBER})\s*(?:个)?(?:小时|钟头|h)")
_FIXED: tuple[tuple[re.Pattern[str], int], ...] = (
    (re.compile(r"(?<![a-z])q\.?i\.?d(?![a-z])"), 4),
    (re.compile(r"(?<![a-z])t\.?i\.?d(?![a-z])|早中晚|三餐[前后时中]?|每餐|每顿饭"), 3),
    (re.compile(r"(?<![a-z])b\.?i\.?d(?![a-z])|早晚|早上?和?晚上?各"), 2),
    (re.compile(r"(?<![a-z])q\.?[dn](?![a-z])|每晚|睡前|每早|每天早上|隔?晨起"), 1),
)
_PER_DAY = re.compile(
    r"(?:全天|整天|24小时|一昼夜|日总量|日剂量|日用量|日量|总量|每日|每天|一天|一日|1日|1天|/日|/天|/d)"
)
_PER_DOSE = re.compile(r"(?:每一?次|一次|1次|单次|每回|一回|每顿|一顿|首次|各|/次)")


@dataclass(frozen=True, slots=True)
class Quantity:
    """An amount or a range of it, in base units (mg, ml, or the piece itself), and where it stands."""

    low: Decimal
    high: Decimal
    unit: str
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class DoseRange:
    """What a graph allows of a medicine: ``low`` to ``high`` at a time, ``daily`` at most, in ``unit``.

    ``piece``: the amount in one tablet, in ``unit``. ``triple`` is where it comes from.
    """

    low: Decimal | None
    high: Decimal | None
    daily: Decimal | None
    unit: str
    triple: Triple
    piece: Decimal | None = None

    def amount(self, quantity: Quantity, value: Decimal) -> Decimal | None:
        """``value`` of that quantity in this range's unit; None where they cannot be compared."""
        if quantity.unit == self.unit:
            return value
        if quantity.unit in _PIECES and self.piece is not None:
            return value * self.piece
        return None


_PIECES = frozenset({"片", "粒", "袋", "支", "包", "丸", "枚"})


def number(text: str) -> Decimal | None:
    """A number in digits or Chinese characters (``三``, ``十二``, ``一百五十``, ``零点五``, ``半``)."""
    if re.match(r"0\d", text):  # 05: a point was lost, and its place is not known
        return None
    try:
        return Decimal(text.replace("。", "."))
    except InvalidOperation:
        pass
    if text == "半":
        return Decimal("0.5")
    if text.endswith("半"):
        whole = number(text[:-1])
        return None if whole is None else whole + Decimal("0.5")
    whole_part, _, fraction = text.partition("点")
    total = section = 0
    for character in whole_part:
        if character in _CHINESE:
            section = section * 10 + _CHINESE[character]
        elif character in "十百千":
            total += (section or 1) * {"十": 10, "百": 100, "千": 1000}[character]
            section = 0
        else:
            return None
    digits = "".join(str(_CHINESE[character]) for character in fraction)
    return Decimal(f"{total + section}.{digits or 0}")


def quantities(text: str) -> Iterator[Quantity]:
    """All amounts of a folded text (half-width, lower case)."""
    for match in _QUANTITY.finditer(text):
        unit, scale = _SCALES[match["unit"]]
        high = number(match["high"] or match["low"])
        low = number(match["low"])
        if low is None or high is None:
            continue
        inner = _SCALES[match["inner"]] if match["inner"] else (unit, scale)
        half = Decimal("0.5") if match["half"] else Decimal(0)
        if inner[0] == unit:
            yield Quantity(low * inner[1], (high + half) * scale, unit, match.start(), match.end())


def times_a_day(text: str) -> tuple[Decimal, int, int] | None:
    """How often a day, by the first expression of it in a text, with its place; None without one."""
    found: list[tuple[int, int, Decimal]] = []
    for pattern in _TIMES:
        for match in pattern.finditer(text):
            count = number(match["count"])
            if count is not None:
                found.append((match.start(), match.end(), count))
    for match in _HOURS.finditer(text):
        hours = number(match["hours"])
        if hours:
            found.append((match.start(), match.end(), (Decimal(24) / hours).to_integral_value()))
    for pattern, fixed in _FIXED:
        found += [(match.start(), match.end(), Decimal(fixed)) for match in pattern.finditer(text)]
    if not found:
        return None
    start, end, count = min(found, key=lambda each: (each[0], -each[1]))
    return count, start, end


def is_daily(text: str, quantity: Quantity) -> bool:
    """Whether an amount is for a whole day and not for one time, by the nearest word for either before it.

    A frequency (``一天三次``) is no word for a daily amount.
    """
    before = text[: quantity.start]
    often = [match.span() for pattern in _TIMES for match in pattern.finditer(text)]
    day = [
        match.start()
        for match in _PER_DAY.finditer(before)
        if not any(start <= match.start() < end for start, end in often)
    ]
    dose = [match.start() for match in _PER_DOSE.finditer(before)]
    after = re.compile(r"\s*(?:/|每)\s*(?:日|天|d)(?![a-z])").match(text, quantity.end)
    if after and not any(start < after.end() <= end for start, end in often):
        return True
    return bool(day) and (not dose or dose[-1] < day[-1])


def dose_range(triple: Triple, strengths: list[Triple]) -> DoseRange | None:
    """The range that a statement of usage gives: by its attributes, else by its text; None if it has none.

    Attributes: ``low``, ``high`` (at a time), ``daily`` (at most), ``times`` (a day), ``unit``.
    """
    given = triple.attributes
    low = high = daily = times = None
    unit = ""
    if "unit" in given:
        unit, scale = _SCALES.get(given["unit"].lower(), (given["unit"], Decimal(1)))
        low, high, daily = (_attribute(given.get(key), scale) for key in ("low", "high", "daily"))
        times = _attribute(given.get("times"), Decimal(1))
    else:
        text = fold(triple.tail)
        for quantity in quantities(text):
            if unit and quantity.unit != unit:
                continue
            unit = quantity.unit
            if is_daily(text, quantity):
                daily = max(daily or quantity.high, quantity.high)
            else:
                low = min(low or quantity.low, quantity.low)
                high = max(high or quantity.high, quantity.high)
        often = times_a_day(text)
        times = often[0] if often else None
    if daily is None and high is not None and times is not None:
        daily = high * times
    if high is None and daily is None:
        return None
    return DoseRange(low, high, daily, unit, triple, _piece(strengths, unit))


def _piece(strengths: list[Triple], unit: str) -> Decimal | None:
    """What one piece holds, where all statements of it agree."""
    held = {
        match.high for triple in strengths for match in quantities(fold(triple.tail)) if match.unit == unit
    }
    return held.pop() if len(held) == 1 else None


def _attribute(text: str | None, scale: Decimal) -> Decimal | None:
    value = number(text) if text else None
    return None if value is None else value * scale
