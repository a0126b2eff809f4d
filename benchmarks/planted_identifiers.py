"""Dialogues with identifiers planted at known places: what de-identification is measured on.

A carrier is a published dialogue. Sentences with identifiers, made of a phrase and a value, are put between
its sentences. All is drawn from one seeded generator; values obey their publisher's rule: identity cards
GB 11643-1999, bank cards ISO/IEC 7812 (Luhn), phones the numbering plan, plates GA 36-2018.

The measurement's surnames, phrases and carriers are disjoint from those on which the recognisers were made:
surnames and carriers go by the parity of the first byte of their SHA-256 (:func:`for_measurement`), and the
measured recognisers are not given the measurement's surnames.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from zhongjing.data.records import Dialogue, Turn

MARK = "{}"
MAIL = ("163.com", "qq.com", "126.com", "gmail.com", "sina.com.cn")

# What the recognisers say for each class that is planted here.
EXPECTED = {
    "patient": {"PATIENT_NAME", "PERSON_NAME", "FAMILY_NAME", "DOCTOR_NAME"},
    "doctor": {"PATIENT_NAME", "PERSON_NAME", "FAMILY_NAME", "DOCTOR_NAME"},
    "family": {"PATIENT_NAME", "PERSON_NAME", "FAMILY_NAME", "DOCTOR_NAME"},
    "doctor_surname": {"DOCTOR_NAME", "PERSON_NAME", "PATIENT_NAME"},
    "mobile": {"PHONE"},
    "landline": {"PHONE"},
    "id_card": {"ID_CARD"},
    "bank_card": {"BANK_CARD"},
    "passport": {"PASSPORT"},
    "record_number": {"RECORD_NUMBER"},
    "email": {"EMAIL"},
    "wechat": {"ACCOUNT"},
    "qq": {"ACCOUNT"},
    "plate": {"PLATE"},
    "url": {"URL"},
    "ip": {"IP_ADDRESS"},
    "date": {"DATE", "BIRTH_DATE"},
    "birth_date": {"DATE", "BIRTH_DATE"},
    "address": {"ADDRESS"},
    "hospital": {"HOSPITAL"},
}
NAMES = ("patient", "doctor", "family", "doctor_surname")
STRUCTURED = tuple(each for each in EXPECTED if each not in (*NAMES, "address", "hospital"))

GIVEN = [
    "伟明",
    "淑珍",
    "梓萱",
    "浩宇",
    "建军",
    "玉兰",
    "雨泽",
    "佳怡",
    "志远",
    "秀芳",
    "俊杰",
    "晓燕",
    "国强",
    "丽华",
    "思远",
    "诗涵",
    "海波",
    "桂英",
    "文静",
    "子墨",
    "宇航",
    "春梅",
    "立新",
    "美玲",
    "天佑",
    "雅静",
    "永康",
    "凤霞",
    "嘉豪",
    "若溪",
    "德胜",
    "巧云",
    "鹏飞",
    "静怡",
    "振华",
    "红艳",
    "一鸣",
    "素琴",
    "泽楷",
    "语桐",
    "长青",
    "彩虹",
    "世杰",
    "惠敏",
    "金龙",
    "亚楠",
    "铭轩",
    "月娥",
    "培林",
    "可心",
    "翔",
    "琳",
    "峰",
    "倩",
    "磊",
    "婧",
    "毅",
    "岚",
    "骞",
    "蔚",
]

MEASURED_PHRASES: dict[str, tuple[str, ...]] = {
    "patient": (
        "您好，我叫{}，今年45岁。",
        "患者{}，女，38岁。",
        "姓名：{} 性别：男 年龄：52岁。",
        "我是{}，上周找您看过。",
        "病人名字是{}，麻烦看一下。",
        "这是{}的化验单，请您过目。",
        "{}，男，61岁，来咨询以下情况。",
        "帮{}挂个号，谢谢。",
        "就诊人：{}。",
        "本人{}，想问下面的问题。",
    ),
    "doctor": (
        "谢谢{}医生！",
        "上次是{}主任给我看的。",
        "我挂的是{}教授的号。",
        "您好，我是{}医生。",
        "主治医师：{}。",
        "报告医师 {}。",
        "昨天{}大夫给我开的药。",
        "当时接诊的是{}副主任医师。",
    ),
    "family": (
        "我妈妈{}也有这个病。",
        "我老公{}，40岁。",
        "孩子叫{}，3岁了。",
        "联系人是{}（女儿）。",
        "我爸爸名叫{}。",
        "家属{}陪同就诊。",
        "宝宝大名{}。",
        "我儿子{}今年上小学。",
    ),
    "doctor_surname": (
        "听{}医生说的。",
        "{}主任，麻烦您了。",
        "{}大夫您好！",
        "想请{}教授再看看。",
        "已经约了{}医生的门诊。",
        "辛苦{}护士长了。",
    ),
    "mobile": ("我的电话{}，方便的话回我。", "手机号是{}。", "有事打{}就行。", "可以联系{}。", "tel:{}"),
    "landline": ("家里座机{}。", "请打{}找我。", "科室电话：{}。"),
    "id_card": ("身份证{}。", "证件号码：{}。", "我的身份证号是{}，可以查到。", "{}是我的证件号。"),
    "bank_card": ("退费请打到{}。", "银行卡号{}。", "卡号：{}，工商银行的。"),
    "passport": ("护照号{}。", "我的护照是{}。", "护照号码：{}。"),
    "record_number": (
        "住院号：{}。",
        "病历号是{}。",
        "门诊号{}。",
        "就诊卡号 {}。",
        "医保卡号：{}。",
        "病案号为{}。",
    ),
    "email": ("报告发到{}。", "邮箱：{}", "我的邮件地址是{}，谢谢。"),
    "wechat": ("加我微信{}。", "微信号：{}。", "我的vx是{}。", "薇信{}，详聊。"),
    "qq": ("QQ：{}。", "我的qq号是{}。", "加qq{}。", "扣扣{}。"),
    "plate": ("车牌{}。", "车子停在门口，{}。", "救护车{}送来的。"),
    "url": ("片子在{}。", "见 {} 。", "链接：{}"),
    "ip": ("登录地址{}。", "ip {}。"),
    "date": ("{}做的检查。", "上次就诊是{}。", "{}开始吃药的。", "检查日期：{}。", "于{}入院。"),
    "birth_date": ("出生日期：{}。", "我是{}出生的。", "生日{}。", "{}生，身体一直不错。"),
    "address": ("家住{}。", "地址：{}。", "药请寄到{}。", "我住在{}。"),
    "hospital": ("之前在{}看过。", "{}的检查结果出来了。", "转到{}治疗。", "这是{}做的CT。"),
}


@dataclass(frozen=True, slots=True)
class Planted:
    """One identifier: in which turn, from where to where (characters), and what."""

    kind: str
    turn: int
    start: int
    end: int


def for_measurement(text: str) -> bool:
    """Whether a surname or a carrier belongs to the measurement; else it is for making the recognisers."""
    return hashlib.sha256(text.encode()).digest()[0] % 2 == 1


class Planter:
    """Plants identifiers.

    Args:
        random_state: the only source of chance.
        surnames: to draw from; two characters are a compound surname.
        given: given names to draw from.
        phrases: for each class; ``{}`` stands for the value.
    """

    def __init__(
        self,
        random_state: random.Random,
        surnames: Sequence[str],
        given: Sequence[str] = GIVEN,
        phrases: dict[str, tuple[str, ...]] | None = None,
    ) -> None:
        self._random = random_state
        self._single = [each for each in surnames if len(each) == 1]
        self._compound = [each for each in surnames if len(each) == 2]
        self._given = given
        self._phrases = phrases or MEASURED_PHRASES

    def plant(self, carrier: Dialogue, kinds: Sequence[str]) -> tuple[Dialogue, list[Planted]]:
        """The carrier with one identifier of each kind, and where they are."""
        pieces: list[list[tuple[str, str | None]]] = []
        for turn in carrier.turns:
            sentences = re.findall(r"[^。！？!?\n]+[。！？!?\n]*", turn.content) or [turn.content]
            pieces.append([(_ended(each), None) for each in sentences])
        for kind in kinds:
            where = self._random.randrange(len(pieces))
            at = self._random.randrange(len(pieces[where]) + 1)
            pieces[where].insert(at, (self._random.choice(self._phrases[kind]), kind))
        turns: list[Turn] = []
        planted: list[Planted] = []
        for number, (turn, parts) in enumerate(zip(carrier.turns, pieces, strict=True)):
            text = ""
            for part, planted_kind in parts:
                if planted_kind is None:
                    text += part
                    continue
                before, after = part.split(MARK)
                value = self.value(planted_kind)
                start = len(text) + len(before)
                planted.append(Planted(planted_kind, number, start, start + len(value)))
                text += before + value + after
            turns.append(Turn(turn.role, text, turn.learn))
        return Dialogue(tuple(turns), carrier.position, carrier.department), planted

    def value(self, kind: str) -> str:
        """A new value of the class."""
        if kind in ("patient", "doctor", "family"):
            return self.surname() + self._random.choice(self._given)
        if kind == "doctor_surname":
            return self.surname()
        return str(getattr(self, f"_{kind}")())

    def surname(self) -> str:
        """A surname; one in twenty is compound, where there are such."""
        compound = self._compound and self._random.random() < 0.05
        return self._random.choice(self._compound if compound else self._single)

    def _digits(self, count: int, first: str = "0123456789") -> str:
        return self._random.choice(first) + "".join(self._random.choices("0123456789", k=count - 1))

    def _mobile(self) -> str:
        prefix = self._random.choice(
            [
                "130",
                "131",
                "135",
                "136",
                "138",
                "139",
                "150",
                "152",
                "158",
                "159",
                "166",
                "177",
                "180",
                "186",
                "189",
                "191",
                "198",
            ]
        )
        number = prefix + self._digits(8)
        shape = self._random.randrange(8)
        if shape == 0:
            return f"{number[:3]} {number[3:7]} {number[7:]}"
        if shape == 1:
            return f"{number[:3]}-{number[3:7]}-{number[7:]}"
        if shape == 2:
            return f"+86 {number}"
        if shape == 3:
            return f"+86-{number[:3]}-{number[3:7]}-{number[7:]}"
        if shape == 4:
            return number.translate(str.maketrans("0123456789", "０１２３４５６７８９"))
        if shape == 5:
            return number.translate(str.maketrans("0123456789", "零一二三四五六七八九"))
        return number

    def _landline(self) -> str:
        area, length = self._random.choice(
            [("010", 8), ("021", 8), ("0371", 8), ("0755", 8), ("0391", 7), ("0716", 7)]
        )
        number = self._digits(length, "2345678")
        return self._random.choice(
            [f"{area}-{number}", f"({area}){number}", f"{area} {number}", f"（{area}）{number}"]
        )

    def _id_card(self) -> str:
        region = self._random.choice(
            [
                "110101",
                "310115",
                "410102",
                "440305",
                "510107",
                "330106",
                "420111",
                "610113",
                "370202",
                "230103",
            ]
        )
        born = date(1940, 1, 1) + timedelta(days=self._random.randrange(29000))
        if self._random.random() < 0.15:
            return region + born.strftime("%y%m%d") + self._digits(3)
        body = region + born.strftime("%Y%m%d") + self._digits(3)
        weights = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
        check = "10X98765432"[sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11]
        return body + (check if self._random.random() < 0.8 else check.lower())

    def _bank_card(self) -> str:
        prefix, length = self._random.choice(
            [("622202", 19), ("621700", 19), ("622848", 19), ("625912", 16), ("356833", 16)]
        )
        body = prefix + self._digits(length - len(prefix) - 1)
        total = 0
        for place, digit in enumerate(reversed(body)):
            doubled = int(digit) * (2 if place % 2 == 0 else 1)
            total += doubled - 9 if doubled > 9 else doubled
        number = body + str(-total % 10)
        if self._random.random() < 0.4:
            return " ".join(number[at : at + 4] for at in range(0, length, 4))
        return number

    def _passport(self) -> str:
        return (
            self._random.choice(["E", "G", "EA", "EJ"]) + self._digits(8)
            if self._random.random() < 0.5
            else ("E" + self._digits(8))
        )

    def _record_number(self) -> str:
        return self._random.choice(["", "", "ZY", "M-", "A"]) + self._digits(
            self._random.choice([6, 8, 10, 12])
        )

    def _email(self) -> str:
        name = self._random.choice(["lucky.star", "xiaoyu88", "wang_lei", "zhou-min", "sunny2020", "hn.zz"])
        return f"{name}{self._digits(2)}@{self._random.choice(MAIL)}"

    def _wechat(self) -> str:
        return self._random.choice(["wx_", "abc", "lily", "sun-_", "zz"]) + self._digits(6)

    def _qq(self) -> str:
        return self._digits(self._random.choice([6, 8, 9, 10]), "123456789")

    def _plate(self) -> str:
        region = self._random.choice("京沪粤豫苏浙鲁川鄂陕") + self._random.choice("ABCDEFGHJK")
        tail = "".join(self._random.choices("ABCDEFGHJKLMNPQRSTUVWXYZ0123456789", k=4)) + self._digits(1)
        if self._random.random() < 0.2:
            return region + self._random.choice("DF") + self._digits(5)
        return region + self._random.choice(["", "·"]) + tail

    def _url(self) -> str:
        host = self._random.choice(["www.mypacs.cn", "img.hospital-x.com", "t.cn", "yunpan.example.com.cn"])
        scheme = "https://" if not host.startswith("www") else self._random.choice(["http://", ""])
        return f"{scheme}{host}/p/{self._digits(6)}"

    def _ip(self) -> str:
        return ".".join(str(self._random.randrange(1, 255)) for _ in range(4))

    def _date(self) -> str:
        day = date(2012, 1, 1) + timedelta(days=self._random.randrange(4300))
        return self._random.choice(
            [
                f"{day.year}年{day.month}月{day.day}日",
                f"{day.year}年{day.month:02}月{day.day:02}号",
                f"{day.year}-{day.month:02}-{day.day:02}",
                f"{day.year}.{day.month}.{day.day}",
                f"{day.year}/{day.month}/{day.day}",
                f"{day.month}月{day.day}日",
                f"{day.month}月{day.day}号",
                f"{_chinese(day.month)}月{_chinese(day.day)}日",
                f"{day.year}年{day.month}月",
            ]
        )

    def _birth_date(self) -> str:
        day = date(1940, 1, 1) + timedelta(days=self._random.randrange(29000))
        return self._random.choice(
            [
                f"{day.year}年{day.month}月{day.day}日",
                f"{day.year}-{day.month:02}-{day.day:02}",
                f"{day.year}.{day.month}.{day.day}",
                f"{day:%Y%m%d}",
                f"{day.year}年{day.month}月",
            ]
        )

    def _address(self) -> str:
        city = self._random.choice(
            [
                "河南省郑州市金水区",
                "广东省深圳市南山区",
                "上海市浦东新区",
                "成都市武侯区",
                "湖北省孝感市云梦县",
                "北京市海淀区",
                "江苏省昆山市",
            ]
        )
        road = self._random.choice(["花园", "解放北", "文化", "人民", "建设东", "青年", "滨河", "学府"])
        number = self._random.randrange(1, 400)
        block = f"{self._random.randrange(1, 30)}号楼{self._random.randrange(1, 6)}单元"
        block += f"{self._random.randrange(101, 2505)}室"
        estate = self._random.choice(["翠竹园小区", "阳光花园", "锦绣家园", "东方名城", "丽景苑"])
        town = self._random.choice(["红旗", "杨家", "柳树"])
        village = f"{town}镇{self._random.choice(['大王', '前进', '石桥'])}村{number}号"
        return self._random.choice(
            [
                f"{city}{road}路{number}号",
                f"{city}{road}路{number}号{estate}{block}",
                f"{city}{village}",
                f"{road}街{number}号院{block}",
                f"{city}{estate}{block}",
            ]
        )

    def _hospital(self) -> str:
        place = self._random.choice(
            [
                "郑州市",
                "河南省",
                "武汉",
                "成都市",
                "温州",
                "苏州市",
                "昆明市",
                "兰州",
                "盐城市",
                "云梦县",
                "上海",
            ]
        )
        name = self._random.choice(
            ["第一人民医院", "中医院", "妇幼保健院", "肿瘤医院", "中心医院", "儿童医院", "第三医院"]
        )
        department = self._random.choice(["", "", "心内科", "消化内科", "儿科门诊"])
        famous = self._random.choice(
            ["北京协和医院", "华西医院", "中山大学附属第一医院", "郑大一附院", "湘雅二医院", "301医院"]
        )
        return (famous if self._random.random() < 0.3 else place + name) + department


def _ended(sentence: str) -> str:
    return sentence if sentence[-1] in "。！？!?\n" else sentence + "。"


def _chinese(number: int) -> str:
    ones = "零一二三四五六七八九"
    if number < 10:
        return ones[number]
    tens = ("" if number < 20 else ones[number // 10]) + "十"
    return tens + (ones[number % 10] if number % 10 else "")
