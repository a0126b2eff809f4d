from __future__ import annotations

import codecs
import gzip
import io
import json
from typing import BinaryIO, cast

import pytest

from zhongjing.data.formats import Detected, detect_encoding, sniff
from zhongjing.data.records import BadRow, Row
from zhongjing.data.rows import iter_rows
from zhongjing.errors import DataError

LINES = '{"问": "头痛怎么办", "答": "多休息"}\n{"问": "发烧", "答": "喝水"}\n'
TABLE = 'department,title,ask,answer\n内科,头痛,"头痛,怎么办","多休息\n多喝水"\n内科,发烧,发烧了,喝水\n'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LINES, "jsonl"),
        (json.dumps([{"a": 1}]), "json"),
        (json.dumps([{"a": 1}, {"a": 2}], indent=1), "json"),
        ('\n  [\n {"a": "b"}]', "json"),
        ('[{"role": "user", "content": "x"}]\n[{"role": "user", "content": "y"}]\n', "jsonl"),
        ('{\n "a": 1\n}\n{\n "a": 2\n}\n', "json"),
        ('{"a": broken}\n' + LINES, "jsonl"),
        (TABLE, "csv"),
        ("a\tb\n1\t2\n3\t4\n", "csv"),
        ("第一章 总论\n传染病是由病原体引起的疾病。\n", "text"),
        ("[1] Reference, with a comma\n[2] Another, longer, one\n", "text"),
        ("{note} this is prose\n", "text"),
        ("Rest, drink water and sleep.\nAsk a doctor, if it lasts, for help, soon.\n", "text"),
        ("紫雪\n骨痛灵酊\n", "text"),
        ("", "text"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "utf-16"])
def test_format_is_told_from_content_in_every_encoding(text: str, expected: str, encoding: str) -> None:
    assert sniff(text.encode(encoding), complete=True).format == expected


def test_encoding_is_utf8_then_gb18030() -> None:
    text = "高血压患者能吃党参吗？" * 20
    assert detect_encoding(text.encode("utf-8"), complete=True) == "utf-8"
    assert detect_encoding(text.encode("gb18030"), complete=True) == "gb18030"
    assert detect_encoding(codecs.BOM_UTF8 + text.encode("utf-8"), complete=True) == "utf-8-sig"
    assert detect_encoding(b"plain ascii", complete=True) == "utf-8"


@pytest.mark.parametrize("cut", range(1, 8))
def test_a_character_cut_by_the_window_is_no_damage(cut: int) -> None:
    text = "患者" * 30
    assert detect_encoding(text.encode("utf-8")[:-cut]) == "utf-8"
    assert detect_encoding(text.encode("gb18030")[:-cut]) == "gb18030"


def test_a_few_damaged_bytes_do_not_turn_utf8_into_gb18030() -> None:
    data = bytearray("高血压患者能吃党参吗？".encode() * 50)
    data[100] = 0xFF
    assert detect_encoding(bytes(data), complete=True) == "utf-8"


def test_what_is_no_text_is_refused() -> None:
    with pytest.raises(DataError, match="gzip"):
        sniff(gzip.compress(LINES.encode()))
    with pytest.raises(DataError, match="binary"):
        sniff(b"\x00\x01\x02\x03" * 10)
    with pytest.raises(DataError, match="no codec"):
        sniff(b"x", encoding_hint="utf-9")
    with pytest.raises(DataError, match="neither UTF-8 nor GB18030"):
        sniff(bytes([0xFF, 0x81, 0x20]) * 100, complete=True)


def test_hints_overrule_the_content() -> None:
    assert sniff(LINES.encode(), format_hint="text") == Detected("text", "utf-8")
    assert sniff("é".encode("latin-1"), encoding_hint="latin-1").encoding == "iso8859-1"
    assert sniff(b"a;b\n1;2\n", format_hint="csv").delimiter == ";"
    assert sniff(b"PAR1....") == Detected("parquet", None)


class Trickle(io.BytesIO):
    """Gives a few bytes at a time, as a network may."""

    def read1(self, size: int | None = -1) -> bytes:
        return super().read(min(7, size) if size and size > 0 else 7)


def rows_of(data: bytes, **hints: str) -> list[Row | BadRow]:
    stream = cast("BinaryIO", io.BytesIO(data))
    return list(iter_rows(stream, sniff(data, complete=True, **hints)))


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("window", [1, 7, 64, 1 << 20])
def test_json_array_is_read_in_windows_of_any_size(
    monkeypatch: pytest.MonkeyPatch, window: int, indent: int | None
) -> None:
    records = [{"a": f'{i} "]}}{{[ \\ 中文', "b": [[1, {"c": "]"}], None, 1.5e3, -2]} for i in range(50)]
    records.append({"long": "长" * 3000, "b": []})
    monkeypatch.setattr("zhongjing.data.json_values._WINDOW", window)
    text = json.dumps(records, ensure_ascii=indent is None, indent=indent)
    rows = rows_of(text.encode())
    assert [row.value for row in rows if isinstance(row, Row)] == records
    assert [row.index for row in rows] == list(range(51))
    if indent:
        assert all(text.splitlines()[(row.line or 0) - 1].lstrip().startswith("{") for row in rows)


