"""Text with names at known places, in ways that were not written for the recognisers.

Two sources. Published dialogues: where a patient or a doctor wrote 她, 我妈妈 or 医生, a name is put in its
place or beside it, so that the sentence stays what its author wrote. And :file:`name_phrases.txt`, as people
write in chats, records, at triage, on reports; these are put between the sentences of a published dialogue.

Dialogues and phrases are parted by SHA-256: ``made`` trains the name model, ``looked`` is what its makers may
look at, ``held`` is for scores alone.
"""

from __future__ import annotations

import csv
import hashlib
import random
import re
from collections.abc import Collection, Iterator, Sequence
from copy import copy
from pathlib import Path
from typing import Literal, NamedTuple

Part = Literal["made", "looked", "held"]
PHRASES = Path(__file__).with_name("name_phrases.txt")


class Named(NamedTuple):
    """A text, the places of its names (start, end), and the way of writing."""

    text: str
    names: tuple[tuple[int, int], ...]
    way: str


def part_of(text: str) -> Part:
    """To which part a dialogue belongs: half, a quarter, a quarter."""
    number = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[1] % 4
    return "made" if number < 2 else "looked" if number == 2 else "held"


class People:
    """Names by how frequent they are.

    Args:
        random_state: the only source of chance.
        surnames: with their weights.
        given: given names with their weights.
    """

    def __init__(
        self,
        random_state: random.Random,
        surnames: Sequence[tuple[str, float]],
        given: Sequence[tuple[str, float]],
        characters: Sequence[tuple[str, float]] = (),
    ) -> None:
        self.random = random_state
        self._weights = dict(surnames)
        self._surnames = [each for each, _ in surnames], _summed(surnames)
        self._given = [each for each, _ in given], _summed(given)
        self._characters = [each for each, _ in characters], _summed(characters)

    def only(self, surnames: Collection[str]) -> People:
        """The same people of these surnames alone."""
        result = copy(self)
        chosen = [(each, weight) for each, weight in self._weights.items() if each in surnames]
        result._surnames = [each for each, _ in chosen], _summed(chosen)
        return result

    def surname(self) -> str:
        """By frequency."""
        return self.random.choices(self._surnames[0], cum_weights=self._surnames[1])[0]

    def given(self) -> str:
        """A whole given name, or one or two characters by their frequency in given names."""
        if not self._characters[0] or (self._given[0] and self.random.random() < 0.4):
            return self.random.choices(self._given[0], cum_weights=self._given[1])[0]
        count = 1 if self.random.random() < 0.15 else 2
        return "".join(self.random.choices(self._characters[0], cum_weights=self._characters[1], k=count))

    def name(self) -> str:
        """A full name."""
        return self.surname() + self.given()


def _summed(pairs: Sequence[tuple[str, float]]) -> list[float]:
    total = 0.0
    result = []
    for _, weight in pairs:
        total += weight
        result.append(total)
    return result


def population(folder: Path, random_state: random.Random) -> People:
    """Names as 1.2 billion people have them.

    From ``familyname.csv``, ``givenname.csv`` and ``top1000name.prov.csv`` of the package ChineseNames, which
    is not for commercial use and hence not in this repository.
    """
    rows = list(csv.DictReader((folder / "familyname.csv").open(encoding="utf-8-sig")))
    surnames = [(row["surname"], float(row["n.1930_2008"])) for row in rows]
    given = [
        (row["name"], float(row["n.male"]) + float(row["n.female"]))
        for row in csv.DictReader((folder / "top1000name.prov.csv").open(encoding="utf-8-sig"))
    ]
    characters = [
        (row["character"], float(row["n.male"]) + float(row["n.female"]))
        for row in csv.DictReader((folder / "givenname.csv").open(encoding="utf-8-sig"))
    ]
    return People(random_state, surnames, given, characters)


def fakers(random_state: random.Random) -> People:
    """Names of the library faker: fewer, but always there."""
    from faker.providers.person.zh_CN import Provider

    surnames = [(each, float(n)) for each, n in Provider.last_names.items()]
    return People(random_state, surnames, [(each, 1.0) for each in Provider.first_names])


