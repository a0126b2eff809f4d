"""Text in the form that the rules are written for. One character becomes one: places stay the same."""

from __future__ import annotations

_FULL_WIDTH = {code: code - 0xFEE0 for code in range(0xFF10, 0xFF5B) if chr(code).isalnum()}
_SIGNS = {ord(each): ord(to) for each, to in zip("＋－—–（）．：＠／　_", "+---().:@/ _", strict=True)}
_FOLDED = {**_FULL_WIDTH, **_SIGNS, 0x00A0: ord(" ")}
NUMERALS = "零〇○一二三四五六七八九幺"
_NUMERALS = str.maketrans(NUMERALS, "0001234567891")


def folded(text: str) -> str:
    """Full-width letters, digits and signs as plain ones, so that ``：`` is ``:``; the length is the same."""
    return text.translate(_FOLDED)


def digits(text: str) -> str:
    """The digits of a number, Chinese numerals among them: ``一三八-0013`` is ``1380013``."""
    return "".join(each for each in text.translate(_NUMERALS) if each.isascii() and each.isdigit())
