"""Recognisers of numbers and addresses of machines: phones, cards, accounts, plates and the like.

They see folded text (:mod:`.folding`). What has a check is found anywhere; behind a word that says what it
is, also without one: people mistype.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable

import phonenumbers
from faker.utils.checksums import luhn_checksum
from presidio_analyzer import Pattern, PatternRecognizer

from zhongjing.construct.deidentify.folding import NUMERALS, digits
from zhongjing.construct.deidentify.policy import Identifier

LANGUAGE = "zh"
CHECKED = 0.95
NAMED = 0.9  # behind a word that says what it is

_IS = r"[ ]*(?:号码|号|编号|账号|帐号|ID|id)?[ ]*(?::|是|为|尾号|加)?[ ]*"
_DIGIT = f"[0-9{NUMERALS}]"


class CheckedRecognizer(PatternRecognizer):
    """Patterns whose matches must pass a check.

    Args:
        entity: what is found.
        regexes: alternatives; the whole match is the identifier.
        check: whether a match is one; without it, every match is.
    """

    def __init__(
        self,
        entity: Identifier,
        regexes: list[str],
        check: Callable[[str], bool] | None = None,
        score: float = CHECKED,
    ) -> None:
        patterns = [Pattern(f"{entity}-{number}", regex, score) for number, regex in enumerate(regexes)]
        super().__init__(
            supported_entity=entity.value,
            name=f"{entity}-{'checked' if check else 'named'}",
            supported_language=LANGUAGE,
            patterns=patterns,
        )
        self._check = check

    def invalidate_result(self, pattern_text: str) -> bool | None:
        """Whether the check fails."""
        return None if self._check is None else not self._check(pattern_text)


def is_phone(text: str) -> bool:
    """Whether the digits are a number of the mainland's plan (phonenumbers), or a 400 or 800 service."""
    number = digits(text.split("转", maxsplit=1)[0])
    if number.startswith("86") and len(number) > 11:
        number = number[2:]
    if len(number) == 10 and number[:3] in ("400", "800"):
        return True
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, "CN"))
    except phonenumbers.NumberParseException:
        return False


def is_id_card(text: str) -> bool:
    """GB 11643-1999: the check of 18 digits is ISO 7064 MOD 11-2. 15 digits have none, only a birth date."""
    number = text.replace(" ", "").replace("-", "").upper()
    if len(number) == 15:
        return True
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(number[:17]))
    return number[17] == "10X98765432"[total % 11]


def is_bank_card(text: str) -> bool:
    """ISO/IEC 7812: 13 to 19 digits with Luhn's check."""
    number = digits(text)
    return 13 <= len(number) <= 19 and len(set(number)) > 1 and luhn_checksum(int(number)) == 0


def is_ip(text: str) -> bool:
    """Four numbers from 0 to 255, not all small: ``1.2.3.4`` numbers paragraphs."""
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return any(int(part) > 30 for part in text.split("."))


_PROVINCE = "(?:1[1-5]|2[1-3]|3[1-7]|4[1-6]|5[0-4]|6[1-5]|71|8[1-3])"
_DAY = "(?:0[1-9]|1[0-2])[ ]?(?:0[1-9]|[12][0-9]|3[01])"
_ID_18 = rf"{_PROVINCE}[0-9]{{4}}[ -]?(?:18|19|20)[0-9]{{2}}{_DAY}[ -]?[0-9]{{3}}[0-9X]"
_ID_15 = rf"{_PROVINCE}[0-9]{{4}}[0-9]{{2}}{_DAY}[0-9]{{3}}"
_PLATE_PLACES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼"
_HOST = r"(?:[a-z0-9-]+\.)+(?:com|cn|net|org|gov|edu|cc|top|vip|xyz|info|io|me|co)"
_PATH = r"[A-Za-z0-9\-._~:/?#@!$&'()*+,;=%\[\]]*"


