"""What is said of a name, and by whom: advised, forbidden, asked about, told; a condition had or not had.

Works on folded and masked text (:func:`zhongjing.construct.kg.linker.fold`, :func:`mask`), sentence by
sentence and clause by clause, by cues: short general words of Chinese for permission, refusal, denial,
condition and question. What is not refused, asked or told in an answer counts as advised: an answer that
names a medicine recommends it far more often than not, and most recommendations carry no word for it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from zhongjing.construct.kg.linker import Mention

Span = tuple[int, int]


class Stance(Enum):
    """What an answer says of something that may be taken."""

    ADVISED = "advised"
    FORBIDDEN = "forbidden"
    ASKED = "asked"
    TOLD = "told"  # what the patient took or takes


# A full stop between digits is a decimal point in the wrong script: ``0。5g``.
_SENTENCE = re.compile(r"(?:[^。!?;\n]|(?<=\d)。(?=\d))+[。!?;\n]*")
_CLAUSE = re.compile(r"[^,:,]+[,:,]*")

# Words with a negation that permit or comfort: taken out before refusals are looked for.
_COMFORT = re.compile(
    r"(?:不|没有?|无|并不|毫无|没什么|没啥|没有什么|不会有)(?:什么|啥|太大的?|大|任何|多大)?"
    r"(?:要紧|打紧|碍事|大碍|碍|妨碍|妨|矛盾|冲突|影响|问题|关系|风险|危险|禁忌|坏处|害处|事儿?|所谓|忌口)"
    r"|(?:不用|不必|无需|无须|不需要?|用不着)(?:太|过于|过分|再|特别)?"
    r"(?:担心|忧心|操心|害怕|怕|多虑|顾虑|紧张|焦虑|停药?|换药?|忌口|避开|避免|避讳|调整|减量|特殊|处理)"
    r"|(?:不|别|勿)(?:要|能|可|宜|应|得|许|建议)?[^,。!?;]{0,8}停(?:药|用|服|止|掉|下)"
    r"|别(?:太)?(?:担心|慌|急|怕|紧张|着急|害怕|难过)|问题不大|影响不大|关系不大|不良反应|不舒服|不适"
    r"|不错|不但|不仅|不光|不论|不管|不妨|不过|差不多|除非|非常|禁得住|停经|不停地?|不见好转|不好转"
)
_REFUSAL = re.compile(
    r"不(?:能|可|宜|要|应|得|该|许|准|建议|推荐|主张|提倡|赞成|适合|适宜|适用|合适|用|必|敢|行|妥|好|给|再|太)"
    r"|没必要|无需|无须|用不着|甭|(?<![特级性分区鉴个派])别(?![的人处名称样])|勿|切莫|莫要|忌|禁|慎|避(?!孕|光)"
    r"|远离|杜绝|拒绝|放弃"
    r"|停(?:用|了|掉|药|服|止|下|一停)|戒|撤|断掉"
    r"|相克|犯冲|冲突|矛盾"
    r"|(?:治|管|对|救|碰|吃|用|沾|喝|服|使)不(?:了|得|上|好|成)|无效|没用|没效|不对症|隔开|间隔|错开|等到"
)
# Words of harm are about what was named before them, whatever follows.
_HARM = re.compile(
    r"有风险|风险(?:大|高)|危险|有害|伤(?:胃|肝|肾|身)|(?:会|可能?|容易|易|使|令)[^,]{0,6}(?:加重|诱发|恶化|升高)"
    r"|(?:会|可能|能够?|易)(?:再次)?(?:引起|引发|导致|造成|诱发|致使)|出事|出问题|致命|中毒|不安全"
)
# Names behind these words in a clause are said to bring an illness about.
_CAUSES = re.compile(
    r"(?:诱因|病因|起因|原因|诱发因素|致病因素|危险因素|过敏原|致敏物)"
    r"[^。!?;]{0,8}(?:包括|主要有|常见的?有|可以是|可能是|是|为|如)"
)
# What may stand behind a refusal that is about a name before it; ``A 平时不要吃辛辣`` refuses no A.
_BARE = re.compile(
    r"(?:够|再|随便|继续|自行|擅自|给|您|你|他|她|它|患者|病人|轻易|乱|的|用|吃|服|喝|碰|沾|使|选|买|药|了|掉|于|为|好"
    r"|在|这|时|期间|同|多|久|长期|常|得|治|救治|治疗|所有|□|[,。!;\s])*$"
)
# From here on in a clause something else is spoken of: ``不要用 A，改用 B``, ``把 A 换成 B``.
_TURN = re.compile(r"改(?:用|吃|服|为|成)?|换(?:用|成|为|吃|服)?|而是|还是|应该?用|可以?用|代替|替代")
_QUESTION = re.compile(
    r"\?|[吗么嘛呢][。!]*$|是不是|是否|有没有|有无|能不能|可不可以|要不要|会不会|行不行|敢不敢"
)
_HISTORY = re.compile(
    r"(?:之前|以前|曾经?|上次|原来|从前|过去|此前|一直在?|正在|目前在|现在在|您在).{0,4}(?:吃|用|服|打|喝)"
    r"|(?:吃|用|服|喝)过|对□+过敏|过敏史|(?:吃|用|服)了?.{0,12}□+(?:之?后|以后|期间)"
)
_IF = re.compile(r"如果|若|假如|要是|倘|万一|一旦|如有|凡|除非|的话.{0,2}(?:不|禁|慎)")
_DENIED_BEFORE = re.compile(
    r"(?:没有?|无|不是|并非|未|否认|排除了?|从没|从来没有?|不存在|不像|不考虑|除外|没得过?|没患过?|没查出)"
    r"(?:过|有|得过?|患过?|查出|发现|合并|明显的?|任何|什么|其他的?)*[^,。!?;]{0,6}$"
)
_DENIED_AFTER = re.compile(
    r"^[^,。!?;]{0,5}?(?:没有|没得|没患|没查|没犯|没这|不是|排除|阴性|正常|未见|(?:已经?|早就?|早已|都)(?:好|痊愈|治好))"
)
_DOUBT = re.compile(r"是不是|会不会|该不会|难道|怀疑|排除过")
_RELATIVE = re.compile(
    r"(?:爸|妈|爹|娘|父亲|母亲|爷爷|奶奶|外公|外婆|姥|公公|婆婆|岳|老公|老婆|丈夫|妻子|爱人|对象|孩子|儿子|女儿"
    r"|弟|妹|哥|姐|叔|婶|姨|舅|姑|家人|家里人|亲戚|邻居|同事|朋友|同学)"
)
_SELF = re.compile(
    r"自己|本人|我(?![^,。!?;]{0,1}(?:爸|妈|爹|娘|父|母|爷|奶|外|姥|公|婆|岳|老|家|孩|儿|女|弟|妹|哥|姐))"
)
_HAD = re.compile(r"^(?:嗯|对|是|有|得过|患过|确诊过)(?!没|不)")
_YES = re.compile(
    r"可以|能(?:的|吃|用|喝|服)?|行(?:的)?(?=[,。!]|$)|放心|(?:吃|用|喝|服)吧|照(?:吃|用|喝|常|旧|样)|随意|无妨"
    r"|没错|没有?问题|尽管|大胆|少量|适量|对的|是的|好的|成(?=[,。!]|$)|管用|有效"
)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence within a text: its place and its clauses' places."""

    start: int
    end: int
    clauses: tuple[Span, ...]


