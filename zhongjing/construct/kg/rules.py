"""Finds what a dialogue says against the graph, without a model.

Rules:

- ``contraindication``: an answer advises what is contraindicated in a condition that the patient has, or that
  the answer itself names for it.
- ``interaction``: an answer advises two things together that are not taken together.
- ``overdose``, ``underdose``: an answer gives more than the graph allows at a time or for a day, or less than
  half of the least at a time.
- ``pair``: an answer advises a medicine that the graph has for other conditions only, to a patient whose
  conditions are all known to the graph. A graph is never complete: this is the weakest of the rules.

Only answers are judged. The patient's words say what is had and taken, and what a short answer (``可以``) is
about. Statements that the graph itself contradicts are not judged by, nor are names that stand for two
things.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

from zhongjing.construct.kg import speech
from zhongjing.construct.kg.doses import DoseRange, Quantity, dose_range, is_daily, quantities, times_a_day
from zhongjing.construct.kg.graph import Graph, Triple
from zhongjing.construct.kg.linker import Linker, Mention, fold
from zhongjing.construct.kg.relations import Meaning
from zhongjing.construct.kg.speech import Sentence, Stance
from zhongjing.data.records import Turns

RULES = ("contraindication", "interaction", "overdose", "underdose", "pair")


@dataclass(frozen=True, slots=True)
class Finding:
    """A contradiction: what the graph holds, and where an answer says otherwise.

    Attributes:
        rule: one of :data:`RULES`.
        name: what the answer advises.
        against: the condition, or the other thing, that it is wrong with; None for a dose.
        triple: what the graph holds; for ``pair`` the first thing that it has the medicine for.
        turn: from 0.
        start: in characters of the turn's content.
        end: as ``start``; one past the last.
    """

    rule: str
    name: str
    against: str | None
    triple: Triple
    turn: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class _Said:
    """A turn as the rules read it."""

    text: str  # folded, names masked
    mentions: tuple[Mention, ...]
    sentences: tuple[Sentence, ...]

    def within(self, sentence: Sentence) -> list[Mention]:
        return [each for each in self.mentions if sentence.start <= each.start < sentence.end]


@dataclass(slots=True)
class _Patient:
    """What the dialogue has told of the patient so far."""

    conditions: dict[str, None] = field(default_factory=dict)
    takes: dict[str, None] = field(default_factory=dict)
    asked_about: list[str] = field(default_factory=list)  # things of the last question
    asks_effect: bool = False  # the last question asks what a thing is good for
    doctor_asked: list[str] = field(default_factory=list)  # conditions of the doctor's last question
    named: set[str] = field(default_factory=set)  # every name of the dialogue

    def set_condition(self, name: str, has: bool | None) -> None:
        if has:
            self.conditions[name] = None
        elif has is False:
            self.conditions.pop(name, None)


@dataclass(frozen=True, slots=True)
class _Advice:
    """Something that an answer advises. ``implied``: by a yes to the patient's question."""

    name: str
    span: speech.Span
    implied: bool = False


@dataclass(frozen=True, slots=True)
class _Case:
    """A finding before its turn is known."""

    rule: str
    name: str
    against: str | None
    triple: Triple
    span: speech.Span