def number_recognizers() -> list[CheckedRecognizer]:
    """All of them."""
    named = [
        (
            Identifier.PHONE,
            rf"(?<=(?:电话|手机|座机|联系方式|传真|tel){_IS}){_DIGIT}(?:[ -]?{_DIGIT}){{6,14}}(?!{_DIGIT})",
        ),
        (Identifier.ID_CARD, rf"(?<=(?:身份证|证件)(?:号码)?{_IS})[1-9][0-9]{{13,16}}[0-9X](?![0-9A-Z])"),
        (
            Identifier.BANK_CARD,
            rf"(?<=(?:银行卡|储蓄卡|信用卡|卡号|账户|帐户){_IS})[0-9](?:[ -]?[0-9]){{12,18}}(?![0-9])",
        ),
        (Identifier.PASSPORT, rf"(?<=(?:护照|通行证){_IS})[A-Z]{{1,2}}[0-9]{{6,9}}(?![0-9])"),
        (
            Identifier.RECORD_NUMBER,
            r"(?<=(?:病历|病案|住院|门诊|就诊卡|就诊|诊疗卡|医保卡?|社保卡?|检查|检验|挂号|登记|影像|标本|条码|床位?|预约)"
            r"[ ]*(?:号码|号|编号|卡号|ID|单号|序号)[ ]*(?::|是|为)?[ ]*)"
            r"[A-Z]{0,4}-?[0-9][0-9A-Z-]{2,19}(?![0-9A-Z])",
        ),
        (
            Identifier.ACCOUNT,
            rf"(?<=(?:微信|薇信|威信|微xin|wechat|weixin|(?<![a-z])[vw]x|(?<![a-z])v信|qq|扣扣|企鹅|抖音|支付宝|钉钉)(?:群)?{_IS})"
            r"(?:[a-z][-_a-z0-9]{4,19}|[1-9][0-9]{4,11})(?![a-z0-9_-])",
        ),
    ]
    return [
        CheckedRecognizer(
            Identifier.PHONE,
            [
                rf"(?<![0-9A-Za-z{NUMERALS}])(?:\+?86[ -]?)?[1一幺](?:[ -]?{_DIGIT}){{10}}(?!{_DIGIT})",
                r"(?<![0-9])(?:\+?86[ -]?)?\(?0[0-9]{2,3}\)?[ -]{0,2}[2-9][0-9]{2,3}"
                r"[ -]?[0-9]{4}(?:[-转][0-9]{1,5})?(?![0-9])",
                r"(?<![0-9])[48]00[ -]?[0-9]{3,4}[ -]?[0-9]{3,4}(?![0-9])",
            ],
            is_phone,
        ),
        CheckedRecognizer(
            Identifier.ID_CARD, [rf"(?<![0-9A-Za-z])(?:{_ID_18}|{_ID_15})(?![0-9A-Za-z])"], is_id_card, 1.0
        ),
        CheckedRecognizer(
            Identifier.BANK_CARD, [r"(?<![0-9.A-Za-z])[3-69](?:[ -]?[0-9]){12,18}(?![0-9])"], is_bank_card
        ),
        CheckedRecognizer(
            Identifier.PASSPORT,
            [r"(?<![0-9A-Za-z])(?-i:E[0-9]{8}|[A-Z]{2}[0-9]{7}|[GHMCWK][0-9]{8,10})(?![0-9A-Za-z])"],
            score=0.6,
        ),
        CheckedRecognizer(
            Identifier.PLATE,
            [
                rf"(?-i:[{_PLATE_PLACES}][A-Z])[·. ]?(?=[A-Z]*[0-9])"
                r"[A-HJ-NP-Z0-9]{5,6}[挂学警]?(?![0-9A-Za-z])"
            ],
        ),
        CheckedRecognizer(
            Identifier.EMAIL,
            [r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,18}"],
        ),
        CheckedRecognizer(
            Identifier.URL,
            [rf"(?:https?://|(?<![a-z])www\.){_PATH}", rf"(?<![a-z0-9@._-]){_HOST}(?:/{_PATH}|(?![a-z0-9]))"],
        ),
        CheckedRecognizer(
            Identifier.IP_ADDRESS, [r"(?<![0-9.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9.])"], is_ip
        ),
        *(CheckedRecognizer(entity, [regex], score=NAMED) for entity, regex in named),
    ]
