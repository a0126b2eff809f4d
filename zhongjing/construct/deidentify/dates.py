"""Dates: found, read, and told by their distance from the first one of a dialogue."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date

from zhongjing.construct.deidentify.numbers import CheckedRecognizer
from zhongjing.construct.deidentify.policy import Identifier

_NUMERAL = "零〇一二三四五六七八九十"
_YEAR = f"(?:(?:19|20)[0-9]{{2}}|(?<![0-9])[0-9]{{2}}|[一二][{_NUMERAL}]{{3}})"
_MONTH = "(?:1[0-2]|0?[1-9]|十[一二]?|[一二三四五六七八九])"
_DAY = "(?:3[01]|[12][0-9]|0?[1-9]|三十一?|二?十[一二三四五六七八九]?|二十|[一二三四五六七八九])"
_FULL = rf"{_YEAR}[ ]?年[ ]?{_MONTH}[ ]?月份?(?:[ ]?{_DAY}[ ]?[日号])?"
_SIGNS = r"(?<![0-9.])(?:19|20)[0-9]{2}(?:-(?:1[0-2]|0?[1-9])-|/(?:1[0-2]|0?[1-9])/|\.(?:1[0-2]|0?[1-9])\.)"
_SIGNS += r"(?:3[01]|[12][0-9]|0?[1-9])(?![0-9])"
_SHORT = rf"(?<![0-9{_NUMERAL}年]){_MONTH}[ ]?月[ ]?{_DAY}[ ]?[日号]"
_COMPACT = r"(?<![0-9A-Za-z-])(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])(?![0-9A-Za-z])"
_ANY = f"(?:{_FULL}|{_SIGNS}|{_COMPACT}|{_SHORT})"

LEAP_YEAR = 2000  # the year of dates without one, where the dialogue has none at all


def date_recognizers() -> list[CheckedRecognizer]:
    """Dates, and those beside 出生 or 生日."""
    return [
        CheckedRecognizer(Identifier.DATE, [_FULL, _SIGNS, _SHORT, _COMPACT], score=0.8),
        CheckedRecognizer(
            Identifier.BIRTH_DATE,
            [
                rf"(?<=(?:出生(?:日期|年月日?|时间|于|在)?|生日|生于)[ ]*[:是为]?[ ]*){_ANY}",
                rf"{_ANY}(?=[ ]?(?:出生|生人|生[,，。;； 的]|生$))",
            ],
            score=0.9,
        ),
    ]


@dataclass(frozen=True, slots=True)
class ReadDate:
    """A date as it was written. ``year`` and ``day`` may be missing."""

    year: int | None
    month: int
    day: int | None

    def on(self, year: int) -> date:
        """The day, in ``year`` if it has none of its own; a month is its first day."""
        day = min(self.day or 1, 28 if self.month == 2 else 30 if self.month in (4, 6, 9, 11) else 31)
        return date(self.year or year, self.month, day)


def read_date(text: str) -> ReadDate | None:
    """Reads what :func:`date_recognizers` find; ``None`` if it is no date after all."""
    compact = re.fullmatch(r"([0-9]{4})([0-9]{2})([0-9]{2})", text)
    parts = list(compact.groups()) if compact else re.findall(rf"[0-9]+|[{_NUMERAL}]+", text)
    numbers = [_number(part) for part in parts]
    has_year = compact is not None or "年" in text or re.match(r"[0-9]{4}[-/.]", text) is not None
    if not 2 <= len(numbers) <= 3:
        return None
    year = numbers.pop(0) if has_year else None
    if year is not None and year < 100:
        year += 2000 if year <= 40 else 1900
    month = numbers[0]
    day = numbers[1] if len(numbers) > 1 else None
    return ReadDate(year, month, day) if 1 <= month <= 12 else None


def _number(text: str) -> int:
    if text.isascii():
        return int(text)
    ones = {each: value for value, each in enumerate("零一二三四五六七八九")} | {"〇": 0}
    if "十" not in text:
        return int("".join(str(ones[each]) for each in text))
    tens, _, rest = text.partition("十")
    return (ones[tens] if tens else 1) * 10 + (ones[rest] if rest else 0)


def distance(first: date, other: date, *, whole_days: bool, birth: bool) -> str:
    """``首日后3天``, ``首日前2个月``; of a birth date ``首日前33年``; ``首日`` for the first date itself."""
    if birth:
        years = first.year - other.year - ((first.month, first.day) < (other.month, other.day))
        return "首日当年" if years == 0 else f"首日{'前' if years > 0 else '后'}{abs(years)}年"
    if not whole_days:
        months = (other.year - first.year) * 12 + other.month - first.month
        return "首日当月" if months == 0 else f"首日{'后' if months > 0 else '前'}{abs(months)}个月"
    days = (other - first).days
    return "首日" if days == 0 else f"首日{'后' if days > 0 else '前'}{abs(days)}天"
