"""Files as they come: every value in them is read, or what stands in its way is told with its line."""

from __future__ import annotations

import json
import time

import pytest

from tests.unit.data.reading import dumps, pairs, read, table
from zhongjing.codes import data as codes
from zhongjing.config.sources import Kind
from zhongjing.data.formats import detect_encoding, sniff
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import Record, Rejected
from zhongjing.data.sections import cut_sections
from zhongjing.errors import DataError


def rejected(records: list[Record | Rejected]) -> list[Rejected]:
    return [record for record in records if isinstance(record, Rejected)]


PAIRS = pairs(60)
CASE_01 = {
    "all": dumps(PAIRS[:20], indent=2) + "\n" + dumps(PAIRS[20:40], indent=2) + dumps(PAIRS[40:], indent=2),
    "array then lines": dumps(PAIRS[:20], indent=2) + "\n" + "\n".join(map(dumps, PAIRS[20:])) + "\n",
    "arrays on a line each": dumps(PAIRS[:20]) + "\n" + dumps(PAIRS[20:]) + "\n",
    "lines then an array": "\n".join(dumps(pair, indent=0) for pair in PAIRS[:20]) + dumps(PAIRS[20:]),
    "objects one behind the other": "".join(map(dumps, PAIRS)),
}


@pytest.mark.parametrize("text", CASE_01.values(), ids=CASE_01)
def test_case_01_what_stands_behind_an_array_is_read(text: str) -> None:
    """MedicalGPT issue 38, HuatuoGPT-II issue 19: files put together of several arrays."""
    records = read(text)
    assert len(records) == 60
    assert not rejected(records)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[{"a": 1}]\n]\n', "line 2: a bracket that closes no array"),
        ('[{"a": 1}]\nEnd of file\n', "line 2: text is outside"),
        ('[{"a": 1}],\n{"a": 2}}\n', "line 2: a brace that closes no object"),
        ('{\n"a": 1\n}\nand\n{\n"a": 2\n}', "line 4: text is outside"),
        ('[{"a": 1}]\n[{"a": 2}', "opens in line 2 has no end"),
    ],
)
def test_what_stands_behind_before_or_between_json_values_is_an_error_with_its_line(
    text: str, words: str
) -> None:
    with pytest.raises(DataError, match=words):
        read(text, format="json")


def test_text_among_the_elements_of_an_array_is_one_bad_record() -> None:
    records = read(f"[{dumps(PAIRS[0])},\n and so on ,\n{dumps(PAIRS[1])}]")
    assert [(one.position.line, one.reason) for one in rejected(records)] == [
        (2, "not JSON: Expecting value")
    ]


@pytest.mark.parametrize("window", [1, 9, 1 << 20])
def test_an_array_of_turns_is_a_record_and_one_of_records_is_not(
    monkeypatch: pytest.MonkeyPatch, window: int
) -> None:
    monkeypatch.setattr("zhongjing.data.json_values._WINDOW", window)
    turns = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "答"}]
    assert len(read(dumps(turns, indent=1) + dumps(turns, indent=1), format="json")) == 2
    assert len(read(dumps([turns, turns], indent=1))) == 2
    assert len(read(dumps(turns) + "\n" + dumps(turns) + "\n")) == 2
    with pytest.raises(DataError, match=r"dialogue .* or an array of records") as caught:
        read(dumps([*turns, {"问": "问"}]) + "\n" + dumps(turns) + "\n")
    assert caught.value.code is codes.AMBIGUOUS_READING
    assert "format: jsonl" in caught.value.remedy


def test_case_13_objects_over_several_lines_are_told_by_a_whole_one() -> None:
    """MedicalGPT issue 38: one of their inner lines is an object of its own."""
    turns = [
        {
            "id": number,
            "conversations": [
                {"from": "human", "value": pair["instruction"]},
                {"from": "gpt", "value": pair["output"]},
            ],
        }
        for number, pair in enumerate(PAIRS[:9])
    ]
    compact = [
        f'{{\n"id": {one["id"]},\n"conversations": [\n'
        + ",\n".join(dumps(turn) for turn in one["conversations"])  # type: ignore[attr-defined]
        + "\n]\n}\n"
        for one in turns
    ]
    for text in ("\n".join(dumps(one, indent=2) for one in turns), "".join(compact)):
        assert len(read(text)) == 9
        assert not rejected(read(text))
    refused = rejected(read(compact[0], format="jsonl"))
    assert "`format: json` reads values over several lines" in refused[0].reason


def test_one_damaged_line_does_not_turn_json_lines_into_json() -> None:
    good = [dumps(pair) for pair in PAIRS]
    for damaged in ('{"instruction": "open', '{"instruction": "a}', '{"a": nope}', '{"a": {"b": 1}'):
        records = read("\n".join([damaged, *good]))
        assert (len(records), len(rejected(records))) == (61, 1), damaged


def test_a_key_that_stands_twice_in_an_object_is_not_dropped_in_silence() -> None:
    (record,) = rejected(read('{"问": "问", "答": "一", "答": "二"}\n', format="jsonl"))
    assert record.reason == "a key occurs twice in an object"