def sentences(text: str) -> list[Sentence]:
    """Cuts a folded text at full stops and the like, and each sentence at commas and colons."""
    cut = []
    for match in _SENTENCE.finditer(text):
        clauses = tuple(
            (match.start() + clause.start(), match.start() + clause.end())
            for clause in _CLAUSE.finditer(match[0])
        )
        cut.append(Sentence(match.start(), match.end(), clauses))
    return cut


def clause_of(sentence: Sentence, place: int) -> Span:
    """The clause that a place stands in."""
    return next(
        (clause for clause in sentence.clauses if clause[0] <= place < clause[1]),
        (sentence.start, sentence.end),
    )


def is_question(text: str, sentence: Sentence) -> bool:
    """Whether a sentence asks."""
    return bool(_QUESTION.search(text[sentence.start : sentence.end].rstrip()))


def mask(text: str, mentions: Sequence[Mention]) -> str:
    """The text with boxes for its names, so that no cue is seen within a name; the places stay."""
    parts, last = [], 0
    for mention in mentions:
        parts += [text[last : mention.start], "□" * (mention.end - mention.start)]
        last = mention.end
    return "".join(parts) + text[last:]


def refusals(text: str, start: int, end: int) -> Iterator[Span]:
    """Places of words that refuse, between two places of a text."""
    yield from _matches(_REFUSAL, text, start, end)


