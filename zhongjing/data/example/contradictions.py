"""Dialogues with planted contradictions of the example graph, and as many that only look like one.

``planted(seed)`` makes them from :mod:`zhongjing.data.example.contradiction_phrases`. A record has the
``messages`` and under ``planted`` what is wrong: the rule, the medicine and what it is wrong with; ``None``
where nothing is. Synthetic, not medical advice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from zhongjing.data.example import contradiction_phrases as phrases
from zhongjing.data.example.facts import FACTS
from zhongjing.data.example.knowledge import (
    ALIASES,
    FOODS,
    GROUPS,
    Dose,
    Medicine,
    amount,
    medicines,
    write_lines,
)

JsonRecord = dict[str, Any]

_TRADITIONAL = str.maketrans(
    "压药脑肾经关节疮红过应综肠结阴强变状亢", "壓藥腦腎經關節瘡紅過應綜腸結陰強變狀亢"
)
_DIGITS = ("零", "一", "两", "三", "四", "五", "六", "七", "八", "九", "十")
_OFTEN: dict[int, tuple[str, ...]] = {
    1: ("一天一次", "每日1次", "qd", "每晚一次"),
    2: ("一天两次", "每日2次", "bid", "早晚各一次", "每12小时一次"),
    3: ("一天三回", "一日三次", "tid", "早中晚各一次", "每8小时一次"),
    4: ("每天四次", "一日4次", "qid", "每6小时一次"),
}


@dataclass(frozen=True, slots=True)
class _Kind:
    """Patterns of one kind, and what is wrong with each (``None``: nothing)."""

    rule: str | None
    patterns: tuple[phrases.Turns, ...]
    tail: str = ""  # the slot of what the medicine is wrong with
    head: str = "m"


_KINDS = (
    _Kind("contraindication", phrases.CONTRAINDICATED, "x"),
    _Kind("contraindication", phrases.WRONG_GROUP, "g"),
    _Kind("interaction", phrases.MIXED, "s"),
    _Kind("overdose", phrases.OVERDOSED),
    _Kind("overdose", phrases.OVERDOSED_DAILY),
    _Kind("pair", phrases.MISMATCHED, "d", "w"),
    _Kind(None, phrases.HARMLESS),
    _Kind(None, phrases.HARMLESS_DOSES),
)
_LATER_KINDS = (
    _Kind("contraindication", phrases.LATER_CONTRAINDICATED, "x"),
    _Kind("interaction", phrases.LATER_MIXED, "s"),
    _Kind("overdose", phrases.LATER_OVERDOSED),
    _Kind("overdose", phrases.LATER_OVERDOSED_DAILY),
    _Kind("pair", phrases.LATER_MISMATCHED, "d", "w"),
    _Kind(None, phrases.LATER_HARMLESS),
    _Kind(None, phrases.LATER_HARMLESS_DOSES),
)


def planted(seed: int = 0, each: int = 10, *, later: bool = False) -> list[JsonRecord]:
    """``each`` dialogues of every pattern, shuffled; ``later``: of the patterns written after the rules."""
    rng = random.Random(f"{seed}:contradictions:{later}")
    known = medicines(seed)
    records = [
        _record(rng, kind, pattern, known)
        for kind in (_LATER_KINDS if later else _KINDS)
        for pattern in kind.patterns
        for _ in range(each)
    ]
    rng.shuffle(records)
    return records


def write_planted(folder: Path, seed: int = 0, each: int = 10) -> Path:
    """Writes ``contradictions.jsonl`` into ``folder``."""
    return write_lines(folder / "contradictions.jsonl", planted(seed, each))


def _record(
    rng: random.Random, kind: _Kind, pattern: phrases.Turns, known: tuple[Medicine, ...]
) -> JsonRecord:
    medicine = rng.choice(known)
    wrong = rng.choice([other for other in known if _apart(medicine, other)])
    free = [
        fact.disease
        for fact in FACTS
        if fact.disease not in {*medicine.conditions, medicine.treats, wrong.treats}
    ]
    names = {
        "d": medicine.treats,
        "m": medicine.name,
        "x": rng.choice(medicine.conditions),
        "g": rng.choice(medicine.groups),
        "s": rng.choice(medicine.foods),
        "y": rng.choice(free),
        "r": medicine.name,
        "w": wrong.name,
    }
    over = kind.rule == "overdose"
    slots = {slot: _surface(rng, name) for slot, name in names.items()} | _amounts(rng, medicine.dose, over)
    messages = [
        {"role": "user" if number % 2 == 0 else "assistant", "content": turn.format(**slots)}
        for number, turn in enumerate(pattern)
    ]
    wrong_with = (
        {"rule": kind.rule, "head": names[kind.head], "tail": names.get(kind.tail)} if kind.rule else None
    )
    return {"messages": messages, "planted": wrong_with}


def _apart(medicine: Medicine, other: Medicine) -> bool:
    """Whether ``other`` is wrong for what ``medicine`` treats for no other reason than that."""
    return medicine is not other and medicine.treats not in other.conditions


def _surface(rng: random.Random, name: str) -> str:
    """A name as people write it: an alias at times, or in traditional characters."""
    aliases = ALIASES.get(name, ()) or GROUPS.get(name, ()) or FOODS.get(name, ())
    if aliases and rng.random() < 0.4:
        name = rng.choice(aliases)
    return name.translate(_TRADITIONAL) if rng.random() < 0.1 else name


def _amounts(rng: random.Random, dose: Dose, over: bool) -> dict[str, str]:
    """Amounts: ``q`` and ``t`` over the range where asked for, ``Q`` and ``T`` always, and the frequency."""
    times = dose.times
    once = rng.choice((dose.low, dose.high))
    too_much = dose.high * rng.choice((3, 4, 5))
    day = dose.daily * rng.choice((2, 3, 4))
    write: Callable[[Decimal], str] = lambda value: _written(rng, value, dose)  # noqa: E731
    return {
        "q": write(too_much if over else once),
        "t": write(day if over else once * times),
        "Q": write(too_much),
        "T": write(day),
        "f": rng.choice(_OFTEN[times]),
    }


def _written(rng: random.Random, value: Decimal, dose: Dose) -> str:
    """An amount in one of its units, in digits or characters."""
    if dose.strength is not None and rng.random() < 0.35:
        tablets = value / dose.strength
        if tablets == int(tablets) and tablets <= 10:
            return f"{_DIGITS[int(tablets)]}片"
        return f"{amount(tablets)}片"
    if dose.unit == "mg":
        grams = value / 1000
        texts = [f"{amount(value)}mg", f"{amount(value)}毫克"]
        if grams >= Decimal("0.1"):
            texts += [f"{amount(grams)}g", f"{amount(grams)}克", f"{amount(grams)}克".translate(_FULL_WIDTH)]
        return rng.choice(texts)
    if dose.unit == "ml":
        return rng.choice((f"{amount(value)}ml", f"{amount(value)}毫升"))
    return f"{_DIGITS[int(value)] if value <= 10 else amount(value)}{dose.unit}"


_FULL_WIDTH = str.maketrans("0123456789", "０１２３４５６７８９")
