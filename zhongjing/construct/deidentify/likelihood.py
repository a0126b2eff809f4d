"""How likely a stretch of text is a person's name: a small statistical model of ours.

A candidate is a surname and one or two characters (王小明), a surname after 小 or 老 (小李), or a surname before
a title (李阿姨). What the model sees of it: how frequent its characters are in given names against running text,
how strongly neighbours attract each other in medical dialogue (高|血 do, 王|伟 do not), whether it is a word of
a dictionary, and the three characters on either side. The surname's own character is not among them: a surname
that is not listed is judged by the rest. A network with one hidden layer makes a probability of these.

The weights are in ``lists/names.npz``; ``tools/train_names.py`` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from zhongjing.construct.deidentify.lexicon import Lexicon

CONTEXT: Final = 3  # characters on either side
IDS: Final = 8192  # characters that are told apart; the last one stands for all others
OTHER: Final = IDS - 1
OUTSIDE: Final = 0  # before the beginning and after the end
DIGIT: Final = 1
LATIN: Final = 2
FIRST: Final = 3
NAME_FLOOR: Final = -2.2  # natural logarithm; least likelihood ratio of a character of a given name

TITLES: Final = (
    "副主任医师 主任医师 主治医师 主治医生 住院医师 副主任 副教授 护士长 医师 医生 大夫 主任 教授 护士 院长 护师 药师 技师"
    " 专家 博士 老师 先生 女士 小姐 同学 师傅 阿姨 叔叔 大爷 大妈 大姐 大哥 大娘 奶奶 爷爷 伯伯 婆婆 太太 医 主任 总 姐 哥 叔 姨"
).split()

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


class Kind:
    """What a candidate is made of."""

    SHORT: Final = 0  # 王明
    FULL: Final = 1  # 王小明
    COMPOUND_SHORT: Final = 2  # 欧阳锋
    COMPOUND: Final = 3  # 欧阳小明
    FAMILIAR: Final = 4  # 小李
    TITLED: Final = 5  # 李阿姨, without 阿姨


class Candidates(NamedTuple):
    """Arrays of equal length, a candidate each; places are characters of the text."""

    start: Ints
    end: Ints
    kind: Ints
    characters: Ints  # (candidates, 2 * CONTEXT + 2): ids before, of the given name, behind
    numbers: Floats  # (candidates, NUMBERS)


NUMBERS: Final = 22


@dataclass(frozen=True, slots=True)
class Statistics:
    """What is counted, not learned.

    Attributes:
        ids: id of each code point below 65,536.
        given: per id, natural logarithm of its share in given names against its share in text.
        frequency: per id, natural logarithm of its share in text.
        pairs: sorted ``first * IDS + second`` of characters that stand side by side.
        attraction: of each pair, the logarithm of how much more often it occurs than by chance.
        words: of a dictionary, those that look like names.
        strings: that look like names and occur again and again in text, of two or three characters.
    """

    ids: npt.NDArray[np.uint16]
    given: Floats
    frequency: Floats
    pairs: npt.NDArray[np.uint32]
    attraction: Floats
    words: frozenset[str]
    strings: frozenset[str]

    def attracted(self, first: Ints, second: Ints) -> Floats:
        """Attraction of neighbours; pairs that were never seen repel each other by how frequent both are."""
        keys = (first * IDS + second).astype(np.uint32)
        at = np.minimum(np.searchsorted(self.pairs, keys), len(self.pairs) - 1)
        unseen = np.minimum(0.0, -(self.frequency[first] + self.frequency[second]) - UNSEEN)
        found: Floats = np.where(self.pairs[at] == keys, self.attraction[at], unseen)
        return np.clip(found, -4.0, 8.0).astype(np.float32)


UNSEEN: Final = 15.0  # logarithm of how many characters were counted


@dataclass(frozen=True, slots=True)
class Surnames:
    """Per id, whether it is a surname, and how frequent: natural logarithm of about its share of the people."""

    share: Floats
    compound: frozenset[str]


def surnames_of(lexicon: Lexicon, order: tuple[str, ...], ids: npt.NDArray[np.uint16]) -> Surnames:
    """Shares by Zipf's law from the order of the list; 0 for what is no surname.

    Characters beyond :data:`IDS` share one id; a listed one among them makes all of them rare surnames.
    """
    share = np.zeros(IDS, np.float32)
    rank = 0
    for each in order:
        if len(each) == 1 and each in lexicon.surnames:
            rank += 1
            where = int(ids[ord(each)])
            if share[where] == 0:
                share[where] = -np.log(rank + 8.0) - 1.0
    return Surnames(share, lexicon.compound)


def encode(text: str, statistics: Statistics) -> Ints:
    """Ids of the characters, with :data:`CONTEXT` times :data:`OUTSIDE` on either side."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    ids = np.full(len(points) + 2 * CONTEXT, OUTSIDE, np.int64)
    low = np.minimum(points, 0xFFFF)
    ids[CONTEXT : len(points) + CONTEXT] = np.where(points > 0xFFFF, OTHER, statistics.ids[low])
    return ids