_KIN = (
    "(?:我|俺)(?:的)?(?:妈妈|母亲|爸爸|父亲|老公|丈夫|爱人"
    "|老婆|妻子|媳妇|儿子|女儿|闺女|孩子|宝宝"
    "|奶奶|爷爷|婆婆|岳母|姐姐|妹妹|弟弟|哥哥"
    "|朋友|男朋友|同学|姥姥|外公|外婆|妈|爸)"
)
_AFTER_KIN = "(?![们的是妈爸家和与]|生|子|女)"
_DRUG = "[其吉维阿替利雷倍洛美立培氟辛司伐西头]"
_NO_PERSON = "[们人汀克巴莫唑滨啶昔拉她他妈爸定司米洛霉松夫乐韦林]|哥|姐|弟|妹|奶|爷|叔|伯|姑|舅|姨"
SLOTS: tuple[tuple[str, re.Pattern[str], str], ...] = (
    # (way, where, what: the name instead of it, or beside it)
    (
        "pronoun",
        re.compile(f"(?<!{_DRUG})(?<![给和对跟让为把被叫问])[她他](?!{_NO_PERSON})(?!的)"),
        "instead",
    ),
    ("pronoun, object", re.compile(f"(?<=[给和对跟让为把被问陪])[她他](?!{_NO_PERSON})(?!的)"), "instead"),
    ("possessive", re.compile(f"(?<!{_DRUG})[她他](?=的)"), "instead"),
    ("kin and name", re.compile(_KIN + _AFTER_KIN), "behind"),
    ("name for kin", re.compile(_KIN + _AFTER_KIN), "instead"),
    ("name before title", re.compile("(?<![\u4e00-\u9fff])(?=医生|大夫)|(?<=谢谢)(?=医生|大夫)"), "name"),
    (
        "surname before title",
        re.compile("(?<![\u4e00-\u9fff])(?=医生|大夫)|(?<=谢谢)(?=医生|大夫)"),
        "surname",
    ),
    (
        "patient and name",
        re.compile("(?<![\u4e00-\u9fff])(?:患者|病人)(?=[,，、。:：于因出有近自今昨]|目前|现在|既往|主诉)"),
        "behind",
    ),
    (
        "name for patient",
        re.compile("(?<![\u4e00-\u9fff])(?:患者|病人)(?=[于因出有近自今昨]|目前|现在|既往|主诉)"),
        "instead",
    ),
    ("greeting", re.compile("^(?=[你您]好)"), "greeting"),
    ("surname for kin", re.compile(_KIN + _AFTER_KIN), "familiar"),
)
RELATED = ("阿姨", "大爷", "先生", "女士", "奶奶", "叔叔", "老师", "大姐")


def slots(text: str) -> Iterator[tuple[str, int, int, str]]:
    """Way, start and end of what is replaced, and how."""
    for way, pattern, how in SLOTS:
        for match in pattern.finditer(text):
            yield way, match.start(), match.end(), how


def fill(text: str, slot: tuple[str, int, int, str], people: People) -> Named:
    """The text with a name at the slot."""
    way, start, end, how = slot
    before, after = text[:start], text[end:]
    if how in ("behind", "name", "surname"):
        before, after = text[:end], text[end:]
    name = people.surname() if how in ("surname", "familiar") else people.name()
    if how == "familiar":
        if people.random.random() < 0.5:
            name = people.random.choice("小老") + (name if len(name) == 1 else "李")
        else:
            after = people.random.choice(RELATED) + after
    if how == "greeting":
        after = people.random.choice(["", "，"]) + after
    return Named(before + name + after, ((len(before), len(before) + len(name)),), way)


def from_dialogues(texts: Sequence[str], people: People, count: int, *, evenly: bool = True) -> list[Named]:
    """One name in each text, every way equally often as far as there are texts for it."""
    by_way: dict[str, list[tuple[str, tuple[str, int, int, str]]]] = {way: [] for way, _, _ in SLOTS}
    for text in texts:
        for slot in slots(text):
            by_way[slot[0]].append((text, slot))
    result: list[Named] = []
    share = -(-count // len(by_way))
    for places in by_way.values():
        drawn = people.random.sample(places, min(share if evenly else len(places), len(places)))
        result += [fill(text, slot, people) for text, slot in drawn]
    return result


def phrases(part: Part | None = None) -> list[tuple[str, str]]:
    """Way and phrase: ``looked`` or ``held``, half each by SHA-256; all if no part is named."""
    way = ""
    result = []
    for line in PHRASES.read_text(encoding="utf-8").splitlines():
        if line.startswith("="):
            way = line[1:].strip()
        elif line and not line.startswith("#"):
            own: Part = "held" if hashlib.sha256(line.encode()).digest()[0] % 3 else "looked"
            if part in (None, own):
                result.append((way, line))
    return result


def from_phrases(
    texts: Sequence[str], people: People, chosen: Sequence[tuple[str, str]], times: int
) -> list[Named]:
    """Each phrase so many times, between sentences of a text."""
    result = []
    for _ in range(times):
        for way, phrase in chosen:
            carrier = people.random.choice(texts)
            ends = [0, *(match.end() for match in re.finditer("[。！？!?\n]+", carrier))]
            at = people.random.choice(ends)
            before, after = carrier[:at], carrier[at:]
            names: list[tuple[int, int]] = []
            middle = ""
            for piece in re.split("({[NS]})", phrase):
                if piece in ("{N}", "{S}"):
                    name = people.name() if piece == "{N}" else people.surname()
                    names.append((len(before) + len(middle), len(before) + len(middle) + len(name)))
                    middle += name
                else:
                    middle += piece
            if middle[-1] not in "。！？!?\n":
                middle += people.random.choice(["。", "\n", "。"])
            result.append(Named(before + middle + after, tuple(names), way))
    return result
