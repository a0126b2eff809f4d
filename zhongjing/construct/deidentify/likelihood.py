"""How likely a stretch of text is a person's name: a small statistical model of ours.

A candidate is a surname and one or two characters (王小明), a surname after 小 or 老 (小李), or a surname
before a title (李阿姨). What the model sees of it: how frequent its characters are in given names against
running text, how strongly neighbours attract each other in medical dialogue (高|血 do, 王|伟 do not), whether
words of a dictionary hold it, and the three characters on either side. The surname's own character is not
among them: one that is not listed is judged by the rest. A network with one hidden layer makes a probability.

The weights are in ``lists/names.npz``; ``benchmarks/train_names.py`` makes them.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Final, NamedTuple

import ahocorasick
import numpy as np
import numpy.typing as npt

from zhongjing.construct.deidentify.lexicon import Lexicon, words

CONTEXT: Final = 3  # characters on either side
IDS: Final = 8192  # characters that are told apart; the last one stands for all others
OTHER: Final = IDS - 1
OUTSIDE: Final = 0  # before the beginning and after the end
DIGIT: Final = 1
LATIN: Final = 2
FIRST: Final = 3
NAME_FLOOR: Final = -2.2  # natural logarithm; least likelihood ratio of a character of a given name

TITLES: Final = words("titles")

LONGEST: Final = 12  # characters of a word
NO_CHARACTER: Final = -90.0  # below: no character of a name at all, such as a comma
COMPOUND_SHARE: Final = -7.0
_TITLED = re.compile(f"[\u4e00-\u9fff](?={'|'.join(TITLES)})")
_FAMILIAR = re.compile("[小老阿][\u4e00-\u9fff]")

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


NUMBERS: Final = 25


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
        terms: an Aho-Corasick automaton of words of three characters or more.
    """

    ids: npt.NDArray[np.uint16]
    given: Floats
    frequency: Floats
    pairs: npt.NDArray[np.uint32]
    attraction: Floats
    words: frozenset[str]
    strings: frozenset[str]
    terms: ahocorasick.Automaton

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
    """What is known of surnames.

    Attributes:
        share: per id, natural logarithm of about its share of the people; 0 for what is no surname.
        compound: surnames of two characters.
    """

    share: Floats
    compound: re.Pattern[str] | None


def surnames_of(lexicon: Lexicon, order: tuple[str, ...], ids: npt.NDArray[np.uint16]) -> Surnames:
    """Shares by Zipf's law from the order of the list."""
    share = np.zeros(IDS, np.float32)
    rank = 0
    for each in order:
        if len(each) == 1 and each in lexicon.surnames:
            rank += 1
            where = int(ids[ord(each)])
            if share[where] == 0:
                share[where] = -np.log(rank + 8.0) - 1.0
    compound = "|".join(sorted(lexicon.compound))
    return Surnames(share, re.compile(f"(?:{compound})(?=[\u4e00-\u9fff])") if compound else None)


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
    here = slice(CONTEXT, len(text) + CONTEXT)
    next_, third = slice(here.start + 1, here.stop + 1), slice(here.start + 2, here.stop + 2)
    given = statistics.given[ids]
    fits = given > NAME_FLOOR
    listed = surnames.share[ids] < 0
    # A surname that is not listed needs given characters that are far more frequent in names than in text.
    unlisted = ~listed[here] & (given[here] > NO_CHARACTER)
    parts: list[tuple[Ints, int, int, int]] = []  # starts, and lengths of surname and given name, and kind
    one = fits[next_] & (listed[here] | (unlisted & (given[next_] > 1.5)))
    parts.append((np.flatnonzero(one), 1, 1, Kind.SHORT))
    two = fits[next_] & fits[third] & (listed[here] | (unlisted & (given[next_] + given[third] > 1.0)))
    parts.append((np.flatnonzero(two), 1, 2, Kind.FULL))
    if surnames.compound is not None:
        compound = np.array([match.start() for match in surnames.compound.finditer(text)], np.int64)
        if len(compound):
            first = fits[np.minimum(compound + CONTEXT + 2, len(ids) - 1)]
            both = first & fits[np.minimum(compound + CONTEXT + 3, len(ids) - 1)]
            parts.append((compound[first], 2, 1, Kind.COMPOUND_SHORT))
            parts.append((compound[both], 2, 2, Kind.COMPOUND))
    familiar = [match.start() for match in _FAMILIAR.finditer(text)]
    familiar = [each for each in familiar if listed[each + CONTEXT + 1]]
    parts.append((np.array(familiar, np.int64), 2, 0, Kind.FAMILIAR))
    titled = [match.start() for match in _TITLED.finditer(text)]
    titled = [each for each in titled if given[each + CONTEXT] > NO_CHARACTER]
    parts.append((np.array(titled, np.int64), 1, 0, Kind.TITLED))
    start = np.concatenate([each for each, _, _, _ in parts]) + CONTEXT
    if not len(start):
        return None
    sizes = [len(each) for each, _, _, _ in parts]
    family, count, kind = (np.repeat(np.array([part[at] for part in parts]), sizes) for at in (1, 2, 3))
    return _described(text, ids, start, family, count, kind, statistics, surnames)


