"""Secrets and people told by their shape alone: tokens, signed URLs, e-mail addresses, numbers of persons.

Each rule leaves its own result as it is, so a text may go through twice. Quantifiers are bounded or
possessive: a line of a million characters takes no longer than a million short ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable

REDACTED = "<redacted>"
MASK = r"<(?:redacted(?::[^<>]{1,100})?|user|host|e-mail|ID number|phone number|text \d+ characters)>"
"""Everything that this package puts in the place of something else."""

Rule = Callable[[str], str]


def _replace(pattern: str, replacement: str | Callable[[re.Match[str]], str], *needed: str) -> Rule:
    """A rule that never looks beyond a line.

    With ``needed`` (lower case) it is only tried on lines that hold one of these words: few do.
    """
    compiled = re.compile(pattern)

    def apply(text: str) -> str:
        if not needed:
            return compiled.sub(replacement, text)
        lower = text.lower()
        present = [word for word in needed if word in lower]
        if not present:
            return text
        return "\n".join(
            compiled.sub(replacement, line) if any(word in line.lower() for word in present) else line
            for line in text.split("\n")
        )

    return apply


# Between a name and its value: an equals sign or a colon, quotes (escaped ones too), Python's mark of bytes.
_QUOTE = r"(?:b?\\*[\"'])?"
_IS = rf"\\*[\"']?[ \t]{{0,4}}[=:][ \t]{{0,4}}{_QUOTE}"

_HEADERS = _replace(
    r"(?i)(?<![A-Za-z0-9])"
    r"((?:(?:proxy-|x-ray-)?authorization|(?:set-)?cookie)"
    rf"(?:{_IS}|\\*[\"'][ \t]{{0,4}},[ \t]{{0,4}}b?\\*[\"'])"
    rf"|(?:x-amz-security-token|x-api-key)\\*[\"']?[ \t]{{0,4}}[:,][ \t]{{0,4}}{_QUOTE})"
    r"[^\"'\\\r\n]+",
    rf"\1{REDACTED}",
    "authorization",
    "x-amz-security-token",
    "x-api-key",
    "cookie",
)


def _bearer(match: re.Match[str]) -> str:
    value = match[2]
    return f"{match[1]}{REDACTED}" if len(value) >= 20 or re.search(r"\d", value) else match[0]


_BEARER = _replace(r"(?i)\b((?:bearer|basic)[ \t]{1,4})([A-Za-z0-9._~+/=-]{8,}+)", _bearer, "bearer", "basic")

_USERINFO = _replace(
    r"(?i)(?<![a-z0-9+.-])([a-z][a-z0-9+.-]{1,20}://)(?!<redacted>@)(?:[^\s/?#\"'<>@]|<[^<>\n]{1,120}>|@(?=[^\s/?#\"'<>]*@))++@",
    rf"\1{REDACTED}@",
    "@",
)

# What stands before a parameter of a URL; Go and HTML write "&" in their own ways.
_AND = r"(?:(?<=[?&])|(?<=&amp;)|(?<=\\u0026)|(?<=%26)|(?<=%3[Ff]))"
_SIGNED = _replace(
    rf"(?i)((?:(?<![A-Za-z0-9])|{_AND})"
    r"(?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|Credential"
    r"|(?:access|id|refresh)_token)"
    rf"|{_AND}(?:sig|token|Policy|Key-Pair-Id|password|secret))"
    r"(=|%3D)(?:(?!%26)[^\s&\"'<>\\;,)\]}]){8,}+",
    rf"\1\2{REDACTED}",
    *(
        "signature",
        "credential",
        "token",
        "accesskeyid",
        "sig=",
        "policy=",
        "key-pair-id",
        "password=",
        "secret=",
    ),
    *("sig%3d", "policy%3d", "password%3d", "secret%3d"),
)

_TOKENS = _replace(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}+|gh[pousr]_[A-Za-z0-9]{30,}+|github_pat_[A-Za-z0-9_]{30,}+|glpat-[A-Za-z0-9_-]{20,}+"
    r"|sk-[A-Za-z0-9_-]{20,}+|xox[abeoprs]-[A-Za-z0-9-]{10,}+|(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}(?![A-Z0-9])"
    r"|AIza[A-Za-z0-9_-]{35}|ya29\.[A-Za-z0-9_-]{20,}+|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{40,}+"
    r"|eyJ[A-Za-z0-9_-]{8,}+\.eyJ[A-Za-z0-9_-]{8,}+\.[A-Za-z0-9_-]*+"
    r")",
    REDACTED,
    *("hf_", "gh", "glpat-", "sk-", "xox", "akia", "asia", "aroa", "aida", "aiza", "ya29.", "npm_", "pypi-"),
    "eyj",
)

_NAMES = (
    r"secret|password|passwd|passphrase|pwd|api[_-]?key|access[_-]?key(?:[_-]?id)?|secret[_-]?key"
    r"|secret[_-]?access[_-]?key|private[_-]?key|(?:session|auth|access|refresh|bearer|hf|api|security)[_-]?token"
    r"|client[_-]?secret"
)
_NO_VALUES = {"none", "null", "true", "false", "str", "string", "required", "optional", "missing", "unset"}


def _assigned(match: re.Match[str]) -> str:
    name, between, value = match.groups()
    plain = between.strip() == ":"  # "password: wrong" is prose more often than a setting
    folder = value.startswith("/") and name.lower().endswith("pwd")
    if value.lower() in _NO_VALUES or set(value) == {"*"} or (plain and value.isalpha()) or folder:
        return match[0]
    return f"{name}{between}{REDACTED}"


_ASSIGNED = _replace(
    rf"(?i)(?<![A-Za-z0-9_.-])((?:[a-z0-9]{{1,30}}[_.-]){{0,6}}[a-z]{{0,12}}?(?:{_NAMES}))"
    rf"({_IS})([^\s\"'<>,;&\\)}}\]]{{4,}}+)",
    _assigned,
    *("secret", "password", "passwd", "passphrase", "pwd", "token", "apikey", "api_key", "api-key"),
    *("accesskey", "access_key", "access-key", "privatekey", "private_key", "private-key"),
)


def _plain_token(match: re.Match[str]) -> str:
    return f"{match[1]}{REDACTED}" if re.search(r"\d", match[2]) else match[0]


_TOKEN_VALUE = _replace(
    rf"(?i)(?<![A-Za-z0-9_.-])(token{_IS})([A-Za-z0-9._~+/=-]{{16,}}+)",
    _plain_token,
    "token",
)

_OPTIONS = _replace(
    r"(?i)(?<![A-Za-z0-9-])(--?(?:[a-z0-9]{1,20}-){0,4}(?:password|passwd|token|secret|api-key|secret-key|access-key)"
    r"[ \t]{1,4}[\"']?)([^\s\"'<>-][^\s\"'<>]{3,}+)",
    rf"\1{REDACTED}",
    *("-password", "-passwd", "-token", "-secret", "-key"),
)

_EMAIL = _replace(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}?(?:@|%40)(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])",
    "<e-mail>",
    "@",
    "%40",
)

CREDENTIALS: tuple[Rule, ...] = (
    _HEADERS,
    _BEARER,
    _USERINFO,
    _SIGNED,
    _TOKENS,
    _ASSIGNED,
    _TOKEN_VALUE,
    _OPTIONS,
)
ADDRESSES: tuple[Rule, ...] = (_EMAIL,)

# Numbers of persons. A digit, letter or point beside them makes them something else.

_ID_NUMBER = _replace(
    r"(?<![A-Za-z0-9_.])[1-9]\d{5}(?:(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx]"
    r"|\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3})(?![A-Za-z0-9_]|\.\d)",
    "<ID number>",
)

# 16 GiB are 17179869184 bytes.
_AMOUNT_BEFORE = re.compile(
    r"(?i)(?:bytes|memory|size|total|avail(?:able)?|used|free|capacity|limit|offset|length|tokens|seed|resident)"
    r"[\"')\]]{0,3}\s{0,2}[:=]\s{0,2}\Z"
)
_AMOUNT_AFTER = re.compile(r"(?i)\s?(?:bytes\b|B\b|tokens\b)")


def _phone(match: re.Match[str]) -> str:
    text, start, end = match.string, match.start(), match.end()
    plain = match[0].isdigit() and len(match[0]) == 11
    if plain and (_AMOUNT_BEFORE.search(text, max(0, start - 40), start) or _AMOUNT_AFTER.match(text, end)):
        return match[0]
    return "<phone number>"


_PHONE = _replace(
    r"(?<![A-Za-z0-9_.])(?:\+?86[ -]?|0086[ -]?)?1[3-9]\d(?:[ -]?\d{4}){2}(?![A-Za-z0-9_]|\.\d)", _phone
)

# Text in Chinese, Japanese or Korean, as characters or escaped (JSON, bytes of UTF-8, URLs).

_LETTER = (
    r"[\u2e80-\u2fdf\u3005-\u3007\u3021-\u30ff\u3100-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
    r"\U00020000-\U0003ffff]"
    r"|\\{1,4}u(?:2[eEfF]|3[1-9a-fA-F0]|[4-9][0-9a-fA-F]|[aA][c-fC-F]|[bBcC][0-9a-fA-F]|[dD][0-7]|[fF][9aA])"
    r"[0-9a-fA-F]{2}"
    r"|\\{1,4}u[dD][89abAB][0-9a-fA-F]{2}\\{1,4}u[dD][c-fC-F][0-9a-fA-F]{2}"
    r"|\\{1,4}x[eE][3-9a-dA-D](?:\\{1,4}x[89abAB][0-9a-fA-F]){2}"
    r"|%[eE][3-9a-dA-D](?:%[89abAB][0-9a-fA-F]){2}"
)
# Numbers, units and punctuation between characters belong to the text: "体温38.5℃".
_GAP = (
    r"(?:\\{1,4}+(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4})?+|%(?:[0-9a-fA-F]{2})?+"
    r"|[^\n\\%\u2e80-\u2fdf\u3021-\u9fff\uac00-\ud7af\uf900-\ufaff]){0,12}?"
)
_TEXT = re.compile(rf"(?:{_LETTER})(?:{_GAP}(?:{_LETTER}))*+")
_ONE = re.compile(_LETTER)
LONGEST_TEXT = 12


def _text(match: re.Match[str]) -> str:
    count = sum(1 for _ in _ONE.finditer(match[0]))
    return f"<text {count} characters>" if count > LONGEST_TEXT else match[0]


_MAYBE_TEXT = re.compile(r"[\u2e80-\U0003ffff]|\\x[eE]|\\u[0-9a-fA-F]{4}|%[eE][3-9a-dA-D]%")


def _cjk(text: str) -> str:
    return _TEXT.sub(_text, text) if _MAYBE_TEXT.search(text) else text


PEOPLE: tuple[Rule, ...] = (_ID_NUMBER, _PHONE, _cjk)