class Rules:
    """The rules of one graph."""

    def __init__(self, graph: Graph, linker: Linker | None = None) -> None:
        self._graph = graph
        self._linker = linker or Linker(graph)
        kinds = (Meaning.TREATS, Meaning.CONTRAINDICATED, Meaning.INTERACTS, Meaning.USAGE, Meaning.SUITS)
        self._things = {name for kind in kinds for name in graph.heads(kind)}
        self._treatable = _targets(graph, Meaning.TREATS)
        known = self._treatable | _targets(graph, Meaning.CONTRAINDICATED)
        narrower = {name for name in graph.heads(Meaning.IS_A) if graph.wider(name) & known}
        self._conditions = (known | narrower) - self._things
        self._ranges = {name: ranges for name in self._things if (ranges := list(self._dose_ranges(name)))}

    def check(self, turns: Turns) -> list[Finding]:
        """What the dialogue's answers say against the graph, in order; each statement once a turn."""
        said = [self._read(turn.content) for turn in turns]
        patient_texts = [each.text for each, turn in zip(said, turns, strict=True) if turn.role == "user"]
        patient = _Patient()
        found: dict[tuple[str, int, str, str | None], Finding] = {}
        for number, (turn, each) in enumerate(zip(turns, said, strict=True)):
            patient.named.update(name for mention in each.mentions for name in mention.names)
            if turn.role == "user":
                self._listen(each, patient, patient_texts)
            elif turn.role == "assistant":
                for case in self._judge(each, patient):
                    finding = Finding(case.rule, case.name, case.against, case.triple, number, *case.span)
                    found.setdefault((case.rule, number, case.name, case.against), finding)
        return list(found.values())

    # reading ------------------------------------------------------------------------------------------

    def _read(self, content: str) -> _Said:
        folded = fold(content)
        mentions = tuple(self._linker.find_folded(folded))
        masked = speech.mask(folded, mentions)
        return _Said(masked, mentions, tuple(speech.sentences(masked)))

    def _one(self, mention: Mention, among: set[str]) -> str | None:
        """The entity that a mention stands for, where it is one of them and the only one."""
        return mention.names[0] if len(mention.names) == 1 and mention.names[0] in among else None

    def _listen(self, said: _Said, patient: _Patient, patient_texts: Sequence[str]) -> None:
        """Takes in what the patient says."""
        patient.asked_about = []
        patient.asks_effect = bool(re.search(r"治|管用|对症|有效|灵|适合", said.text))
        if speech.confirms(said.text):
            for name in patient.doctor_asked:
                patient.set_condition(name, True)
        for sentence in said.sentences:
            for mention in said.within(sentence):
                thing = self._one(mention, self._things)
                if thing is not None:
                    patient.asked_about.append(thing)
                    if not speech.takes_none(said.text, sentence, mention):
                        patient.takes[thing] = None
                condition = self._one(mention, self._conditions)
                if condition is not None:
                    has = speech.has_it(said.text, sentence, mention)
                    if not (has and speech.of_another(patient_texts, said.text, sentence, mention)):
                        patient.set_condition(condition, has)

    # judging ------------------------------------------------------------------------------------------

    def _judge(self, said: _Said, patient: _Patient) -> Iterator[_Case]:
        patient.doctor_asked = []
        advised: list[_Advice] = []
        refused: set[str] = set()
        named: list[str] = []
        for sentence in said.sentences:
            mentions = said.within(sentence)
            open_here = self._hear_conditions(said, sentence, mentions, patient)
            things = [each for each in mentions if self._one(each, self._things)]
            for mention, stance in zip(things, speech.stances(said.text, sentence, things), strict=True):
                name = mention.names[0]
                named.append(name)
                if stance is Stance.FORBIDDEN:
                    refused.add(name)
                elif stance is Stance.ADVISED:
                    advice = _Advice(name, (mention.start, mention.end))
                    advised.append(advice)
                    conditions = [*patient.conditions, *(c for c, end in open_here if end <= mention.start)]
                    yield from self._contraindications(advice, conditions)
        if not named and patient.asked_about and (yes := speech.answers_yes(said.text)):
            advised = [_Advice(name, yes, implied=True) for name in patient.asked_about]
            for advice in advised:
                yield from self._contraindications(advice, list(patient.conditions))
        yield from self._interactions(advised, refused, patient)
        for advice in advised:
            if not advice.implied or patient.asks_effect:
                yield from self._pairs(advice, patient)
        yield from self._doses(said, patient)

    def _hear_conditions(
        self, said: _Said, sentence: Sentence, mentions: Sequence[Mention], patient: _Patient
    ) -> list[tuple[str, int]]:
        """Takes in what an answer says of conditions; those that it only supposes, with where they end."""
        supposed = []
        asks = speech.is_question(said.text, sentence)
        for mention in mentions:
            name = self._one(mention, self._conditions)
            if name is None:
                continue
            has = speech.has_it(said.text, sentence, mention)
            if asks:
                patient.doctor_asked.append(name)
            elif has is None:
                supposed.append((name, mention.end))
            else:
                patient.set_condition(name, has)
        return supposed

    def _contraindications(self, advice: _Advice, conditions: Sequence[str]) -> Iterator[_Case]:
        against = self._graph.meant(Meaning.CONTRAINDICATED, advice.name)
        for condition in conditions:
            for wider in sorted(self._graph.wider(condition) & against.keys()):
                for triple in against[wider]:
                    if not self._graph.conflicting(triple):
                        yield _Case("contraindication", advice.name, wider, triple, advice.span)

    def _interactions(
        self, advised: Sequence[_Advice], refused: set[str], patient: _Patient
    ) -> Iterator[_Case]:
        together = ({each.name for each in advised} | patient.takes.keys()) - refused
        for advice in advised:
            against = self._graph.meant(Meaning.INTERACTS, advice.name)
            for other in sorted(together & against.keys()):
                triple = against[other][0]  # named as the graph has it, so once where both are advised
                yield _Case("interaction", triple.head, triple.tail, triple, advice.span)

    def _pairs(self, advice: _Advice, patient: _Patient) -> Iterator[_Case]:
        treats = self._graph.meant(Meaning.TREATS, advice.name)
        against = self._graph.meant(Meaning.CONTRAINDICATED, advice.name).keys()
        conditions = [each for each in patient.conditions if each not in against]
        if (
            not treats
            or not conditions
            or not all(self._graph.wider(each) & self._treatable for each in conditions)
        ):
            return
        wider = {name for condition in conditions for name in self._graph.wider(condition)}
        signs = {sign for each in treats for sign in self._graph.meant(Meaning.SYMPTOM, each)}
        if not wider & treats.keys() and not patient.named & (signs | treats.keys()):
            triple = next(iter(treats.values()))[0]
            yield _Case("pair", advice.name, conditions[-1], triple, advice.span)

    # doses --------------------------------------------------------------------------------------------

    def _dose_ranges(self, name: str) -> Iterator[DoseRange]:
        strengths = [each for found in self._graph.meant(Meaning.STRENGTH, name).values() for each in found]
        for found in self._graph.meant(Meaning.USAGE, name).values():
            for triple in found:
                allowed = dose_range(triple, strengths)
                if allowed is not None:
                    yield allowed

    def _doses(self, said: _Said, patient: _Patient) -> Iterator[_Case]:
        last: str | None = None
        things = [each for each in said.mentions if self._one(each, self._things)]
        if not things and patient.asked_about:
            last = patient.asked_about[-1]
        for sentence in said.sentences:
            here = [each for each in things if sentence.start <= each.start < sentence.end]
            if not speech.is_question(said.text, sentence):
                yield from self._doses_of(said, sentence, here, last)
            if here:
                last = here[-1].names[0]

    def _doses_of(
        self, said: _Said, sentence: Sentence, here: Sequence[Mention], last: str | None
    ) -> Iterator[_Case]:
        text = said.text[sentence.start : sentence.end]
        for quantity in quantities(text):
            start, end = sentence.start + quantity.start, sentence.start + quantity.end
            if _is_refused(said.text, speech.clause_of(sentence, start), start):
                continue
            name, part = _whose(here, start, end, sentence, last)
            if name is None or name not in self._ranges:
                continue
            segment = said.text[part[0] : part[1]]
            shifted = Quantity(quantity.low, quantity.high, quantity.unit, start - part[0], end - part[0])
            found = _judged(shifted, segment, self._ranges[name])
            if found is not None:
                yield _Case(found[0], name, None, found[1], (start, end))


