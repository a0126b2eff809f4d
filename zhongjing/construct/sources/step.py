"""The step that makes records of published items; items come to it as texts of JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from zhongjing.config.sources import Kind
from zhongjing.construct.sources.choice import Choice
from zhongjing.construct.sources.converter import Converter, Talk
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Position, Record, RejectedError, TextRecord, Turn

VERSION = 1


@dataclass(frozen=True)
class InstructStep:
    """Makes records of items.

    Attributes:
        layout: name of the converter, as the command has it.
        converter: for the layout.
        seed: decides which wordings are taken.
    """

    layout: str
    converter: Converter
    seed: int = 0
    name: str = "instruct"
    version: int = VERSION

    def parameters(self) -> dict[str, object]:
        """Layout, seed, and what the converter was given."""
        return {"as": self.layout, "seed": self.seed, **self.converter.parameters()}

    def apply(self, record: Record) -> Outcome:
        """Makes the records of an item. An item that is not of the layout is quarantined."""
        assert isinstance(record, TextRecord), "items are read as texts"
        item: Any = json.loads(record.text)
        try:
            if not isinstance(item, dict):
                raise RejectedError("the item is no object")
            made = self.converter.convert(item, Choice(self.seed, record.text))
        except RejectedError as error:
            return Outcome(quarantined=rejected(record, error.reason))
        records: list[Record] = [
            *(TextRecord(text, record.position) for text in made.texts),
            *(_dialogue(talk, record.position) for talk in made.talks),
        ]
        return Outcome(tuple(records), dict(made.counts))

    @property
    def kind(self) -> Kind:
        """Of the records."""
        return self.converter.kind


def _dialogue(talk: Talk, position: Position) -> Dialogue:
    turns = tuple(
        Turn("assistant" if place % 2 else "user", content) for place, content in enumerate(talk.turns)
    )
    return Dialogue(turns, position, talk.department)
