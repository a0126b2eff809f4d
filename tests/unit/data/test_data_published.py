"""Every published file, quirks included: exact counts (needs ZHONGJING_DATA)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from transformers import PreTrainedTokenizerFast

from tests.unit.data.support import encode_dialogue
from zhongjing.config.sources import Kind, Source
from zhongjing.data.formats import Detected
from zhongjing.data.inspect import inspect_sources
from zhongjing.data.readers import ReadStats, read_object
from zhongjing.data.records import Dialogue, Ranking, Record, Rejected, TextRecord


class Expected(NamedTuple):
    name: str
    kind: Kind
    format: str
    encoding: str
    read: int
    rejected: dict[str, int]
    layouts: dict[str, int]
    truncated: int = 0


MARKS = (
    "a question has role marks (such as Human: and Assistant:): set roleMarks of the source to split (they "
    "are turns) or keep (they are text)"
)
D, R = Kind.DIALOGUE, Kind.RANKING
FILES = [
    Expected(
        "CMtMedQA_sample.json",
        D,
        "json",
        "utf-8",
        800,
        {},
        {"instruction/output": 690, "instruct/output": 110},
    ),
    Expected("huatuo26M_sample.json", D, "json", "utf-8", 4200, {}, {"instruction/output": 4200}),
    Expected("huatuo_llama_data.json", D, "jsonl", "utf-8", 8658, {}, {"instruction/output": 8658}),
    Expected("medical_sft_1K.jsonl", D, "jsonl", "utf-8", 1000, {}, {"conversations": 1000}),
    Expected(
        "sharegpt_zh_1K.jsonl",
        D,
        "jsonl",
        "utf-8",
        1000,
        {"a turn is empty": 1, "the dialogue has no answer": 1, MARKS: 1},
        {"conversations": 997},
        6,
    ),
    Expected("medical_qa_corpus.jsonl", D, "jsonl", "utf-8", 87, {}, {"问/答": 87}),
    Expected("toyhom_internal_medicine_gb18030.csv", D, "csv", "gb18030", 7644, {}, {"ask/answer": 7644}),
    Expected("dpo_zh_500.jsonl", R, "jsonl", "utf-8", 500, {}, {"preference": 500}),
]


def read(path: Path, kind: Kind) -> tuple[list[Record], Counter[str], ReadStats]:
    stats = ReadStats()
    records: list[Record] = []
    reasons: Counter[str] = Counter()
    for found in read_object(str(path), Source(name="x", uri=str(path), kind=kind), stats=stats):
        if isinstance(found, Rejected):
            reasons[found.reason] += 1
        else:
            records.append(found)
    return records, reasons, stats


@pytest.mark.parametrize("expected", FILES, ids=lambda expected: expected.name)
def test_counts(real_data: Callable[[str], Path], expected: Expected) -> None:
    path = real_data(expected.name)
    records, reasons, stats = read(path, expected.kind)
    delimiter = "," if expected.format == "csv" else None
    assert stats.detected == {str(path): Detected(expected.format, expected.encoding, delimiter)}  # type: ignore[arg-type]
    assert len(records) + sum(reasons.values()) == expected.read
    assert dict(reasons) == expected.rejected
    assert dict(stats.layouts) == expected.layouts
    assert stats.truncated == expected.truncated
    (report,) = inspect_sources([str(path)]).sources
    assert (report.kind, report.read, report.rejected) == (
        expected.kind, expected.read, sum(expected.rejected.values()),
    )  # fmt: skip
    assert not report.over_limit


def test_cmtmedqa_history_safety_questions_and_departments(real_data: Callable[[str], Path]) -> None:
    records, _, _ = read(real_data("CMtMedQA_sample.json"), D)
    dialogues = [record for record in records if isinstance(record, Dialogue)]
    assert Counter(len(record.turns) // 2 - 1 for record in dialogues) == {
        3: 241, 4: 225, 0: 127, 5: 96, 2: 65, 1: 21, 6: 19, 7: 4, 8: 1, 9: 1,
    }  # fmt: skip
    assert sum(record.department is None for record in dialogues) == 111
    assert "nan" not in {record.department for record in dialogues}
    (report,) = inspect_sources([str(real_data("CMtMedQA_sample.json"))]).sources
    assert report.duplicates == 3


def test_huatuo26m_lists_are_texts(real_data: Callable[[str], Path]) -> None:
    records, _, _ = read(real_data("huatuo26M_sample.json"), D)
    assert all(isinstance(record, Dialogue) and len(record.turns) == 2 for record in records)


def test_sharegpt_keeps_its_longest_dialogue(
    real_data: Callable[[str], Path], chatml: PreTrainedTokenizerFast
) -> None:
    records, _, _ = read(real_data("sharegpt_zh_1K.jsonl"), D)
    dialogues = [record for record in records if isinstance(record, Dialogue)]
    assert all(record.turns[-1].role == "assistant" for record in dialogues)
    longest = max(dialogues, key=lambda record: len(record.turns))
    assert len(longest.turns) == 330
    encoded = encode_dialogue(chatml, longest.turns, 2048)
    assert encoded is not None
    assert encoded.truncated


def test_toyhom_quoted_line_breaks_and_missing_questions(real_data: Callable[[str], Path]) -> None:
    records, _, _ = read(real_data("toyhom_internal_medicine_gb18030.csv"), D)
    dialogues = [record for record in records if isinstance(record, Dialogue)]
    assert (
        sum("\n" in turn.content for record in dialogues for turn in record.turns) == 3
    )  # four more at an end
    assert Counter(record.department for record in dialogues).most_common(2) == [
        ("肝病科", 3121),
        ("消化科", 1414),
    ]
    assert not {"nan", "无"} & {record.turns[0].content for record in dialogues}


def test_preferences_keep_their_system_turns(real_data: Callable[[str], Path]) -> None:
    records, _, _ = read(real_data("dpo_zh_500.jsonl"), R)
    rankings = [record for record in records if isinstance(record, Ranking)]
    assert Counter(record.prompt[0].role for record in rankings) == {"user": 416, "system": 84}
    assert {record.ranks for record in rankings} == {(0, 1)}


def test_the_textbook_becomes_sections(real_data: Callable[[str], Path]) -> None:
    path = real_data("fever_textbook.txt")
    records, reasons, _ = read(path, Kind.TEXT)
    assert not reasons
    texts = [record.text for record in records if isinstance(record, TextRecord)]
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    assert "".join(texts).replace("\n", "") == "".join(lines)
    assert 1500 < sum(map(len, texts)) / len(texts) < 2300


@pytest.mark.parametrize(
    ("name", "entries"),
    [
        ("check", 3353),
        ("deny", 37),
        ("department", 54),
        ("disease", 8807),
        ("drug", 3828),
        ("food", 4870),
        ("producer", 17201),
        ("symptom", 5998),
    ],
)
def test_entity_lists_keep_every_line(real_data: Callable[[str], Path], name: str, entries: int) -> None:
    records, reasons, _ = read(real_data(f"medical_kg/{name}.txt"), Kind.TEXT)
    assert not reasons
    assert (
        sum(len(record.text.split("\n")) for record in records if isinstance(record, TextRecord)) == entries
    )