LINES = table(40)
SWALLOWED = {
    "text behind the closing quote": (9, '"我感冒了,多喝水', 29, '有人说"多喝水"有用,对'),
    "a row of one field": (9, '"我感冒了,多喝水', 29, '有人说多喝水有用,对"'),
    "a field of many rows": (9, '我感冒了,"多喝水', 29, '有人说,对"'),
    "no closing quote": (9, '我感冒了,"多喝水', 39, "有人说,对"),
}


@pytest.mark.parametrize("case", SWALLOWED.values(), ids=SWALLOWED)
def test_case_02_rows_swallowed_by_a_stray_quote_are_counted(case: tuple[int, str, int, str]) -> None:
    first, opening, last, closing = case
    lines = list(LINES)
    lines[first], lines[last] = opening, closing
    records = read("ask,answer\n" + "\n".join(lines) + "\n")
    bad = rejected(records)
    assert len(records) == 40
    assert [one.position.line for one in bad] == list(range(first + 2, last + 3))
    assert f"a quoted field spans lines {first + 2} to {last + 2}, which look like rows" in bad[0].reason


def test_fields_over_several_lines_are_read_as_they_are() -> None:
    text = (
        'ask,answer\n头痛,"多休息\n多喝水"\n"第一, 发烧\n第二, 咳嗽\n第三, 头痛",喝水\n'
        '处方,"阿莫西林, 0.5g\n布洛芬, 0.3g\n维生素, 一片"\n问,"说 ""你好"" 了"\n'
    )
    records = read(text, format="csv")
    assert (len(records), rejected(records)) == (4, [])


def test_header_or_record_is_told_and_where_both_fit_refused_with_the_field_that_decides() -> None:
    assert sniff(("ask,answer\n" + "\n".join(LINES)).encode()).reading == (
        "table with commas, its first line the header, utf-8"
    )
    assert (
        sniff((",ask,answer\n" + "\n".join(f"{n},{x}" for n, x in enumerate(LINES))).encode()).format == "csv"
    )
    long = [f"{'我头痛' * 15}{number},多喝水" for number in range(30)]
    with pytest.raises(DataError, match="table without a header") as caught:
        read("\n".join(long), Kind.TEXT)
    assert caught.value.code is codes.AMBIGUOUS_READING
    assert "`format: text`" in caught.value.remedy
    assert not rejected(read("\n".join(long), Kind.TEXT, format="text"))
    for prose in ("党参补中,健脾。" * 15 + "\n", f"{'党参补中' * 15},健脾。\n"):
        assert not rejected(read(prose * 30, Kind.TEXT)), "a line again and again is no table"
    with pytest.raises(DataError, match="two columns of the table have the same name"):
        read("ask,answer,answer\n问,答,答二\n", format="csv")


TRADITIONAL = (
    "高血壓患者應該低鹽飲食，每天按時服藥，並定期測量血壓。醫師您好，我頭痛已經三天了，還有一點發燒。"
    "孩子咳嗽兩個星期了，晚上比較嚴重，有痰但是咳不出來。建議先到小兒科門診檢查。"
)
SIMPLIFIED = "高血压患者应当低盐饮食，每天按时服药，并定期测量血压。我头痛三天了，还有点发烧，应该怎么办？"


@pytest.mark.parametrize(
    ("text", "codec", "expected"),
    [
        (TRADITIONAL, "big5", "cp950"),
        (TRADITIONAL[:6], "big5", "cp950"),
        (TRADITIONAL, "gb18030", "gb18030"),
        (SIMPLIFIED, "gb18030", "gb18030"),
        (SIMPLIFIED[:8], "gb18030", "gb18030"),
        (TRADITIONAL, "utf-8", "utf-8"),
    ],
)
def test_big5_and_gb18030_are_told_apart(text: str, codec: str, expected: str) -> None:
    assert detect_encoding(text.encode(codec), complete=True) == expected


@pytest.mark.parametrize("codec", ["euc_jp", "shift_jis"])
def test_an_encoding_that_is_a_guess_is_refused_with_the_field_that_decides(codec: str) -> None:
    text = "患者は高血圧のため、毎日薬を飲んでいます。血圧を測ってください。" * 3
    with pytest.raises(DataError) as caught:
        detect_encoding(text.encode(codec), complete=True)
    assert "encoding" in caught.value.remedy


def test_private_use_characters_are_counted_as_a_sign_of_a_wrong_encoding() -> None:
    stats = ReadStats()
    data = json.dumps({"text": "头\ue001痛"}).encode() + b"\n" + dumps({"text": "头痛"}).encode()
    assert len(read(data, Kind.TEXT, stats)) == 2
    assert stats.private_use == 1


def test_case_04_kind_text_takes_the_text_and_not_the_prompt_beside_it() -> None:
    """LLaMA-Factory issues 912 and 1560: a corpus with prompts, as Cosmopedia has them."""
    (record,) = read(dumps({"prompt": "写一篇文章", "text": "高血压是一种病。", "score": 4}), Kind.TEXT)
    assert getattr(record, "text", None) == "高血压是一种病。"


def test_a_long_line_takes_linear_time() -> None:
    def seconds(length: int) -> float:
        text = SIMPLIFIED * (length // len(SIMPLIFIED))
        begin = time.process_time()
        assert sum(len(section.text) for section in cut_sections([text], 2000)) > 0.9 * length
        return time.process_time() - begin

    short = min(seconds(1 << 18) for _ in range(3))
    assert seconds(1 << 22) < 50 * short  # 16 times as long; over 100 times where each piece copies the rest
