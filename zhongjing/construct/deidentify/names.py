"""The recogniser of names: words that announce a name, and a model of what is one.

By rule, a name is a surname and one or two characters that are not frequent in medical dialogue
(:class:`Lexicon`); how much is asked of it depends on how clearly its surroundings say that it is one. Where
nothing announces it, the model decides (:mod:`likelihood`); it may also overrule the weak rules.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import NamedTuple

import numpy as np
from presidio_analyzer import EntityRecognizer, RecognizerResult
from presidio_analyzer.nlp_engine import NlpArtifacts

from zhongjing.construct.deidentify.lexicon import Lexicon, words
from zhongjing.construct.deidentify.likelihood import Kind, candidates, load_model, surnames_of
from zhongjing.construct.deidentify.numbers import LANGUAGE
from zhongjing.construct.deidentify.policy import NAMES, Identifier


class Clarity(IntEnum):
    """How clearly the surroundings announce a name."""

    WEAK = 1  # 患者, 我妈妈, 我是: mostly something else follows
    STRONG = 2  # 我叫, 患儿名叫
    FIELD = 3  # 姓名:, 联系人:


class Cue(NamedTuple):
    """A word before a name."""

    pattern: re.Pattern[str]
    entity: Identifier
    clarity: Clarity


_KIN = (
    "妈妈|母亲|爸爸|父亲|老公|丈夫|爱人|老婆|妻子|媳妇|儿子|女儿|孩子|宝宝|宝贝|爷爷|奶奶|外公|外婆|姥姥|姥爷|哥哥|姐姐|弟弟|妹妹|侄子|侄女|孙子|孙女|外孙女?"
    "|婆婆|公公|岳母|岳父|同事|朋友|同学|邻居|对象|女友|男友|舅舅|姑姑|姑妈|阿姨|叔叔|伯伯|表[哥姐弟妹]|堂[哥姐弟妹]|[我他她](?:妈(?!妈)|爸(?!爸)|哥(?!哥)|姐(?!姐)|弟(?!弟)|妹(?!妹))"
)
_CALLED = "(?:名字[叫是为]|[小大学全]?名[叫是为]|[小大全]名(?!鼎)|姓名[叫是为]?|名叫|叫做|叫)"
_STAFF = (
    "(?:主治|主管|经治|接诊|报告|审核|检查|操作|手术|主刀|住院|管床|责任|值班|主诊)(?:医师|医生|护士|大夫)"
)


def _cue(pattern: str, entity: Identifier, clarity: Clarity) -> Cue:
    return Cue(re.compile(pattern), entity, clarity)


CUES = (
    _cue(rf"(?:{_KIN})[的]?{_CALLED}[ ]*:?[ ]*", Identifier.FAMILY_NAME, Clarity.STRONG),
    _cue(
        r"(?:联系人|监护人|家属|陪同人|陪护人|亲属)(?:姓名)?[ ]*(?::|是|为|叫)[ ]*",
        Identifier.FAMILY_NAME,
        Clarity.FIELD,
    ),
    _cue(rf"(?:{_KIN}|家属|亲属)[ ]*[,，:]?", Identifier.FAMILY_NAME, Clarity.WEAK),
    _cue(
        rf"(?:{_STAFF}|签名|署名|签字|医师|医生|大夫|护士|检验者|报告人|审核人)[ ]*:[ ]*",
        Identifier.DOCTOR_NAME,
        Clarity.FIELD,
    ),
    _cue(rf"{_STAFF}[ ]*[是为]?[ ]*", Identifier.DOCTOR_NAME, Clarity.WEAK),
    _cue(
        r"(?:姓名|就诊人|就诊者|受检者|被保险人|收件人|收货人|持卡人|户主|投保人)[ ]*(?::|是|为|叫)?[ ]*",
        Identifier.PATIENT_NAME,
        Clarity.FIELD,
    ),
    _cue(
        r"(?:病人|患者|病员|患儿)(?:的?名字[叫是为]?|[的]?(?:姓名|全名|名)[叫是为:]?|叫|:)[ ]*",
        Identifier.PATIENT_NAME,
        Clarity.STRONG,
    ),
    _cue(
        r"(?:我叫|俺叫|名叫|叫做|名字[叫是为]|(?<![么])我的?名字[叫是]?|真名|本名|全名是?)[ ]*:?[ ]*",
        Identifier.PATIENT_NAME,
        Clarity.STRONG,
    ),
    _cue(
        r"(?:病人|患者|病员|患儿|本人是?|我是|(?<![\u4e00-\u9fff])(?:这是|帮|替|给))[ ]*[,，]?",
        Identifier.PATIENT_NAME,
        Clarity.WEAK,
    ),
)
_TITLES = re.compile(
    "副主任医师|主任医师|主治医师|主治医生|副主任|副教授|护士长|医师|医生|大夫|主任|教授|护士|院长|主治|护师|药师|技师"
    "|专家|博士|老师|先生|女士|小姐|同学|师傅|阿姨|叔叔|大爷|大妈|大姐|大哥|奶奶|爷爷"
)
_MEDICAL = frozenset(
    [
        "副主任医师",
        "主任医师",
        "主治医师",
        "主治医生",
        "副主任",
        "副教授",
        "护士长",
        "医师",
        "医生",
        "大夫",
        "主任",
        "教授",
        "护士",
        "院长",
        "主治",
        "护师",
        "药师",
        "技师",
    ]
)
_BEFORE_TITLE = re.compile(
    "(?:^|[^\u4e00-\u9fff]|请|找|给|由|让|问|是|叫|看|谢|约|约了|挂|挂了|听|跟|和|与|及|辛苦|麻烦|了|的|过|去|到|联系|咨询|预约|信任|在|于|天|上次|去年|当时|等|见|位|您|你|拜托|托|向|对|被|把|陪|遇|过|按|照|生)$"
)
# What stands before 医生 and is no surname.
_NO_SURNAME = frozenset(
    "谢据在业科好下的询问照合循与和请看查向要了诊治由院是让地找便候知按后望助果理过位个守烦从系多断时求容检听以有或床教于样康中用受择老常那来上跟前经诉您这病测说去给者被但然且你些术同行解几救见脑水间晓子液么为惑性服之规道觉议民置情室再何次吃叫食调础镜当小大名军队校厂村兽牙男女主副总原任新各该本其另某全外儿妇内骨眼皮肤妙神良庸母责管班都也就还不没会能可我他她它家西专职联约挂先任早快又只急今前查患者因刚才都想将待平最每所把多少得着该使当对等住怕加减含注呈属"
)
_NEVER_FIRST = frozenset(
    "什么这那你我他她它不是的了在很就也还没会要能可以怎为哪谁啥您咱个一二三两几有无未请求给做去来到从被把让对向之其此该每各某"
)
_NO_NAME = re.compile(
    "医生|大夫|医院|患者|病人|先生|女士|你好|您好|朋友|宝宝|孩子|妈妈|爸爸|方法|方案|高血压|白癜|白血|黄疸|黄连|金银花|白头翁|何首乌|车前|石斛|马上|安全|平时|温度|常见|应该|时候|单纯|"
    "无名|匿名|保密|不详|未知|方便|同意|明显|明确|清楚|经常|正常|常规|平常|高度|高兴|万一|能否|可否|自己|如何|如果|全面|全部|单位|向您|安排|成年|成人|时间|时常|严重|严格|广大|解放|"
    "季节|金属|白天|安心|康复|水平|水果|平均|强烈|应当|宣教|易感|党参|家人|家长|古代|关节|关于|方面|空腹|习惯|从小|后来|后期|相关|相信|通过|连续|终于|于是|都是|充分|温和|和平|广泛|利于|"
    "国家|文献|文化|祖国|成功|成长|路上|明天|明年|雷同|江湖|武器|牛奶|花生|苗条|甘油|谷丙|谷草|胡萝|毛细|毛囊|包括|包皮|支气|支持|支原|单独|幸好|幸亏|卓有|容易|尚未|尚可|车祸|农村|农民|"
    "左右|阴道|阳性|阴性|强直|项目|干燥|干净|冷热|计划|银屑|元素|满意|危险|展开|智力|由于|卫生|周围|周期|周末|周岁|黄体|黄色|白色|红色|蓝色|花色|金黄|石膏|结石|水肿|麻木|麻烦|麻醉|"
    "早日|健康|刚刚|先天|先兆|首先|东西|月子|今年|前年|去年|天然|扁平|扁桃|抗炎|抗生|抗病|时向|后向|过敏|番茄|肺炎|肩周|满月|都可|都正|广谱|经典|仲景|聪明|聊天|虽然|依然|突然|竟然|骤然|果然|偶尔|"
    "否继|核心|建立|暗红|鲜红|立即|权威|爱心|喜欢|丰富|双向|微小|传统|脖子|春天|夏天|秋天|冬天|第[一二三]|利福|应根|帽子|助放|给予|予以|由於|於一|成天|独立|因为|女方|男方|轻松|解方|胆红|一直|好奇|常年|"
    "消化|全无|才刚|都想|白领|平躺|富贵|昂贵|但可|青年|青春|老年|小儿|意志|放化|木香|自青|忙解|心安|宁心|安神|应征|经学|党参|阳光|病毒"
)
_FOLLOWS = re.compile("[^\u4e00-\u9fff]|$|男|女|先生|女士|小姐|今年|同志|老师|医|大夫|主任|教授|昨|今|前|刚")
_AGE_OR_SEX = re.compile(
    r"(?<![\u4e00-\u9fff])([\u4e00-\u9fff]{2,4})(?=[,，、 ]{0,2}(?:男|女)(?:性|[,，、。;； (（)]|$)"
    r"|[,，、 ]{1,2}[0-9]{1,3}岁|[(（][男女])",
    re.MULTILINE,
)
_SURNAME_SAID = re.compile(
    "(?:我|免贵|本人|患者|她|他)姓([\u4e00-\u9fff])|(?<![贵同百老])姓([\u4e00-\u9fff])(?=的|[,，。、;；\\s]|$)"
    "|([\u4e00-\u9fff])姓(?=老人|男|女|患|病|医|大夫|护士|先生|朋友|同)"
)
# 张某, 李某某, 王氏: half hidden by the author
_HALF_HIDDEN = re.compile(
    "([\u4e00-\u9fff])(?:某某|某(?![些种医天年月日一个院处地项])|氏(?=兄|姐|夫|父|母|家族|女))"
)
_NOT_HALF_HIDDEN = frozenset("于在有是从由和与时对向就如任")
_ALONE = re.compile(r"(?<![\u4e00-\u9fff])[\u4e00-\u9fff]{3,4}")
_FORMS = re.compile(
    "片|丸|胶囊|颗粒|汤|散|膏|酒|茶|粥|糕|饼|面|饭|鱼|肉|菜|豆|羹|鸡|虾|糖浆|口服|注射|滴|栓|症|病|炎|癌|瘤|痛|科|草|花|果|根|叶|皮|子|仁|菇|瓜|酥|包|卷|素|氏"
)
_NOT_FAMILIAR = frozenset(words("not_names"))
_RUNNING = "的了是在有和与及不也都我你您他她这那吃做用说患"
# Behind a stretch of text, what makes it a part of a drug's, a dish's or a syndrome's name.
_PRODUCT = re.compile(
    f"(?:(?![{_RUNNING}])[\u4e00-\u9fff]){{0,5}}?(?:片|丸|胶囊|颗粒|冲剂|口服液|口服溶液|软膏|乳膏|药膏|膏|滴眼液|注射液|糖浆|栓|散|洗液|合剂|酊|搽剂|贴|喷雾"
    "|汤|糕|粥|菌|菇|菜|豆腐|蛋|藕|乳|综合[征症])|[-·型氏]|[体杰克]?病(?![了房历人床])|病性"
)
_KIN_BEFORE = re.compile(f"(?:{_KIN})$")
LIKELY = 0.12  # from this probability on, the model alone makes a name
ALONE = 0.5  # the same for a name of three characters or more, without what stands beside it
DOUBTFUL = 0.5  # the same for what is also a word, or begins with a character that seldom is a surname
DENIED = 0.02  # below it, a weak rule alone does not
_SCORE = {Clarity.WEAK: 0.6, Clarity.STRONG: 0.75, Clarity.FIELD: 0.78}


def _is_han(text: str) -> bool:
    return bool(text) and all("\u4e00" <= each <= "\u9fff" for each in text)


class NameRecognizer(EntityRecognizer):
    """Names of patients, doctors, family and others; of a title, only the name before it.

    Args:
        lexicon: surnames and characters.
    """

    def __init__(self, lexicon: Lexicon) -> None:
        self._lexicon = lexicon
        self._places = frozenset(words("places"))
        self._frequent = frozenset(words("surnames")[:150])
        self._model = load_model()
        self._surnames = surnames_of(lexicon, words("surnames"), self._model.statistics.ids)
        super().__init__([each.value for each in sorted(NAMES)], name="names", supported_language=LANGUAGE)

    def load(self) -> None:
        """Nothing to load."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: NlpArtifacts) -> list[RecognizerResult]:
        """Names in folded text; what was found once is found everywhere in it."""
        del entities, nlp_artifacts
        found: dict[tuple[int, int], tuple[Identifier, float]] = {}

        def add(start: int, end: int, entity: Identifier, score: float) -> None:
            if (start, end) not in found or found[start, end][1] < score:
                found[start, end] = (entity, score)

        for cue in CUES:
            for match in cue.pattern.finditer(text):
                end = self._name_end(text, match.end(), cue.clarity)
                if end is not None:
                    add(match.end(), end, cue.entity, _SCORE[cue.clarity])
        for match in _TITLES.finditer(text):
            medical = match.group() in _MEDICAL
            start = self._name_start(text, match.start(), medical)
            if start is not None:
                add(start, match.start(), Identifier.DOCTOR_NAME if medical else Identifier.PERSON_NAME, 0.77)
        for match in _AGE_OR_SEX.finditer(text):
            if self._is_name(match.group(1), Clarity.STRONG):
                add(*match.span(1), Identifier.PATIENT_NAME, 0.7)
        for match in _SURNAME_SAID.finditer(text):
            said = match.group(match.lastindex or 0)
            if said in self._lexicon.surnames or said not in _NO_SURNAME:
                add(*match.span(match.lastindex or 0), Identifier.PATIENT_NAME, 0.7)
        for match in _HALF_HIDDEN.finditer(text):
            if match.group(1) in self._lexicon.surnames - _NOT_HALF_HIDDEN:
                add(*match.span(1), Identifier.PERSON_NAME, 0.7)
        for match in _ALONE.finditer(text):
            end = self._alone(text, match.start())
            if end is not None:
                add(match.start(), end, Identifier.PERSON_NAME, 0.5)
        self._judge(text, found)
        self._repeat(text, found)
        return [RecognizerResult(entity.value, *span, score) for span, (entity, score) in found.items()]

    def _judge(self, text: str, found: dict[tuple[int, int], tuple[Identifier, float]]) -> None:
        """Adds what the model takes for names; takes away what only a weak rule says and the model denies."""
        seen = candidates(text, self._model.statistics, self._surnames)
        likely: dict[tuple[int, int], float] = {}
        if seen is not None:
            beside, alone = self._model.probabilities(seen)
            for at in (np.maximum(beside, alone) >= DENIED).nonzero()[0].tolist():
                span = int(seen.start[at]), int(seen.end[at])
                likely[span] = self._weighed(
                    text, span, int(seen.kind[at]), float(beside[at]), float(alone[at])
                )
        for span, (_, score) in list(found.items()):
            weak = score <= _SCORE[Clarity.WEAK] and span not in likely
            word = score <= _SCORE[Clarity.STRONG] and text[slice(*span)] in self._model.statistics.words
            if weak or (word and likely.get(span, 0.0) < DOUBTFUL):
                del found[span]
        taken: list[tuple[int, int]] = []
        for span, value in sorted(likely.items(), key=lambda each: (-each[1], each[0])):
            if value < LIKELY:
                break
            if any(span[0] < end and span[1] > start for start, end in taken):
                continue
            taken.append(span)
            score = round(0.55 + 0.14 * value, 3)
            if span not in found or found[span][1] < score:
                found[span] = (found[span][0] if span in found else self._role(text, span), score)

    def _weighed(self, text: str, span: tuple[int, int], kind: int, beside: float, alone: float) -> float:
        """A candidate's probability after what the model does not know; below :data:`LIKELY`: no name."""
        name, value = text[slice(*span)], beside
        if kind in (Kind.FULL, Kind.COMPOUND) and alone >= ALONE:  # 唐凤珍 is a name wherever it stands
            value = max(value, LIKELY)
        doubtful = kind != Kind.FAMILIAR and (name in self._model.statistics.words or name[0] in _NO_SURNAME)
        if kind == Kind.TITLED and name not in self._lexicon.surnames:
            return DENIED  # the rules know these
        if kind == Kind.TITLED and name in _NO_SURNAME - self._frequent:
            return DENIED  # 和医生商量: the model does not know the surname itself
        if kind == Kind.FAMILIAR and name in _NOT_FAMILIAR:
            return DENIED
        doubtful = doubtful or (kind < Kind.FAMILIAR and _PRODUCT.match(text, span[1]) is not None)
        if (doubtful and value < DOUBTFUL) or _NO_NAME.search(name):
            return DENIED
        return value

    def _role(self, text: str, span: tuple[int, int]) -> Identifier:
        """Whose name it is, by the words on either side."""
        title = _TITLES.match(text, span[1])
        if title is not None and title.group() in _MEDICAL:
            return Identifier.DOCTOR_NAME
        before = text[max(0, span[0] - 4) : span[0]]
        if _KIN_BEFORE.search(before):
            return Identifier.FAMILY_NAME
        if re.search("(?:医师|医生|大夫|护士|主任|教授)[:： ]?$", before):
            return Identifier.DOCTOR_NAME
        if re.search("(?:患者|病人|患儿|产妇)[:： ]?$", before):
            return Identifier.PATIENT_NAME
        return Identifier.PERSON_NAME

    def _repeat(self, text: str, found: dict[tuple[int, int], tuple[Identifier, float]]) -> None:
        """Adds all other places of the names that were found, where that is clear."""
        names: dict[str, Identifier] = {}
        for (start, end), (entity, score) in sorted(found.items(), key=lambda each: (-each[1][1], each[0])):
            if end - start > 2 or (end - start == 2 and score >= _SCORE[Clarity.STRONG]):
                names.setdefault(text[start:end], entity)
        for name, entity in names.items():
            at = text.find(name)
            while at >= 0:
                role, score = found.get((at, at + len(name)), (Identifier.PERSON_NAME, 0.0))
                if score < 0.65 or (role is Identifier.PERSON_NAME and score < 0.7):
                    found[at, at + len(name)] = (entity, max(score, 0.65))
                at = text.find(name, at + len(name))

    def _usual(self, char: str) -> bool:
        """Whether a character may stand in a given name."""
        return char in self._lexicon.given or char not in self._lexicon.common

    def _rare(self, text: str) -> bool:
        """Whether all characters are rare in running text: a name's, if anything's."""
        return (
            _is_han(text)
            and all(each not in self._lexicon.common for each in text)
            and not _NO_NAME.search(text)
        )

    def _surname_length(self, text: str) -> int:
        """2 or 1 if the text begins with a listed surname, else 0."""
        if text[:2] in self._lexicon.compound:
            return 2
        return 1 if text[:1] in self._lexicon.surnames else 0

    def _is_name(self, text: str, clarity: Clarity) -> bool:
        """Whether the text as a whole may be a name."""
        if not 2 <= len(text) <= 4 or not _is_han(text) or _NO_NAME.search(text) or text in self._places:
            return False
        listed = text[:2] in self._lexicon.compound if len(text) == 4 else self._surname_length(text) > 0
        length = 2 if len(text) == 4 else self._surname_length(text) or 1
        given = text[length:]
        if not 1 <= len(given) <= 2 or not all(self._usual(each) for each in given):
            return False
        named = sum(each in self._lexicon.given for each in given)
        if text[0] in _NEVER_FIRST:
            return clarity >= Clarity.STRONG and named == 2
        if clarity >= Clarity.STRONG:
            return listed or named > 0 or text[0] not in self._lexicon.common
        if given[-1] == "一" or given == "子":
            return False
        if listed:
            return named > 0
        if named < len(given):
            return False
        return (
            length == 2 or text[0] not in self._lexicon.common or (named == 2 and text[0] not in _NO_SURNAME)
        )

    def _name_end(self, text: str, start: int, clarity: Clarity) -> int | None:
        """Where a name that begins at ``start`` ends; ``None`` if there is none."""
        run = re.match("[\u4e00-\u9fff]{1,6}", text[start : start + 6])
        if run is None:
            return None
        width = len(run.group())
        if clarity is Clarity.FIELD and 2 <= width <= 4 and self._field(run.group()):
            return start + width
        listed = self._surname_length(text[start : start + 2])
        lengths = (4, 3) if listed == 2 else (3, 2, 4)
        for length in lengths:
            end = start + length
            if length > width or not self._is_name(text[start:end], clarity):
                continue
            if self._ends(text, end):
                return end
        end = start + listed + 1
        if (
            listed
            and clarity is Clarity.WEAK
            and self._rare(text[start + listed : end])
            and self._ends(text, end)
        ):
            return end
        if clarity >= Clarity.STRONG and width >= 3 and self._is_name(text[start : start + 3], clarity):
            return start + 3
        return None

    def _field(self, text: str) -> bool:
        """Whether the whole content of a field may be a name, whatever its characters."""
        if text[0] in _NEVER_FIRST - self._lexicon.surnames or _NO_NAME.search(text):
            return False
        return self._surname_length(text) > 0 or any(self._usual(each) for each in text[1:])

    def _ends(self, text: str, end: int) -> bool:
        """Whether a name may end here: what follows is no character of a given name."""
        follow = text[end : end + 1]
        return (
            _FOLLOWS.match(text, end) is not None
            or (follow in self._lexicon.common and follow not in self._lexicon.given)
            or follow in "的在说是有也和来去刚昨今上最近现已曾因得患吃于陪就这那从把给被跟吗呢啊挂"
        )

    def _name_start(self, text: str, end: int, medical: bool) -> int | None:
        """Where the name before a title begins; ``None`` if there is none."""
        for length in (4, 3):
            name = text[max(0, end - length) : end]
            before = text[max(0, end - length - 3) : max(0, end - length)]
            if (
                len(name) < length
                or not _BEFORE_TITLE.search(before)
                or (name[0] == "谢" and before[-1:] == "谢")
            ):
                continue
            if name[0] not in _NO_SURNAME and self._is_name(name, Clarity.WEAK):
                return end - length
        for length in (4, 3, 2):
            name = text[max(0, end - length) : end]
            if len(name) < length or self._surname_length(name) not in ((2,) if length == 4 else (1, 2)):
                continue
            if name[0] in "谢和与向" and length < 4 and name[-1] in self._lexicon.surnames:
                continue
            if self._surname_length(name) == 2 and length == 2:
                return end - 2
            if length == 2 and name[0] in "谢和与向" and name[1] in self._lexicon.surnames:
                continue
            clear = _BEFORE_TITLE.search(text[max(0, end - length - 3) : max(0, end - length)]) is not None
            if self._is_name(name, Clarity.STRONG if clear or length == 3 else Clarity.WEAK):
                return end - length
        if not medical:
            bare = text[max(0, end - 1) : end]
            clear = bare in self._lexicon.surnames and bare not in _NO_SURNAME
            return end - 1 if clear and _BEFORE_TITLE.search(text[max(0, end - 3) : end - 1]) else None
        for length in (2, 1):
            if end - length < 0:
                continue
            name = text[end - length : end]
            if not _is_han(name) or not _BEFORE_TITLE.search(text[max(0, end - length - 3) : end - length]):
                continue
            if length == 1:
                return end - 1 if name not in _NO_SURNAME else None
            if self._lexicon.common.isdisjoint(name) and self._is_name(name, Clarity.WEAK):
                return end - length
            if length == 2 and name in _MEDICAL:
                return None
        return None

    def _alone(self, text: str, start: int) -> int | None:
        """The end of a name that stands for itself: a listed surname, two characters of given names."""
        length = self._surname_length(text[start : start + 2])
        if length == 0:
            return None
        end = start + length + 2
        given = text[start + length : end]
        if len(given) < 2 or not all(each in self._lexicon.given for each in given):
            return None
        if text[start] in self._lexicon.common and length == 1:
            return None
        if _NO_NAME.search(text[start:end]) or _FORMS.search(text[start : end + 2]):
            return None
        follow = text[end : end + 1]
        return end if not _is_han(follow) or follow in self._lexicon.common else None
