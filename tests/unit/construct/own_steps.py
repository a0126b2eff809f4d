"""A small step of the tests' own, found by the processes that they start; and a run of it to be killed.

``python -m tests.unit.construct.own_steps URI OUT PAUSE``: parts of eight records, each record takes a pause.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace

from zhongjing.config.sources import Kind, Source, Storage
from zhongjing.construct import parts
from zhongjing.construct.runner import construct
from zhongjing.construct.step import Outcome, rejected
from zhongjing.data.records import Dialogue, Record, Turn
from zhongjing.storage.objects import open_store

PART_RECORDS = 8


@dataclass(frozen=True)
class Marked:
    """Puts a mark behind each answer; leaves out, quarantines or breaks at records that ask for it."""

    mark: str = "。"
    pause: float = 0.0
    name: str = "marked"
    version: int = 1

    def parameters(self) -> dict[str, object]:
        return {"mark": self.mark}

    def apply(self, record: Record) -> Outcome:
        time.sleep(self.pause)
        assert isinstance(record, Dialogue)
        asked = record.turns[0].content
        if "坏" in asked:
            return Outcome(quarantined=rejected(record, "it asks for it"))
        if "空" in asked:
            return Outcome((replace(record, turns=(record.turns[0], Turn("assistant", " "))),))
        if "炸" in asked:
            raise KeyError(asked)
        if "弃" in asked:
            return Outcome(counts={"left out": 1})
        turns = tuple(
            replace(turn, content=turn.content + self.mark) if turn.role == "assistant" else turn
            for turn in record.turns
        )
        return Outcome((replace(record, turns=turns),), {"answers": len(turns) // 2})


def main() -> None:
    uri, out, pause = sys.argv[1:]
    parts.PART_RECORDS = PART_RECORDS
    source = Source(name="raw", uri=uri, kind=Kind.DIALOGUE, max_quarantine_fraction=0.5)
    construct(open_store(Storage()), source, [Marked(pause=float(pause))], out)


if __name__ == "__main__":
    main()