def _described(  # noqa: PLR0917
    text: str,
    ids: Ints,
    start: Ints,
    family: Ints,
    count: Ints,
    kind: Ints,
    statistics: Statistics,
    surnames: Surnames,
) -> Candidates:
    """What the model sees of the candidates; ``start`` counts :func:`encode`'s ids."""
    end = start + family + count
    head = start + family - 1  # the surname's last character
    before = [ids[start - CONTEXT + each] for each in range(CONTEXT)]
    behind = [ids[end + each] for each in range(CONTEXT)]
    first = np.where(count > 0, ids[head + 1], OUTSIDE)
    second = np.where(count > 1, ids[np.minimum(head + 2, len(ids) - 1)], OUTSIDE)
    share = np.where(
        (family == 2) & (kind != Kind.FAMILIAR), np.float32(COMPOUND_SHARE), surnames.share[ids[head]]
    )
    given_first = np.where(count > 0, statistics.given[first], np.float32(0))
    given_second = np.where(count > 1, statistics.given[second], np.float32(0))
    left, middle, inner, right, beyond, earlier = np.split(
        statistics.attracted(
            np.concatenate([before[-1], ids[head], first, ids[end - 1], behind[0], before[-2]]),
            np.concatenate([ids[start], first, second, behind[0], behind[1], before[-1]]),
        ),
        6,
    )
    dictionary, strings = statistics.words, statistics.strings
    inside = _terms(text, statistics.terms)
    flags = []
    for begin, stop in zip((start - CONTEXT).tolist(), (end - CONTEXT).tolist(), strict=True):
        whole = text[begin:stop]
        last_two = text[stop - 2 : stop + 1]
        earliest = max(0, begin - 1)
        flags.append(
            (
                whole in dictionary,
                whole in strings,
                text[stop - 1 : stop + 1] in dictionary or last_two in dictionary,
                text[earliest : begin + 1] in dictionary,
                last_two in strings or text[earliest : begin + 2] in strings,
                *_covered(inside, begin, stop),
            )
        )
    name = kind < Kind.FAMILIAR
    numbers = np.empty((len(start), NUMBERS), np.float32)
    columns = (
        share < 0,
        share / 4,
        statistics.frequency[ids[head]] / 8,
        given_first / 3,
        given_second / 3,
        np.minimum(given_first, np.where(count > 1, given_second, given_first)) / 3,
        left / 4,
        np.where(count > 0, middle, 0) / 4,
        np.where(count > 1, inner, 0) / 4,
        right / 4,
        beyond / 4,
        earlier / 4,
    )
    for at, column in enumerate(columns):
        numbers[:, at] = column
    numbers[:, len(columns) : len(columns) + 8] = flags
    rest = (name & (kind % 2 == 1), name & (family == 2), kind == Kind.FAMILIAR, kind == Kind.TITLED, 1)
    for at, value in enumerate(rest, len(columns) + 8):
        numbers[:, at] = value
    characters = np.stack([*before, first, second, *behind], 1)
    return Candidates(start - CONTEXT, end - CONTEXT, kind, characters, numbers)


def _terms(text: str, terms: ahocorasick.Automaton) -> list[tuple[int, int]]:
    """Places of the words of three characters or more, in order."""
    return sorted((end - length + 1, end + 1) for end, length in terms.iter(text))


def _covered(terms: list[tuple[int, int]], begin: int, stop: int) -> tuple[bool, bool, bool]:
    """Whether a word holds the candidate and more, is the candidate, or shares a part of it."""
    holds = same = shares = False
    at = bisect_left(terms, (begin - LONGEST, 0))
    while at < len(terms) and terms[at][0] < stop:
        first, last = terms[at]
        if last > begin:
            if first <= begin and stop <= last:
                same |= last - first == stop - begin
                holds |= last - first > stop - begin
            else:
                shares = True
        at += 1
    return holds, same, shares


class NameModel:
    """Probabilities of candidates.

    Args:
        statistics: what is counted.
        weights: ``embedding`` (IDS, width), ``hidden`` (inputs, hidden) and ``hidden_bias``, ``out`` and
            ``out_bias``.
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

    def probabilities(self, found: Candidates) -> tuple[Floats, Floats]:
        """For each candidate, between 0 and 1: with the characters on either side, and without."""
        own = found.numbers @ self._numbers + self._bias
        for place in (CONTEXT, CONTEXT + 1):
            own += self._tables[place][found.characters[:, place]]
        beside = [place for place in range(len(self._tables)) if place not in (CONTEXT, CONTEXT + 1)]
        around = sum(self._tables[place][found.characters[:, place]] for place in beside)
        nothing = sum(self._tables[place][OTHER] for place in beside)
        return self._probability(own + around), self._probability(own + nothing)

    def _probability(self, layer: Floats) -> Floats:
        result: Floats = 1.0 / (1.0 + np.exp(-(np.maximum(layer, 0.0) @ self._out + self._out_bias)))
        return result


@cache
def model_digest() -> str:
    """SHA-256 of the weights and counts that are shipped."""
    return hashlib.sha256(
        resources.files(__package__).joinpath("lists", "names.npz").read_bytes()
    ).hexdigest()


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
            terms=automaton(stored["terms"].tobytes().decode().split()),
        )
    return NameModel(statistics, weights)


def automaton(terms: Iterable[str]) -> ahocorasick.Automaton:
    """Finds words; its values are their lengths."""
    result = ahocorasick.Automaton()
    for each in terms:
        result.add_word(each, len(each))
    result.make_automaton()
    return result


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