def candidates(text: str, statistics: Statistics, surnames: Surnames) -> Candidates | None:
    """All candidates of a folded text; ``None`` if there is none."""
    ids = encode(text, statistics)
    length = len(text)
    given = statistics.given[ids]
    share = surnames.share[ids]
    fits = given > NAME_FLOOR
    listed = share < 0
    at = np.arange(CONTEXT, length + CONTEXT)
    starts: list[Ints] = []
    widths: list[tuple[int, int, int]] = []  # surname, given, kind
    # A surname that is not listed needs given characters that are far more frequent in names than in text.
    unlisted = ~listed & (statistics.given[ids] > -90)
    second = np.roll(given, -1)
    third = np.roll(given, -2)
    for count, kind in ((1, Kind.SHORT), (2, Kind.FULL)):
        name = np.roll(fits, -1) if count == 1 else np.roll(fits, -1) & np.roll(fits, -2)
        strong = second > 1.5 if count == 1 else second + third > 1.0
        mask = name & (listed | (unlisted & strong))
        found = at[mask[at]]
        starts.append(found)
        widths.append((1, count, kind))
    compound = [
        place + CONTEXT for place in range(length - 2) if text[place : place + 2] in surnames.compound
    ] if any(each in text for each in surnames.compound) else []
    for count, kind in ((1, Kind.COMPOUND_SHORT), (2, Kind.COMPOUND)):
        starts.append(
            np.array(
                [each for each in compound if all(fits[each + 2 : each + 2 + count])], np.int64
            )
        )
        widths.append((2, count, kind))
    familiar = np.isin(ids, [statistics.ids[ord(each)] for each in "小老阿"]) & np.roll(listed, -1)
    starts.append(at[familiar[at]])
    widths.append((2, 0, Kind.FAMILIAR))
    titled = _before_titles(text, length) + CONTEXT
    starts.append(titled[statistics.given[ids[titled]] > -90])
    widths.append((1, 0, Kind.TITLED))
    if not any(len(each) for each in starts):
        return None
    start = np.concatenate(starts)
    family = np.concatenate([np.full(len(s), w[0], np.int64) for s, w in zip(starts, widths, strict=True)])
    count_ = np.concatenate([np.full(len(s), w[1], np.int64) for s, w in zip(starts, widths, strict=True)])
    kind_ = np.concatenate([np.full(len(s), w[2], np.int64) for s, w in zip(starts, widths, strict=True)])
    end = start + family + count_
    inside = end <= length + CONTEXT
    start, family, count_, kind_, end = (each[inside] for each in (start, family, count_, kind_, end))
    if not len(start):
        return None
    return _described(text, ids, start, end, family, count_, kind_, statistics, surnames)


def _before_titles(text: str, length: int) -> Ints:
    found: set[int] = set()
    for title in TITLES:
        place = text.find(title)
        while place >= 0:
            if place:
                found.add(place - 1)
            place = text.find(title, place + 1)
    del length
    return np.array(sorted(found), np.int64)


