"""Random records in random files: each character of each field is in what was read, or its key is told.

Layouts are put together at random from the names that peers publish and from names that nobody knows; every
value is unlike every other one, so what went missing can be named. A record that is refused is not silent.
"""

from __future__ import annotations

import csv
import io
import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from tests.unit.data import reading
from zhongjing.config.sources import Kind
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import Dialogue, Rejected, record_texts
from zhongjing.errors import DataError

CHARACTERS = "头痛发热咳嗽血压心悸药水针片天周abc，。？ \n\"\\{}[]<>:：,;\t'"
QUESTIONS = ("instruction", "question", "prompt", "query", "input", "问", "问题", "ask", "title")
ANSWERS = ("output", "answer", "response", "completion", "答", "回答", "chosen", "rejected", "target")
OTHERS = (
    *("system", "history", "context", "options", "department", "科室", "text", "content", "source"),
    *("meta", "备注", "rank", "score", "reasoning", "explanation", "category", "input", "extra"),
)
TURN_LISTS = ("messages", "conversations", "conversation")
ROLES = (("role", "content", "user", "assistant"), ("from", "value", "human", "gpt"))


class Writer:
    """Makes records; every text holds a number of its own."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self._number = seed * 10_000

    def text(self) -> str:
        self._number += 1
        ends = self.random.choices(CHARACTERS, k=self.random.randrange(6))
        return f"第{self._number}句{''.join(ends)}完"

    def value(self, depth: int = 0) -> Any:
        chance = self.random.random()
        if chance < 0.6 or depth == 2:
            return self.text()
        if chance < 0.7:
            return [self.text() for _ in range(self.random.randrange(1, 3))]
        if chance < 0.8:
            return {self.random.choice("甲乙丙"): self.value(depth + 1) for _ in range(2)}
        return self.random.choice([None, "", [], 0.5, True, 3])

    def turns(self) -> list[dict[str, Any]]:
        who, what, user, assistant = self.random.choice(ROLES)
        turns: list[dict[str, Any]] = []
        for number in range(self.random.randrange(1, 5)):
            turns.append({who: (user, assistant)[number % 2], what: self.text()})
            if self.random.random() < 0.2:
                turns[-1][self.random.choice(("name", "time", "note"))] = self.text()
        return turns

    def record(self) -> dict[str, Any]:
        names = self.random.sample(QUESTIONS, self.random.randrange(3))
        names += self.random.sample(ANSWERS, self.random.randrange(3))
        names += self.random.sample(OTHERS, self.random.randrange(4))
        self.random.shuffle(names)
        record = {name: self.value() for name in names}
        if self.random.random() < 0.4:
            record[self.random.choice(TURN_LISTS)] = self.turns()
        if self.random.random() < 0.2:
            record["answers"] = [self.text() for _ in range(self.random.randrange(1, 4))]
        return record


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Texts of a record and where they stand, as paths of keys."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in ("role", "from"):
                yield from leaves(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list):
        for inner in value:
            yield from leaves(inner, f"{path}[]")
    elif isinstance(value, str) and value.strip():
        yield path, value.strip()


def read(data: bytes, kind: Kind, **fields: Any) -> tuple[list[Any], ReadStats]:
    stats = ReadStats()
    return reading.read(data, kind, stats, **fields), stats


def told(path: str, unused: Iterable[str]) -> bool:
    """Whether a path, or one that it is below, is among the keys that were left out."""
    place = path.replace("[]", "") + "."
    return any(place.startswith(name.replace("[]", "") + ".") for name in unused)


@pytest.mark.parametrize("kind", list(Kind))
def test_each_character_of_each_field_is_kept_or_named_as_left_out(kind: Kind) -> None:
    writer = Writer(list(Kind).index(kind) + 1)
    kept = 0
    for _ in range(1500):
        raw = writer.record()
        (record,), stats = read(json.dumps(raw).encode(), kind, format="jsonl", roleMarks="keep")
        if isinstance(record, Rejected):
            continue
        kept += 1
        texts = list(record_texts(record))
        if isinstance(record, Dialogue) and record.department:
            texts.append(record.department)
        unused = stats.unused.report()
        missing = [
            (path, text)
            for path, text in leaves(raw)
            if not told(path, unused) and not any(text in one for one in texts)
        ]
        # What a kind has no place for is told by a label of its own.
        labelled = sum(one.characters for name, one in unused.items() if name.startswith("("))
        assert stats.truncated or sum(len(text) for _, text in missing) == labelled, (
            f"{missing} of {json.dumps(raw, ensure_ascii=False)} is neither in {texts} nor in {set(unused)}"
        )
    assert kept > 50


def containers(values: list[dict[str, Any]], dice: random.Random) -> str:
    """Values one behind the other: arrays, pretty or not, and single ones."""
    text, position = "", 0
    while position < len(values):
        count = dice.choice([1, 1, 2, 5])
        group = values[position : position + count]
        position += count
        whole: Any = group if len(group) > 1 or dice.random() < 0.5 else group[0]
        text += json.dumps(whole, ensure_ascii=dice.random() < 0.5, indent=dice.choice([None, 0, 2]))
        text += dice.choice(["\n", "", ",\n", "\r\n\r\n", " "])
    return text


@pytest.mark.parametrize("window", [5, 64, 1 << 20])
def test_every_byte_of_a_file_is_read_or_told(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr("zhongjing.data.json_values._WINDOW", window)
    for seed in range(60):
        writer = Writer(seed)
        count = writer.random.randrange(1, 12)
        values = [{"instruction": writer.text(), "output": writer.text()} for _ in range(count)]
        text = containers(values, writer.random)
        expected = [[value["instruction"].strip(), value["output"].strip()] for value in values]
        for encoding in ("utf-8", "gb18030", "utf-16"):
            records, _ = read(text.encode(encoding), Kind.DIALOGUE, format="json", encoding=encoding)
            assert [list(record_texts(record)) for record in records] == expected, text
        # Behind the last value, before the first one, or between two: it is never passed over.
        for broken in (f"{text}\n尾", f"尾\n{text}", f"{text}\n]"):
            with pytest.raises(DataError, match="line"):
                read(broken.encode(), Kind.DIALOGUE, format="json")


def test_every_cell_of_a_table_is_kept_or_told() -> None:
    for seed in range(60):
        writer = Writer(seed)
        names = ["ask", "answer", *writer.random.sample(["备注", "id", "department"], 2)]
        rows = [[writer.text() for _ in names] for _ in range(5)]
        sink = io.StringIO()
        delimiter = writer.random.choice(",\t;")
        csv.writer(sink, delimiter=delimiter, lineterminator="\n").writerows([names, *rows])
        records, stats = read(sink.getvalue().encode(), Kind.DIALOGUE, format="csv")
        unused = stats.unused.report()
        assert len(records) == 5
        for record, row in zip(records, rows, strict=True):
            texts = [*record_texts(record), record.department or ""]
            for name, cell in zip(names, row, strict=True):
                assert cell.strip() in texts or unused[name].records == 5
