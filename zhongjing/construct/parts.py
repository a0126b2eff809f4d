"""The parts of a constructed source: how records are cut into them, go through steps, and are written.

A part is made whole, by any process: ``part-NNNNN.jsonl``, in ``_made`` beside it what was quarantined, and
last the note that it is there (:class:`~zhongjing.construct.manifest.PartRecord`). The records alone decide
where a part ends, and what stands in it depends on nothing but them and the steps. So every process makes the
same bytes of a part, and what an interrupted run left is overwritten by the same.

Records are written in layouts that the data plane reads back (:mod:`zhongjing.data.layouts`), each with the
place that it comes from under ``_origin``: ``2#17`` is record 17 of ``inputs[2]`` in the manifest, both from
0. It has no names of files, which may be those of patients. What would not be read back as it is, is
quarantined.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from zhongjing.codes import construct as codes
from zhongjing.config.sources import Source
from zhongjing.construct.manifest import PartRecord
from zhongjing.construct.step import BatchStep, Outcome, Step, rejected
from zhongjing.data.published_keys import ORIGIN
from zhongjing.data.readers import read_rows
from zhongjing.data.records import (
    Dialogue,
    Ranking,
    Record,
    Rejected,
    Row,
    TextRecord,
    Turns,
    record_texts,
)
from zhongjing.data.rejections import place
from zhongjing.errors import DataError, ZhongjingError
from zhongjing.storage.heartbeat import beat

if TYPE_CHECKING:
    from zhongjing.storage.objects import ObjectStore

PART_CHARACTERS = 1 << 20
"""About 3 MB of Chinese: what a kill costs, and what is in memory a few times."""
PART_RECORDS = 1 << 12
READER = "read"
"""Stands for the reader where rejections are counted by step."""
WRITER = "write"

_LISTEN_EVERY = 16  # records
_MADE = "_made"

Entry = Record | Rejected


@dataclass(slots=True)
class Part:
    """A run of a source's records, unreadable ones included; ``begin`` and ``end``: bytes of the source."""

    number: int
    begin: int
    end: int = 0
    records: list[Entry] = field(default_factory=list)
    characters: int = 0

    @property
    def name(self) -> str:
        """Of its object, without the ending."""
        return part_name(self.number)

    @property
    def is_full(self) -> bool:
        """Whether the next record belongs to the next part."""
        return self.characters >= PART_CHARACTERS or len(self.records) >= PART_RECORDS

    def add(self, entry: Entry) -> None:
        """Adds what was read next."""
        self.records.append(entry)
        self.characters += (
            len(entry.text or "") if isinstance(entry, Rejected) else sum(map(len, record_texts(entry)))
        )


def part_name(number: int) -> str:
    """``part-00012``."""
    return f"part-{number:05d}"


def cut(entries: Iterable[Entry], position: Callable[[], int]) -> Iterator[Part]:
    """Cuts what is read into parts.

    Args:
        entries: in their order.
        position: bytes of the source that were read.
    """
    part = Part(0, 0)
    for entry in entries:
        if part.is_full:
            part.end = position()
            yield part
            part = Part(part.number + 1, part.end)
        part.add(entry)
    if part.records:
        part.end = position()
        yield part


@dataclass(frozen=True)
class PartMaker:
    """Makes the parts of one output. It may be pickled into any process.

    Attributes:
        store: where the output goes.
        uri: its folder.
        key: of the output.
        source: how what is written is read back: kind and role marks.
        steps: in their order.
        inputs: URIs of the objects that are read, in their order.
        keep_text: whether the quarantine may hold texts.
    """

    store: ObjectStore
    uri: str
    key: str
    source: Source
    steps: tuple[Step, ...]
    inputs: tuple[str, ...]
    keep_text: bool = False

    def noted(self) -> dict[str, PartRecord]:
        """The parts that are there, by name."""
        return {
            name: self.store.get_record(f"{self.uri}/{_MADE}/{name}.json", PartRecord)
            for name in sorted(self.made())
        }

    def made(self) -> set[str]:
        """Names of the parts that are there."""
        found = {info.uri.removeprefix(f"{self.uri}/") for info in self.store.list(self.uri)}
        names = {name.removesuffix(".jsonl") for name in found if name.startswith("part-")}
        return {name for name in names if f"{_MADE}/{name}.json" in found}

    def make(
        self, name: str, records: Sequence[Entry], listen: Callable[[float], None] = lambda _: None
    ) -> None:
        """Puts the records of a part through the steps, and stores what comes of it.

        Raises:
            DataError: a step failed; names the step and the record's place.
        """
        number = int(name.rpartition("-")[2])
        making = Making(self.steps, self.source, self.inputs)
        heard = 0

        def told(fraction: float) -> None:
            nonlocal heard
            if heard % _LISTEN_EVERY == 0:
                beat()
                listen(fraction)
            heard += 1

        making.add_all(records, told)
        data = "".join(making.lines).encode()
        self.store.put(f"{self.uri}/{name}.jsonl", data)
        quarantine = f"{self.uri}/{_MADE}/quarantine-{number:05d}.jsonl"
        if making.quarantine:
            lines = (quarantine_line(step, one, self.keep_text) for step, one in making.quarantine)
            self.store.put(quarantine, "".join(lines).encode())
        note = PartRecord(
            key=self.key,
            number=number,
            read=len(records),
            written=len(making.lines),
            characters=making.characters,
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            counts={step: dict(sorted(counts.items())) for step, counts in sorted(making.counts.items())},
            quarantined=dict(sorted(making.reasons.items())),
        )
        self.store.put_record(f"{self.uri}/{_MADE}/{name}.json", note)


