"""A medical knowledge graph: entities with types and aliases, triples with attributes, and what is odd in it.

A graph from outside is never quite in order. What contradicts itself is reported with its places
(:meth:`Graph.problems`) and not judged by; nothing of it ends a run.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from zhongjing.construct.kg.relations import Meaning, meaning


@dataclass(frozen=True, slots=True)
class Triple:
    """One statement, as published.

    ``attributes`` are the statement's own, for instance of a dose: ``low``, ``high``, ``daily``, ``times``,
    ``unit``. ``place``: file and line or record, for messages.
    """

    head: str
    relation: str
    tail: str
    attributes: Mapping[str, str] = field(default_factory=dict)
    place: str = ""

    def __str__(self) -> str:
        return f"({self.head}, {self.relation}, {self.tail})"


@dataclass(frozen=True, slots=True)
class Entity:
    """A name of the graph, its types (often several: 头痛 is a disease and a symptom) and its aliases."""

    name: str
    types: tuple[str, ...]
    aliases: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something odd in a graph.

    ``kind``: ``bad-row``, ``conflict``, ``is-a-cycle``, ``alias-cycle`` or ``ambiguous-alias``. The
    message of a conflict has its triples.
    """

    kind: str
    message: str
    places: tuple[str, ...]


class Graph:
    """Entities and triples, with names as published; the linker folds them."""

    def __init__(self) -> None:
        self._types: dict[str, set[str]] = {}
        self._aliases: dict[str, dict[str, str]] = defaultdict(dict)  # name -> alias -> place
        self._triples: dict[tuple[str, str, str], Triple] = {}
        self._ends: dict[str, list[Triple]] = defaultdict(list)
        self._meant: dict[Meaning, dict[str, dict[str, list[Triple]]]] = {}
        self._bad_rows: list[Problem] = []
        self._conflicts: frozenset[tuple[str, str, str]] | None = None
        self.negations: set[str] = set()

    # filling ------------------------------------------------------------------------------------------

    def add_entity(self, name: str, kind: str | None = None) -> None:
        """Adds a name, or a type to it."""
        types = self._types.setdefault(name, set())
        if kind:
            types.add(kind)

    def add_alias(self, name: str, alias: str, place: str) -> None:
        """Adds another name of ``name``."""
        self.add_entity(name)
        if alias != name:
            self._aliases[name].setdefault(alias, place)

    def add(self, triple: Triple) -> None:
        """Adds a statement; the first of several equal ones stays."""
        meant = meaning(triple.relation)
        if meant is not None and meant[0] is Meaning.ALIAS:
            self.add_alias(triple.head, triple.tail, triple.place)
            return
        key = _key(triple)
        if key in self._triples:
            return
        self._triples[key] = triple
        self._conflicts = None
        self.add_entity(triple.head)
        self._ends[triple.head].append(triple)
        kind = meant[0] if meant else None
        if kind not in (Meaning.USAGE, Meaning.STRENGTH):  # their tails are texts, no names
            self._ends[triple.tail].append(triple)
            if kind is not None:
                self.add_entity(triple.tail)
        if meant is not None:
            kind, backward = meant
            first, second = (triple.tail, triple.head) if backward else (triple.head, triple.tail)
            self._index(kind, first, second, triple)
            if kind is Meaning.INTERACTS:
                self._index(kind, second, first, triple)

    def _index(self, kind: Meaning, first: str, second: str, triple: Triple) -> None:
        self._meant.setdefault(kind, {}).setdefault(first, {}).setdefault(second, []).append(triple)

    def add_bad_row(self, place: str, reason: str) -> None:
        """Notes a row that could not be read. The reason has none of its text."""
        self._bad_rows.append(Problem("bad-row", reason, (place,)))

    # reading ------------------------------------------------------------------------------------------

    @property
    def triples(self) -> tuple[Triple, ...]:
        """All statements, in order of appearance."""
        return tuple(self._triples.values())

    def __len__(self) -> int:
        return len(self._types)

    def entities(self) -> Iterator[Entity]:
        """All entities, in order of appearance."""
        for name in self._types:
            found = self.entity(name)
            assert found is not None
            yield found

    def entity(self, name: str) -> Entity | None:
        """The entity of that very name."""
        types = self._types.get(name)
        if types is None:
            return None
        return Entity(name, tuple(sorted(types)), tuple(self._aliases.get(name, ())))

    def of(self, name: str) -> tuple[Triple, ...]:
        """Statements with the name at either end."""
        return tuple(self._ends.get(name, ()))

    def meant(self, kind: Meaning, name: str) -> Mapping[str, list[Triple]]:
        """What a relation of that meaning leads to from ``name``: the other end, with its statements."""
        return self._meant.get(kind, {}).get(name, {})

    def heads(self, kind: Meaning) -> Iterable[str]:
        """Names that have statements of that meaning."""
        return self._meant.get(kind, {}).keys()

    def wider(self, name: str) -> set[str]:
        """The name and all that it is a kind of; a cycle ends where it comes back."""
        seen: set[str] = set()
        waiting = [name]
        while waiting:
            current = waiting.pop()
            if current not in seen:
                seen.add(current)
                waiting += self.meant(Meaning.IS_A, current)
        return seen

    # what is odd --------------------------------------------------------------------------------------

    def conflicting(self, triple: Triple) -> bool:
        """Whether another statement says the opposite: no rule judges by such a one."""
        if self._conflicts is None:
            self._conflicts = frozenset(_key(each) for _, triples in self._opposites() for each in triples)
        return _key(triple) in self._conflicts

    def problems(self) -> tuple[Problem, ...]:
        """All that is odd: unreadable rows, opposite statements, cycles, aliases of two names."""
        return (
            *self._bad_rows,
            *(_conflict(message, triples) for message, triples in self._opposites()),
            *self._is_a_cycles(),
            *self._alias_cycles(),
            *self._ambiguous(),
        )

    def _opposites(self) -> Iterator[tuple[str, list[Triple]]]:
        for one in (Meaning.TREATS, Meaning.SUITS):
            for first, targets in self._meant.get(one, {}).items():
                against = self.meant(Meaning.CONTRAINDICATED, first)
                for second in targets.keys() & against.keys():
                    message = f"{first} both {one} {second} and is contraindicated in it"
                    yield message, [*targets[second], *against[second]]

    def _is_a_cycles(self) -> Iterator[Problem]:
        links = self._meant.get(Meaning.IS_A, {})
        for ring in _cycles(links):
            places = [links[one][other][0].place for one, other in itertools.pairwise(ring)]
            yield Problem("is-a-cycle", " is a ".join(ring), tuple(places))

    def _alias_cycles(self) -> Iterator[Problem]:
        for ring in _cycles(self._aliases):
            places = [self._aliases[one][other] for one, other in itertools.pairwise(ring)]
            yield Problem("alias-cycle", " has the alias ".join(ring), tuple(places))

    def _ambiguous(self) -> Iterator[Problem]:
        owners: dict[str, dict[str, str]] = defaultdict(dict)
        for name, aliases in self._aliases.items():
            for alias, place in aliases.items():
                owners[alias][name] = place
        for alias, names in owners.items():
            if len(names) > 1 or alias in self._types:
                said = f"{alias} is an alias of {', '.join(names)}"
                message = said + (" and a name of its own" if alias in self._types else "")
                yield Problem("ambiguous-alias", message, tuple(names.values()))


def _cycles(links: Mapping[str, Iterable[str]]) -> Iterator[list[str]]:
    """Each cycle once, its first name again at its end; by a depth-first walk without recursion."""
    done: set[str] = set()
    for start in links:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                path.pop()
                on_path.discard(name)
                done.add(name)
            elif name in on_path:
                yield [*path[path.index(name) :], name]
            elif name not in done:
                path.append(name)
                on_path.add(name)
                stack.append((name, True))
                stack += [(next_, False) for next_ in links.get(name, ())]


def _conflict(message: str, triples: Sequence[Triple]) -> Problem:
    told = f"{message}: {', '.join(map(str, triples))}"
    return Problem("conflict", told, tuple(dict.fromkeys(triple.place for triple in triples)))


def _key(triple: Triple) -> tuple[str, str, str]:
    return triple.head, triple.relation, triple.tail