def _targets(graph: Graph, kind: Meaning) -> set[str]:
    return {target for name in graph.heads(kind) for target in graph.meant(kind, name)}


# ``不要超过``: a ceiling that is given, not an amount that is refused.
_CEILING = re.compile(r"(?:超过|多于|大于|高于|超出|过)\s*$")
_TOO_MUCH = re.compile(r"太多|过量|超量|超标|多了|不安全|不行|不可以|不妥|危险|(?:太|过|偏)大")


def _is_refused(text: str, clause: tuple[int, int], start: int) -> bool:
    """Whether an amount is named to warn of it."""
    if _CEILING.search(text, clause[0], start):
        return False
    return speech.says_no(text, clause[0], start) or bool(_TOO_MUCH.search(text, clause[0], clause[1]))


def _whose(
    here: Sequence[Mention], start: int, end: int, sentence: Sentence, last: str | None
) -> tuple[str | None, tuple[int, int]]:
    """Whose amount it is, and the part of the text that speaks of that thing.

    It is the thing right behind it (``0.5g 布洛芬``), else the last one before it, else the first of the
    sentence, else what was spoken of before.
    """
    order = list(here)
    index = next((i for i, each in enumerate(order) if 0 <= each.start - end <= 2), None)
    if index is None:
        before = [i for i, each in enumerate(order) if each.end <= start]
        index = before[-1] if before else (0 if order else None)
    if index is None:
        return last, (sentence.start, sentence.end)
    first = min(start, order[index].start) if index else sentence.start
    until = order[index + 1].start if index + 1 < len(order) else sentence.end
    return order[index].names[0], (first, max(until, end))


def _judged(quantity: Quantity, text: str, ranges: Sequence[DoseRange]) -> tuple[str, Triple] | None:
    """What is wrong with an amount by every one of the ranges; the widest of them is named."""
    verdicts = [_verdict(quantity, text, allowed) for allowed in ranges]
    if not verdicts or any(verdict is None for verdict in verdicts) or len(set(verdicts)) > 1:
        return None
    widest = max(ranges, key=lambda allowed: allowed.daily or allowed.high or Decimal(0))
    return str(verdicts[0]), widest.triple


def _verdict(quantity: Quantity, text: str, allowed: DoseRange) -> str | None:
    high = allowed.amount(quantity, quantity.high)
    low = allowed.amount(quantity, quantity.low)
    if high is None or low is None:
        return None
    if is_daily(text, quantity):
        return "overdose" if allowed.daily is not None and high > allowed.daily else None
    if allowed.high is not None and high > allowed.high:
        return "overdose"
    often = times_a_day(text)
    if often and allowed.daily is not None and high * often[0] > allowed.daily:
        return "overdose"
    return "underdose" if allowed.low is not None and low * 2 < allowed.low else None
