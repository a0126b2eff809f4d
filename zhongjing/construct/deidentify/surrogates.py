"""What stands in an identifier's place. One object serves one dialogue, so that it still reads."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from functools import cache

from faker import Faker

from zhongjing.construct.deidentify.dates import LEAP_YEAR, ReadDate, distance, read_date
from zhongjing.construct.deidentify.folding import digits, folded
from zhongjing.construct.deidentify.policy import DATES, NAMES, Identifier, Policy

_PLAIN = re.compile(r"[\s\-()·.]")


@cache
def _faker() -> Faker:
    return Faker("zh_CN")


class Surrogates:
    """Replacements within one dialogue: the same person or number always becomes the same.

    Args:
        policy: what each class becomes.
        found: all identifiers of the dialogue in order, class and text.
        seed: what made-up values depend on beside the text: salt and dialogue.
    """

    def __init__(self, policy: Policy, found: Sequence[tuple[Identifier, str]], seed: str) -> None:
        self._policy = policy
        self._seed = seed
        self._people = _People([(entity, text) for entity, text in found if entity in NAMES])
        self._numbers: dict[tuple[str, str], int] = {}
        self._first = _first_date(found)

    def replace(self, entity: Identifier, text: str) -> str:
        """What becomes of ``text``."""
        rule = self._policy.classes[entity]
        if rule.action == "keep":
            return text
        if rule.action == "relative":
            return f"[{self._relative(entity, text) or rule.label}]"
        if entity in NAMES:
            entity, key = self._people.of(text)
            rule = self._policy.classes[entity]
        else:
            key = _normalized(entity, text)
        if rule.action == "surrogate":
            return self._made_up(entity, key, text)
        number = self._numbers.get((rule.label, key))
        if number is None:
            number = 1 + sum(label == rule.label for label, _ in self._numbers)
            self._numbers[rule.label, key] = number
        return f"[{rule.label}{number}]"

    def _relative(self, entity: Identifier, text: str) -> str | None:
        read = read_date(folded(text))
        if read is None or self._first is None:
            return None
        year = self._first.year or LEAP_YEAR
        whole = read.day is not None and self._first.day is not None
        birth = entity is Identifier.BIRTH_DATE
        return distance(self._first.on(year), read.on(year), whole_days=whole, birth=birth)

    def _made_up(self, entity: Identifier, key: str, text: str) -> str:
        """A value of faker's, drawn by salt, dialogue and text alone."""
        drawn = hashlib.sha256(f"{self._seed}\0{entity}\0{key}".encode("utf-8", "surrogatepass")).digest()
        fake = _faker()
        fake.seed_instance(int.from_bytes(drawn[:8], "big"))
        if entity in NAMES:
            last = fake.last_name()
            return last if len(text) == 1 else last + fake.first_name()
        makers: dict[Identifier, Callable[[], object]] = {
            Identifier.PHONE: fake.phone_number,
            Identifier.ID_CARD: fake.ssn,
            Identifier.BANK_CARD: fake.credit_card_number,
            Identifier.ADDRESS: fake.street_address,
            Identifier.HOSPITAL: lambda: f"{fake.city_name()}市人民医院",
            Identifier.EMAIL: fake.safe_email,
            Identifier.URL: lambda: "https://example.com/",
            Identifier.IP_ADDRESS: fake.ipv4_private,
            Identifier.DATE: lambda: fake.date("%Y年%m月%d日"),
            Identifier.BIRTH_DATE: lambda: fake.date("%Y年%m月%d日"),
        }
        maker = makers.get(entity)
        if maker is not None:
            return str(maker())
        return "".join(
            str(fake.random_digit())
            if each.isdigit()
            else fake.random_letter().upper()
            if each.isalpha()
            else each
            for each in text
        )


class _People:
    """Who is meant by a name: the same full name, or a doctor's surname alone."""

    def __init__(self, names: Sequence[tuple[Identifier, str]]) -> None:
        self._who: dict[str, tuple[Identifier, str]] = {}
        for entity, name in names:
            if len(name) > 1:
                self._who.setdefault(name, (entity, name))
        for entity, name in names:
            if name in self._who:
                continue
            # 张医生 is 张伟医生 if a doctor of that surname is named here, else the person who has it.
            same = [who for full, who in self._who.items() if full.startswith(name) and full != name]
            same.sort(key=lambda who: who[0] is not entity)
            self._who[name] = same[0] if same else (entity, name)

    def of(self, name: str) -> tuple[Identifier, str]:
        """Role and key of the person."""
        return self._who[name]


def _first_date(found: Sequence[tuple[Identifier, str]]) -> ReadDate | None:
    """The first date that is no birth date, with the first year that is named; else the first birth date."""
    read = [(entity, read_date(folded(text))) for entity, text in found if entity in DATES]
    dates = [each for entity, each in read if each is not None and entity is Identifier.DATE]
    dates = dates or [each for _, each in read if each is not None]
    if not dates:
        return None
    first = dates[0]
    year = next((each.year for each in dates if each.year is not None), None)
    return ReadDate(first.year or year, first.month, first.day)


def _normalized(entity: Identifier, text: str) -> str:
    if entity in (Identifier.PHONE, Identifier.BANK_CARD):
        number = digits(folded(text))
        return (
            number[2:] if entity is Identifier.PHONE and len(number) == 13 and number[:2] == "86" else number
        )
    return _PLAIN.sub("", folded(text)).casefold()