@pytest.mark.parametrize("window", [1, 16, 1 << 20])
def test_a_malformed_element_costs_only_itself(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr("zhongjing.data.json_values._WINDOW", window)
    rows = rows_of(b'[{"a": 1}, {"a": nope, "b": {"c": "]"}}, {"a": 2}, } , {"a": 3}]', format_hint="json")
    assert [type(row).__name__ for row in rows] == ["Row", "BadRow", "Row", "BadRow", "Row"]
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason == "not JSON: Expecting value"
    assert rows[1].raw == '{"a": nope, "b": {"c": "]"}}'


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": ', '[{"a": 1}', '[{"a": 1}, {"a": "open]'])
def test_a_cut_off_array_is_an_error_and_not_a_short_read(text: str) -> None:
    with pytest.raises(DataError, match=r"cut off|has no end"):
        rows_of(text.encode(), format_hint="json")


def test_an_open_quote_does_not_read_on_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhongjing.data.json_values._WINDOW", 64)
    monkeypatch.setattr("zhongjing.data.json_values._RECORD_LIMIT", 1000)

    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            buffer[:] = (b'[{"a": "' if not self.given else b"x" * 8).ljust(len(buffer), b"x")
            Endless.given += len(buffer)
            return len(buffer)

    stream = cast("BinaryIO", io.BufferedReader(Endless(), 64))
    with pytest.raises(DataError, match="has no end"):
        list(iter_rows(stream, Detected("json", "utf-8")))
    assert Endless.given < 100_000


def test_json_lines_name_index_line_and_reason() -> None:
    rows = rows_of(b'{"a": 1}\n\n{"a": \n  {"a": 2}  \r\n')
    assert [(row.index, row.line) for row in rows] == [(0, 1), (1, 3), (2, 4)]
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason.startswith("not JSON")


def test_bytes_that_do_not_decode_are_rejected_one_record_at_a_time() -> None:
    good = '{"问": "头痛怎么办，已经三天了", "答": "多休息，多喝水"}\n'.encode()
    rows = rows_of(good * 3 + good.replace("头".encode(), b"\xff\xfe", 1) + good)
    assert [isinstance(row, BadRow) for row in rows] == [False, False, False, True, False]


def test_table_with_quoted_commas_line_breaks_and_bad_rows() -> None:
    rows = rows_of(
        (TABLE * 1 + "内科,只有,三个\n" + "内科,最后,问,答\n").encode("gb18030"), format_hint="csv"
    )
    assert [type(row).__name__ for row in rows] == ["Row", "Row", "BadRow", "Row"]
    assert isinstance(rows[0], Row)
    assert rows[0].value == {
        "department": "内科",
        "title": "头痛",
        "ask": "头痛,怎么办",
        "answer": "多休息\n多喝水",
    }
    assert [row.line for row in rows] == [2, 4, 5, 6]
    assert isinstance(rows[2], BadRow)
    assert rows[2].reason == "the row has 3 fields, the header 4"


def test_a_table_of_long_cells_and_an_open_quote(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(("a,b\n" + "长" * 300_000 + ",y\n").encode(), format_hint="csv")
    assert len(rows) == 1
    monkeypatch.setattr("zhongjing.data.table._RUNAWAY_LINES", 20)
    with pytest.raises(DataError, match="line 3 is not closed"):
        rows_of(b'a,b\n1,2\n3,"open\n' + b"4,5\n" * 100, format_hint="csv")


def test_streams_that_trickle_give_the_same() -> None:
    data = TABLE.encode("gb18030")
    stream = cast("BinaryIO", io.BufferedReader(cast("io.RawIOBase", Trickle(data)), 8))
    rows = list(iter_rows(stream, Detected("csv", "gb18030", ",")))
    assert [row.raw for row in rows] == [row.raw for row in rows_of(data)]


def test_parquet(tmp_path: object) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    turns = [{"from": "human", "value": "问"}, {"from": "gpt", "value": "答"}]
    pq.write_table(pa.table({"conversations": [turns, turns]}), sink)
    rows = rows_of(sink.getvalue())
    assert [row.value for row in rows if isinstance(row, Row)] == [{"conversations": turns}] * 2
    with pytest.raises(DataError, match="parquet file is damaged"):
        rows_of(b"PAR1" + b"\0" * 50)
