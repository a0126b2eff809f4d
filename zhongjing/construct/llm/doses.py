"""Doses in Chinese text, in one notation, so that two texts can be compared: 0.5克 is 500mg, 一日三次 is tid.

Amounts (mass, volume, units, tablets and the like), concentrations, how often, how long. A range is both of
its ends. Meant for comparing a text with its original: it finds more than doses (一片红斑), and what both
texts have is no difference.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

_DIGITS = {digit: value for value, digit in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "俩": 2}
_PLACES = {"十": 10, "百": 100, "千": 1000}
_NUMBER = r"(?:\d+(?:\.\d+)?(?:/\d+)?|半|[零〇一二两俩三四五六七八九十百千]+(?:点[零〇一二三四五六七八九]+)?)"
_RANGE = rf"(?P<low>{_NUMBER})(?:(?P<half>[个]?半)|\s*(?:-|~|—|至|到|或)\s*(?P<high>{_NUMBER}))?"

# Unit as written: what it is counted in, and how many of those it has.
_UNITS: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("毫克", "mg"), ("mg", 1.0)),
    **dict.fromkeys(("微克", "μg", "ug", "mcg"), ("mg", 0.001)),
    **dict.fromkeys(("克", "g"), ("mg", 1000.0)),
    **dict.fromkeys(("毫升", "ml", "cc"), ("ml", 1.0)),
    **dict.fromkeys(("升", "l"), ("ml", 1000.0)),
    **dict.fromkeys(("万国际单位", "万单位", "万u", "万iu"), ("unit", 10000.0)),
    **dict.fromkeys(("国际单位", "单位", "iu", "u"), ("unit", 1.0)),
    **{form: (form, 1.0) for form in "片粒丸袋支滴包颗喷贴瓶枚勺匙揿吸"},
    "%": ("percent", 1.0),
}
_UNIT = "|".join(sorted(map(re.escape, _UNITS), key=len, reverse=True))
_AMOUNT = re.compile(rf"{_RANGE}\s*(?P<unit>{_UNIT})(?P<more>半)?(?![a-z])", re.IGNORECASE)

_EVERY = rf"(?P<span>{_NUMBER})?\s*(?:个)?(?P<period>日|天|晚|早|周|星期|月)"
_OFTEN = re.compile(rf"{_EVERY}(?:口服|服|用|吃|外用|饭后|饭前|量|涂|喷)?\s*{_RANGE}\s*[次遍回顿]")
_OFTEN_AFTER = re.compile(rf"{_RANGE}\s*次\s*(?:/|每|一)\s*(?P<period>日|天|周|月)")
_HOURS = re.compile(rf"[每隔]\s*{_RANGE}\s*(?:个)?小?时")
_LATIN = re.compile(r"(?<![a-z])(qd|bid|tid|qid|qn|q(?P<hours>\d{1,2})h)(?![a-z])", re.IGNORECASE)
_LATIN_A_DAY = {"qd": 1.0, "qn": 1.0, "bid": 2.0, "tid": 3.0, "qid": 4.0}
_DAYS = {"日": 1, "天": 1, "晚": 1, "早": 1, "周": 7, "星期": 7, "月": 30, "年": 365}
_LONG = re.compile(
    rf"(?:服用|服|吃|用药|使用|用|连续|连|疗程|坚持|治疗)[^，。；;,.!！?？\d]{{0,5}}?{_RANGE}\s*(?:个)?"
    r"(?P<period>天|日|周|星期|月|年)(?![一二三四五六七\d]*次)"
)


@dataclass(frozen=True, slots=True, order=True)
class Dose:
    """How much of a kind: mg, ml, unit, percent, a form of medicine, "a day" (times), days (how long)."""

    kind: str
    value: float


@dataclass(frozen=True, slots=True)
class Found:
    """A dose and where it begins in the text, as :func:`notation` gives it."""

    start: int
    dose: Dose


def notation(text: str) -> str:
    """The text in the form that is searched: full-width characters as ASCII, no thousands separators."""
    return re.sub(r"(?<=\d),(?=\d{3})", "", unicodedata.normalize("NFKC", text).lower().replace("µ", "μ"))


def number(text: str) -> float:
    """The value of a number in figures or Chinese numerals: ``1/2``, ``半``, ``二十五``, ``零点五``."""
    if text == "半":
        return 0.5
    if text[0].isascii():
        above, _, below = text.partition("/")
        return float(above) / float(below) if below and float(below) else float(above)
    whole, _, after = text.partition("点")
    total, digit = 0, 0
    for character in whole:
        if character in _PLACES:
            total += (digit or 1) * _PLACES[character]
            digit = 0
        else:
            # Digits without places are read one by one: 二五 is 25.
            digit = digit * 10 + _DIGITS[character]
    value = float(total + digit)
    if after:
        value += float("0." + "".join(str(_DIGITS[character]) for character in after))
    return value


def _ends(match: re.Match[str]) -> list[float]:
    low = number(match["low"])
    if match["half"]:
        return [low + 0.5]
    return [low] if match["high"] is None else [low, number(match["high"])]


def find_doses(text: str) -> list[Found]:
    """All doses of a text (in :func:`notation`), by position."""
    found: list[Found] = []

    def add(match: re.Match[str], kind: str, values: list[float]) -> None:
        found.extend(Found(match.start(), Dose(kind, round(value, 6))) for value in values)

    for match in _AMOUNT.finditer(text):
        kind, size = _UNITS[match["unit"].lower()]
        half = 0.5 if match["more"] else 0.0
        add(match, kind, [(value + half) * size for value in _ends(match)])
    for match in _OFTEN.finditer(text):
        days = _DAYS[match["period"]] * (number(match["span"]) if match["span"] else 1.0)
        add(match, "a day", [value / days for value in _ends(match) if days])
    for match in _OFTEN_AFTER.finditer(text):
        add(match, "a day", [value / _DAYS[match["period"]] for value in _ends(match)])
    for match in _HOURS.finditer(text):
        add(match, "a day", [24 / value for value in _ends(match) if value])
    for match in _LATIN.finditer(text):
        hours = match["hours"]
        add(match, "a day", [24 / int(hours)] if hours and int(hours) else [_LATIN_A_DAY.get(match[1], 1.0)])
    for match in _LONG.finditer(text):
        add(match, "days", [value * _DAYS[match["period"]] for value in _ends(match)])
    return sorted(found, key=lambda each: (each.start, each.dose))


def doses(text: str) -> set[Dose]:
    """The doses of a text, each once."""
    return {each.dose for each in find_doses(notation(text))}