def says_no(text: str, start: int, end: int) -> bool:
    """Whether a part of a text refuses or warns."""
    return any(next(_matches(pattern, text, start, end), None) for pattern in (_REFUSAL, _HARM))


def _matches(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[Span]:
    part = _COMFORT.sub(lambda match: " " * len(match[0]), text[start:end])
    for match in pattern.finditer(part):
        yield start + match.start(), start + match.end()


def stances(text: str, sentence: Sentence, mentions: Sequence[Mention]) -> list[Stance]:
    """What an answer's sentence says of each of its mentions of things that may be taken."""
    if is_question(text, sentence):
        return [Stance.ASKED] * len(mentions)
    forbidden: set[int] = set()
    told: set[int] = set()
    for clause in sentence.clauses:
        here = [number for number, each in enumerate(mentions) if clause[0] <= each.start < clause[1]]
        cause = _CAUSES.search(text, *clause)
        if cause:
            told.update(number for number in here if mentions[number].start >= cause.end())
        for cue in refusals(text, *clause):
            forbidden.update(_refused(text, cue, clause, here, mentions))
            # ``A 对 B 有风险，不建议``: the clause speaks of what was named last.
            if not here and _BARE.match(text, cue[1], clause[1]):
                before = [number for number, each in enumerate(mentions) if each.end <= clause[0]]
                forbidden.update(before[-1:])
        for cue in _matches(_HARM, text, *clause):
            named = [number for number, each in enumerate(mentions) if each.end <= cue[0]]
            forbidden.update(number for number in named if number in here or not here)
        if here and _HISTORY.search(text, clause[0], mentions[here[-1]].end + 4):
            told.update(here)
    return [
        Stance.FORBIDDEN if number in forbidden else Stance.TOLD if number in told else Stance.ADVISED
        for number in range(len(mentions))
    ]


def _refused(
    text: str, cue: Span, clause: Span, here: Sequence[int], mentions: Sequence[Mention]
) -> list[int]:
    """Which names of a clause a refusal is about: those behind it up to a turn, else those before it."""
    turn = _TURN.search(text, cue[1], clause[1])
    limit = turn.start() if turn else clause[1]
    behind = [number for number in here if cue[0] <= mentions[number].start < limit]
    if behind:
        return behind
    if not _BARE.match(text, cue[1], clause[1]):
        return []
    before = [number for number in here if mentions[number].end <= cue[0]]
    turns = [match.start() for match in _TURN.finditer(text, clause[0], cue[0])]
    if turns:
        before = [number for number in before if mentions[number].start >= turns[-1]]
    return before


def has_it(text: str, sentence: Sentence, mention: Mention) -> bool | None:
    """Whether the speaker says that the patient has a condition; None where that is left open."""
    clause = clause_of(sentence, mention.start)
    before, after = text[clause[0] : mention.start], text[mention.end : clause[1]]
    if _DENIED_BEFORE.search(before) or _DENIED_AFTER.match(after):
        return False
    return None if _DOUBT.search(before) or _IF.search(before) else True


def of_another(texts: Sequence[str], text: str, sentence: Sentence, mention: Mention) -> bool:
    """Whether a condition is a relative's, in the words of a patient who asks for themselves.

    ``texts`` are all turns of the patient.
    """
    clause = clause_of(sentence, mention.start)
    owner = text[clause[0] : mention.start]
    if not _RELATIVE.search(owner):
        return False
    rest = "".join(texts).replace(text[clause[0] : clause[1]], "")
    return bool(_SELF.search(rest))


def confirms(text: str) -> bool:
    """Whether a patient's turn begins with a yes to what the doctor asked about."""
    return bool(_HAD.match(text)) and not text.startswith(("有没有", "是不是", "对不"))


def takes_none(text: str, sentence: Sentence, mention: Mention) -> bool:
    """Whether a patient says that they do not take something."""
    clause = clause_of(sentence, mention.start)
    return bool(re.search(r"不|没|戒|未|别", text[clause[0] : mention.start]))


def answers_yes(text: str) -> Span | None:
    """Where an answer that names nothing says yes to what was asked; None if it does not."""
    for sentence in sentences(text):
        if is_question(text, sentence):
            continue
        if says_no(text, sentence.start, sentence.end):
            return None
        match = _COMFORT.search(text, sentence.start, sentence.end) or _YES.search(
            text, sentence.start, sentence.end
        )
        if match:
            return match.span()
    return None
