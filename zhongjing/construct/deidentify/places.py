"""Recognisers of addresses and of hospitals with a name of their own."""

from __future__ import annotations

import re

from presidio_analyzer import EntityRecognizer, RecognizerResult
from presidio_analyzer.nlp_engine import NlpArtifacts

from zhongjing.construct.deidentify.lexicon import words
from zhongjing.construct.deidentify.numbers import LANGUAGE
from zhongjing.construct.deidentify.policy import Identifier

HAN = "\u4e00-\u9fff"
# Words of running text: no part of a place's name has them.
_RUNNING = "的了是在有和与或及不也就都我你您他她这那很呢吗吃做看去到过说患病疼痛可以要能医药检治发"
_WORD = rf"(?:(?![{_RUNNING}])[{HAN}])"
_COARSE = rf"{_WORD}{{1,7}}?(?:省|自治区|市(?!场)|自治州|州|盟|新区|区(?![别分域])|县|旗)"
_FINE = (
    rf"{_WORD}{{1,8}}?(?:街道|镇(?![静痛定])|乡|大道|路(?!上)|街|巷|弄|胡同|村|屯|庄|小区|社区"
    r"|花园|家园|公寓|大厦|广场|苑|名城|新城|新村)"
)
_NUMBER = r"[0-9一二三四五六七八九十A-Z-]{1,6}(?:号院|号楼|号(?!码)|弄|栋|幢|座|楼|层|单元|室|组|门|户)"
_SUFFIX = re.compile(
    "医院|卫生院|卫生服务中心|卫生所|卫生室|诊所|保健院|防治院|防治所|疗养院|医学中心|附属[一二三四]院|附[一二三四]?院|[一二三四五六七八九]附院|[一二三四五六七八九]院"
)
_DEPARTMENT = re.compile(rf"(?:{_WORD}{{1,6}}?科(?:门诊|病房|病区)?|门诊部?|急诊科?)")
_GENERAL = re.compile(
    "(?:[市县区省镇乡]?(?:三甲|二甲|三级|甲等|大型?|各大?|专科|正规|知名|好|那|一些|几家|几个|公立|当地|本地|著名|有名|综合|专业|等|的|等等|附近|某))+"
)
_STOP = re.compile("[的了是在有和与或及我你您他她这那看去到过说让建议可以要能先再就也都请来从给]")


class AddressRecognizer(EntityRecognizer):
    """At least two joined levels from province to room, from a listed place or behind a word such as 家住."""

    def __init__(self) -> None:
        places = "|".join(sorted(words("places"), key=len, reverse=True))
        start = rf"(?:(?:{places})(?:省|市|自治区|壮族自治区|回族自治区|维吾尔自治区|特别行政区|自治州)?)"
        level = rf"(?:{_COARSE}|{_FINE}|{_NUMBER})"
        self._start = re.compile(start)
        self._levels = re.compile(rf"{level}+(?:[0-9]{{2,4}}(?![0-9岁年月个]))?")
        self._cue = re.compile(
            r"(?:家住|住在|住址|地址|寄到|寄往|送到|搬到|位于|现居|户籍|老家|居住[于在])[ ]*[:是为在]?[ ]*"
        )
        self._street = re.compile(
            rf"(?:^|(?<=[^{HAN}]))[{HAN}]{{2,6}}?(?:路|街|大道|巷|弄|村)(?:{_NUMBER})+(?:{level})*",
            re.MULTILINE,
        )
        super().__init__([Identifier.ADDRESS.value], name="address", supported_language=LANGUAGE)

    def load(self) -> None:
        """Nothing to load."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts) -> list[RecognizerResult]:
        """Addresses in folded text."""
        del entities, nlp_artifacts
        spans: list[tuple[int, int]] = []
        for match in self._start.finditer(text):
            levels = self._levels.match(text, match.end())
            if levels:
                spans.append((match.start(), levels.end()))
        for match in self._cue.finditer(text):
            start = match.end()
            place = self._start.match(text, start)
            levels = self._levels.match(text, place.end() if place else start)
            if levels and (place or len(re.findall(rf"{_FINE}|{_NUMBER}|{_COARSE}", levels.group())) > 1):
                spans.append((start, levels.end()))
        spans.extend(match.span() for match in self._street.finditer(text))
        return [RecognizerResult(Identifier.ADDRESS.value, start, end, 0.7) for start, end in spans]


class HospitalRecognizer(EntityRecognizer):
    """A place or a known name before 医院 and the like, with the department behind it."""

    WINDOW = 18  # characters before the word

    def __init__(self) -> None:
        self._places = frozenset(words("places"))
        self._known = frozenset(words("hospitals"))
        self._famous = re.compile("|".join(sorted(self._known, key=len, reverse=True)))
        super().__init__([Identifier.HOSPITAL.value], name="hospital", supported_language=LANGUAGE)

    def load(self) -> None:
        """Nothing to load."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts) -> list[RecognizerResult]:
        """Hospitals in folded text."""
        del entities, nlp_artifacts
        found = []
        for match in _SUFFIX.finditer(text):
            start = self._start(text, match.start(), match.group())
            if start is None:
                continue
            department = _DEPARTMENT.match(text, match.end())
            end = department.end() if department else match.end()
            found.append(RecognizerResult(Identifier.HOSPITAL.value, start, end, 0.85))
        return found

    def _start(self, text: str, at: int, suffix: str) -> int | None:
        """Where the name begins: at the earliest place or known name that no running word parts from it."""
        for start in range(max(0, at - self.WINDOW), at):
            between = None
            for length in (5, 4, 3, 2):
                word = text[start : min(start + length, at)]
                if len(word) == length and (word in self._places or word in self._known):
                    between = text[start + length : at]
                    break
            if (
                between is None
                or not re.fullmatch(rf"[{HAN}0-9()]*", between)
                or _STOP.search(self._famous.sub("", between))
            ):
                continue
            if _GENERAL.fullmatch(between):
                continue
            if suffix.endswith("院") and len(suffix) == 2 and suffix != "医院" and len(between) > 4:
                continue
            return start
        own = re.search(
            rf"(?:^|[^{HAN}]|[在去到于是从找])({_WORD}{{2,4}}[省市县区镇乡]{_WORD}{{0,10}})$",
            text[max(0, at - 18) : at],
        )
        if own and not _GENERAL.search(own.group(1)) and suffix != "院":
            return at - len(own.group(1))
        return None