def _described(
    text: str,
    ids: Ints,
    start: Ints,
    end: Ints,
    family: Ints,
    count: Ints,
    kind: Ints,
    statistics: Statistics,
    surnames: Surnames,
) -> Candidates:
    before = np.stack([ids[start - CONTEXT + each] for each in range(CONTEXT)], 1)
    behind = np.stack([ids[np.minimum(end + each, len(ids) - 1)] for each in range(CONTEXT)], 1)
    head = start + family - 1  # the surname's last character
    first = np.where(count > 0, ids[np.minimum(head + 1, len(ids) - 1)], OUTSIDE)
    second = np.where(count > 1, ids[np.minimum(head + 2, len(ids) - 1)], OUTSIDE)
    last = ids[end - 1]
    share = surnames.share[ids[head]]
    share = np.where(family == 2, np.where(kind == Kind.FAMILIAR, share, -7.0), share)
    given_first = np.where(count > 0, statistics.given[first], 0.0)
    given_second = np.where(count > 1, statistics.given[second], 0.0)
    zero = np.zeros(len(start), np.float32)
    left = statistics.attracted(ids[start - 1], ids[start])
    middle = np.where(count > 0, statistics.attracted(ids[head], first), zero)
    inner = np.where(count > 1, statistics.attracted(first, second), zero)
    right = statistics.attracted(last, behind[:, 0])
    beyond = statistics.attracted(behind[:, 0], behind[:, 1])
    earlier = statistics.attracted(ids[start - 2], ids[start - 1])
    texts = [text[s - CONTEXT : e - CONTEXT] for s, e in zip(start.tolist(), end.tolist(), strict=True)]
    is_word = np.array([each in statistics.words for each in texts], np.float32)
    is_string = np.array([each in statistics.strings for each in texts], np.float32)
    ends_word = np.array(
        [
            text[e - 1 - CONTEXT : e + 1 - CONTEXT] in statistics.words
            or text[e - 2 - CONTEXT : e + 1 - CONTEXT] in statistics.words
            for e in end.tolist()
        ],
        np.float32,
    )
    tail = np.array([text[max(0, s - 1 - CONTEXT) : s + 1 - CONTEXT] in statistics.words for s in start.tolist()], np.float32)
    seen = np.array(
        [
            text[e - 2 - CONTEXT : e + 1 - CONTEXT] in statistics.strings
            or text[max(0, s - 1 - CONTEXT) : s + 2 - CONTEXT] in statistics.strings
            for s, e in zip(start.tolist(), end.tolist(), strict=True)
        ],
        np.float32,
    )
    numbers = np.stack(
        [
            (share < 0).astype(np.float32),
            share / 4,
            statistics.frequency[ids[head]] / 8,
            given_first / 3,
            given_second / 3,
            np.minimum(given_first, np.where(count > 1, given_second, given_first)) / 3,
            left / 4,
            middle / 4,
            inner / 4,
            right / 4,
            beyond / 4,
            earlier / 4,
            is_word,
            is_string,
            ends_word,
            tail,
            seen,
            (kind % 2 == 1).astype(np.float32) * (kind < 4),
            (family == 2).astype(np.float32) * (kind < 4),
            (kind == Kind.FAMILIAR).astype(np.float32),
            (kind == Kind.TITLED).astype(np.float32),
            np.ones(len(start), np.float32),
        ],
        1,
    ).astype(np.float32)
    characters = np.concatenate([before, first[:, None], second[:, None], behind], 1)
    return Candidates(start - CONTEXT, end - CONTEXT, kind, characters, numbers)


class NameModel:
    """Probabilities of candidates.

    Args:
        statistics: what is counted.
        weights: ``embedding`` (IDS, width), ``hidden`` (inputs, hidden), ``hidden_bias``, ``out``, ``out_bias``.
    """

    def __init__(self, statistics: Statistics, weights: dict[str, Floats]) -> None:
        self.statistics = statistics
        self._embedding = weights["embedding"]
        width = self._embedding.shape[1]
        places = 2 * CONTEXT + 2
        hidden = weights["hidden"]
        # A table for each place instead of a product: what an embedding adds to the hidden layer.
        self._tables = [
            self._embedding @ hidden[place * width : (place + 1) * width] for place in range(places)
        ]
        self._numbers = hidden[places * width :]
        self._bias = weights["hidden_bias"]
        self._out = weights["out"]
        self._out_bias = float(weights["out_bias"][0])

    def probabilities(self, found: Candidates) -> Floats:
        """For each candidate, between 0 and 1."""
        layer = found.numbers @ self._numbers + self._bias
        for place, table in enumerate(self._tables):
            layer += table[found.characters[:, place]]
        np.maximum(layer, 0.0, out=layer)
        result: Floats = 1.0 / (1.0 + np.exp(-(layer @ self._out + self._out_bias)))
        return result


@cache
def load_model() -> NameModel:
    """The model that is shipped."""
    with (
        resources.files(__package__).joinpath("lists", "names.npz").open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        weights = {
            each: stored[each].astype(np.float32)
            for each in ("embedding", "hidden", "hidden_bias", "out", "out_bias")
        }
        statistics = Statistics(
            ids=_ids(stored["characters"].tobytes().decode()),
            given=stored["given"].astype(np.float32),
            frequency=stored["frequency"].astype(np.float32),
            pairs=stored["pairs"],
            attraction=stored["attraction"].astype(np.float32) / 8,
            words=frozenset(stored["words"].tobytes().decode().split()),
            strings=frozenset(stored["strings"].tobytes().decode().split()),
        )
    return NameModel(statistics, weights)


def _ids(characters: str) -> npt.NDArray[np.uint16]:
    """Ids of code points: the listed characters in order; digits and letters have one id each."""
    ids = np.full(65536, OTHER, np.uint16)
    for place, each in enumerate(characters):
        ids[ord(each)] = FIRST + place
    for each in "0123456789":
        ids[ord(each)] = DIGIT
    for point in (*range(ord("a"), ord("z") + 1), *range(ord("A"), ord("Z") + 1)):
        ids[point] = LATIN
    return ids