class Making:
    """Records on their way through steps: lines to be written, and what is told of the rest.

    Args:
        steps: in their order.
        source: how what is written is read back.
        inputs: URIs of the objects that the records come from.
    """

    def __init__(self, steps: Sequence[Step], source: Source, inputs: Sequence[str]) -> None:
        self.lines: list[str] = []
        self.characters = 0
        self.counts: dict[str, Counter[str]] = {step.name: Counter() for step in steps}
        self.quarantine: list[tuple[str, Rejected]] = []
        self._steps = steps
        self._source = source
        self._places = {uri: place for place, uri in enumerate(inputs)}

    @property
    def reasons(self) -> Counter[str]:
        """Quarantined records by ``step: reason``."""
        return Counter(f"{step}: {one.reason}" for step, one in self.quarantine)

    def add(self, entry: Entry) -> None:
        """Takes one more record. Raises as :meth:`add_all` does."""
        self.add_all([entry])

    def add_all(self, entries: Sequence[Entry], told: Callable[[float], None] = lambda _: None) -> None:
        """Takes the next records, and what could not be read: all through a step before the next step.

        Args:
            entries: in their order, in which they are written and quarantined as well.
            told: hears after each record and step how far it is, 0 to 1.

        Raises:
            DataError: a step failed.
        """
        held: list[list[Record]] = [[] if isinstance(entry, Rejected) else [entry] for entry in entries]
        left = [[(READER, entry)] if isinstance(entry, Rejected) else [] for entry in entries]
        for number, step in enumerate(self._steps):
            flat = [(index, record) for index, records in enumerate(held) for record in records]
            held = [[] for _ in entries]
            outcomes = self._outcomes(step, [record for _, record in flat])
            for done, ((index, _), outcome) in enumerate(zip(flat, outcomes, strict=True)):
                self.counts[step.name].update(outcome.counts)
                held[index].extend(outcome.records)
                if outcome.quarantined is not None:
                    left[index].append((step.name, outcome.quarantined))
                told((number + done / len(flat)) / len(self._steps))
        for records, reasons in zip(held, left, strict=True):
            self.quarantine.extend(reasons)
            for record in records:
                self._write(record)

    def _write(self, record: Record) -> None:
        line = line_of(record, self._places)
        problem = _unlike(record, line, self._source)
        if problem is not None:
            self.quarantine.append((WRITER, rejected(record, problem)))
            return
        self.lines.append(line)
        self.characters += sum(map(len, record_texts(record)))

    @staticmethod
    def _outcomes(step: Step, records: Sequence[Record]) -> Iterator[Outcome]:
        """What becomes of each record, in order."""
        done = 0
        try:
            outcomes = step.apply_all(records) if isinstance(step, BatchStep) else map(step.apply, records)
            for outcome in outcomes:
                yield outcome
                done += 1
        except ZhongjingError:
            raise
        except Exception as error:
            # From None: what a library says of an error may quote the record.
            trace = error.__traceback__
            while trace is not None and trace.tb_next is not None:
                trace = trace.tb_next
            at = "" if trace is None else f" at {trace.tb_frame.f_code.co_qualname}, line {trace.tb_lineno}"
            raise DataError(
                f"the step {step.name} failed: {type(error).__name__}{at}",
                code=codes.STEP_FAILED,
                where=place(records[min(done, len(records) - 1)].position),
            ) from None


def line_of(record: Record, places: Mapping[str, int]) -> str:
    """A record as a line of JSON, with its line break.

    Args:
        record: what is written.
        places: of the inputs among all, by URI.
    """
    held = _layout_of(record)
    held[ORIGIN] = f"{places[record.position.uri]}#{record.position.index}"
    return json.dumps(held, ensure_ascii=False) + "\n"


def _layout_of(record: Record) -> dict[str, Any]:
    held: dict[str, Any]
    if isinstance(record, TextRecord):
        held = {"text": record.text}
    elif isinstance(record, Ranking):
        ranks = [rank + 1 for rank in record.ranks]
        held = {"prompt": _turns(record.prompt), "answers": list(record.answers), "ranks": ranks}
    else:
        held = {"messages": _turns(record.turns)}
    if isinstance(record, Dialogue) and record.department is not None:
        held["department"] = record.department
    return held


def _turns(turns: Turns) -> list[dict[str, Any]]:
    # OpenAI's fine-tuning guide: weight 0 keeps an answer out of the loss.
    return [
        {"role": turn.role, "content": turn.content, **({} if turn.learn else {"weight": 0})}
        for turn in turns
    ]


def _unlike(record: Record, line: str, source: Source) -> str | None:
    """Why a line would not be read back as the record; None where it would."""
    row = Row.of_text(record.position.index, record.position.line, json.loads(line), line)
    (found,) = read_rows(record.position.uri, [row], source)
    if isinstance(found, Rejected):
        return f"what the steps made of it cannot be used: {found.reason}"
    if replace(found, position=record.position) != record:
        return "what the steps made of it would be read as another record"
    return None


def quarantine_line(step: str, one: Rejected, keep_text: bool) -> str:
    """A line of the quarantine, with its line break; it has the text of the record only on request."""
    told = json.loads((one if keep_text else replace(one, text=None)).as_json())
    return json.dumps({"step": step, **told}, ensure_ascii=True) + "\n"
