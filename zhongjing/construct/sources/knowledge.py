"""A knowledge graph told in Chinese: a text or a dialogue for each entity (Table 1 of the paper: CMeKG).

An item is an entity with its statements (``GraphFeed`` in ``feeds.py`` makes them), so that a text tells
about one thing. What a drug treats is told at the drug and at the illness.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from zhongjing.config.sources import Kind
from zhongjing.construct.kg.graph import Graph
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converted, Item, Talk, joined
from zhongjing.construct.sources.wordings import (
    ALIASES,
    GROUP_OF,
    GROUPS,
    OTHER_QUESTIONS,
    OTHER_SENTENCES,
    Group,
)
from zhongjing.data.records import RejectedError

Topic = tuple[Group | None, str, list[str]]
# The same fact from its other end: what a drug treats, and what an illness is treated with.
_PAIRED = {"drug": "indication", "indication": "drug"}
_MOST = 30  # other ends in one sentence
_MOST_TURNS = 3
_RANK = {group.name: rank for rank, group in enumerate(GROUPS)}
Form = Literal["text", "dialogue"]


class Knowledge:
    """Entities become texts, or dialogues.

    Args:
        form: which of both.
    """

    members = False

    def __init__(self, form: Form = "text") -> None:
        self.form = form

    @property
    def kind(self) -> Kind:  # noqa: D102
        return Kind.TEXT if self.form == "text" else Kind.DIALOGUE

    def parameters(self) -> dict[str, object]:  # noqa: D102
        return {"form": self.form}

    def convert(self, item: Item, choice: Choice) -> Converted:  # noqa: D102
        name, facts = item["name"], item["facts"]
        told = [(_topic(relation, forward), relation, list(ends)) for relation, forward, ends in facts]
        told.sort(key=lambda each: _RANK.get(each[0].name, len(_RANK)) if each[0] else len(_RANK))
        counts = Counter({"statements": sum(len(ends) for _, _, ends in told)})
        counts.update({f"told as {group.name if group else 'other'}": 1 for group, _, _ in told})
        if not told and not item["aliases"]:
            raise RejectedError("nothing is known of the entity")
        if self.form == "text":
            return Converted(texts=(self._text(name, item["aliases"], told, choice),), counts=counts)
        talk = self._talk(name, told, choice)
        return Converted(talks=(talk,) if talk is not None else (), counts=counts)

    @staticmethod
    def _text(name: str, aliases: Sequence[str], told: list[Topic], choice: Choice) -> str:
        sentences = []
        if aliases:
            sentences.append(choice.one("alias", ALIASES).format(h=name, t=joined(aliases)))
        for topic in told:
            sentences += _sentences(name, topic, choice)
        if choice.number("layout", 3) == 0:
            return name + "\n" + "\n".join(sentences)
        return "".join(sentences)

    @staticmethod
    def _talk(name: str, told: list[Topic], choice: Choice) -> Talk | None:
        turns: list[str] = []
        for topic in choice.order("topics", told)[: 1 + choice.number("turns", _MOST_TURNS)]:
            group, relation, _ = topic
            wordings = OTHER_QUESTIONS if group is None else group.questions
            if not wordings:
                continue  # the entity is the other end: nobody asks for it there
            turns.append(choice.one(f"q {relation}", wordings).format(h=name, r=relation))
            turns.append("".join(_sentences(name, topic, choice)))
        return Talk(tuple(turns)) if turns else None


def _topic(relation: str, forward: bool) -> Group | None:
    group = GROUP_OF.get(relation)
    if group is None or forward:
        return group
    return Group(group.name, (), group.inverse, ())


def _sentences(name: str, topic: Topic, choice: Choice) -> list[str]:
    group, relation, ends = topic
    wordings = OTHER_SENTENCES if group is None else group.sentences
    names = list(dict.fromkeys(end.rstrip("。；; ") for end in ends))
    return [
        choice.one(f"{relation} {begin}", wordings).format(
            h=name, r=relation, t=joined(names[begin : begin + _MOST])
        )
        for begin in range(0, len(names), _MOST)
    ]


def items_of(graph: Graph) -> list[dict[str, object]]:
    """Entities of which something can be told, in their order, as items. Contradicted statements stay out."""
    found: list[dict[str, object]] = []
    for entity in graph.entities():
        facts: dict[tuple[str, bool], list[str]] = {}
        for triple in graph.of(entity.name):
            forward = triple.head == entity.name
            group = GROUP_OF.get(triple.relation)
            if not forward and (group is None or not group.inverse):
                continue
            if not graph.conflicting(triple):
                facts.setdefault((triple.relation, forward), []).append(
                    triple.tail if forward else triple.head
                )
        rows = _told_once(facts)
        if rows or entity.aliases:
            found.append({"name": entity.name, "aliases": list(entity.aliases), "facts": rows})
    return found


def _told_once(facts: Mapping[tuple[str, bool], list[str]]) -> list[list[object]]:
    """The facts as rows; what a forward statement says is not told from the other end again."""
    forward: dict[str, set[str]] = {}
    for (relation, ahead), ends in facts.items():
        group = GROUP_OF.get(relation)
        if ahead and group is not None:
            forward.setdefault(group.name, set()).update(ends)
    rows: list[list[object]] = []
    for (relation, ahead), ends in facts.items():
        group = GROUP_OF.get(relation)
        told: set[str] = set()
        if not ahead and group is not None:
            told = forward.get(_PAIRED.get(group.name, group.name), set())
        left = [end for end in ends if end not in told]
        if left:
            rows.append([relation, ahead, left])
    return rows
