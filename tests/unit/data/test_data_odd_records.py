"""Records and files at the edge of what is read: nothing is dropped unsaid, and no order is guessed."""

from __future__ import annotations

import csv
import io
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.unit.data import reading
from zhongjing.codes import data as codes
from zhongjing.codes.document import INVALID_VALUE
from zhongjing.config.sources import Kind
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import Dialogue, Ranking, Record, Rejected, TextRecord
from zhongjing.errors import DataError

Q, GOOD, BAD = "头痛怎么办", "多休息", "不知道"


def read(data: Any, kind: str = "dialogue", **source: Any) -> tuple[list[Record | Rejected], dict[str, int]]:
    """Records of an object, and characters that were not used, by path."""
    raw = data if isinstance(data, bytes) else json.dumps(data, ensure_ascii=False).encode()
    stats = ReadStats()
    records = reading.read(raw, Kind(kind), stats, **source)
    return records, {path: unused.characters for path, unused in stats.unused.report().items()}


def question(data: Any, **source: Any) -> str:
    [record], _ = read(data, **source)
    assert isinstance(record, Dialogue), record
    return record.turns[0].content


def test_an_option_that_says_none_is_an_option() -> None:
    options = {"A": "有", "B": "无", "C": "None", "D": "", "E": None, "F": float("nan")}
    assert question({"question": Q, "options": options, "answer": "B"}) == f"{Q}\nA. 有\nB. 无\nC. None"


def test_options_get_letters_unless_all_have_theirs() -> None:
    """An answer B stands for the second one."""
    plain = ["X 线检查", "B 超检查", "CT 检查"]
    asked = question({"question": Q, "options": plain, "answer": "B"})
    assert asked == f"{Q}\nA. X 线检查\nB. B 超检查\nC. CT 检查"
    lettered = ["A. 休息", "B、吃药", "(C) 手术"]
    assert question({"question": Q, "options": lettered, "answer": "B"}) == "\n".join([Q, *lettered])
    some = ["A. 休息", "B. 吃药", "以上都是"]
    assert question({"question": Q, "options": some, "answer": "C"}) == "\n".join(
        [Q, *some[:2], "C. 以上都是"]
    )
    numbered = [{"label": 1, "text": "休息"}, {"label": 2, "text": "吃药"}]
    assert question({"question": Q, "options": numbered, "answer": "2"}) == f"{Q}\n1. 休息\n2. 吃药"


@pytest.mark.parametrize("columns", [None, {"messages": "messages"}])
def test_keys_of_turns_that_stand_as_json_in_a_cell_are_accounted_for(columns: dict[str, str] | None) -> None:
    turns = [{"role": "user", "content": Q, "hint": "四个字的"}, {"role": "assistant", "content": GOOD}]
    table = io.StringIO()
    csv.writer(table).writerows([["messages", "id"], [json.dumps(turns, ensure_ascii=False), "7"]])
    [record], unused = read(table.getvalue().encode(), columns=columns or {})
    assert isinstance(record, Dialogue)
    assert unused == {"messages[].hint": 4, "id": 1}


@pytest.mark.parametrize("key", ["rank", "ranks", "score", "scores", "rating", "reward"])
def test_an_order_counts_under_its_name_in_the_singular_too(key: str) -> None:
    order = [2, 1] if key.startswith("rank") else [1, 5]
    [record], unused = read({"question": Q, "answers": [BAD, GOOD], key: order}, "ranking")
    assert isinstance(record, Ranking)
    assert (record.ranks, unused) == ((1, 0), {})


def test_a_score_of_the_question_orders_no_answers() -> None:
    [record], unused = read({"question": Q, "answers": [GOOD, BAD], "score": 17}, "ranking")
    assert isinstance(record, Ranking)
    assert (record.ranks, unused) == ((0, 1), {"score": 2})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("最佳回答", 2),
        ("best", 1),
        ("winner", "b"),
        ("preference", 0),
        ("winner", ["B"]),
        ("preferred", [1]),
        ("ranking", ["model_c", "model_a", "model_b"]),
        ("ranking", "['model_c', 'model_a', 'model_b']"),
    ],
)
def test_a_key_that_may_say_another_order_is_refused_with_what_decides(key: str, value: Any) -> None:
    data = {"question": Q, "answers": [GOOD, BAD, "滚"], key: value}
    [refused], _ = read(data, "ranking")
    assert isinstance(refused, Rejected)
    assert refused.code is codes.AMBIGUOUS_RECORD
    assert key in refused.reason
    assert "columns.answers" in refused.reason
    [record], unused = read(data, "ranking", columns={"prompt": "question", "answers": "answers"})
    assert isinstance(record, Ranking)
    assert record.ranks == (0, 1, 2)
    assert list(unused) == [key]


@pytest.mark.parametrize("named", [{}, {"columns": {"prompt": "问题", "answers": "候选回答"}}])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("医生排序", [2, 3, 1]),
        ("ranking", [2, 3, 1]),
        ("医生排序", "[2, 3, 1]"),
        ("医生排序", "2,3,1"),
        ("医生排序", "B>C>A"),
        ("评价", {"甲": 3, "乙": 3, "丙": 5}),
        ("打分.总分", {"总分": [0.5, 0.1, 0.9]}),
        ("各医生", [[2, 3, 1], [3, 2, 1]]),
    ],
)
def test_an_unused_list_of_numbers_as_long_as_the_answers_is_refused_with_what_decides(
    key: str, value: Any, named: dict[str, Any]
) -> None:
    keys = ("问题", "候选回答") if named else ("question", "answers")
    data = dict(zip(keys, (Q, [GOOD, BAD, "滚"]), strict=True)) | {key.partition(".")[0]: value}
    [refused], _ = read(data, "ranking", **named)
    assert isinstance(refused, Rejected)
    assert refused.code is codes.AMBIGUOUS_RECORD
    assert refused.reason.startswith(f"{key} beside the answers")
    assert "columns.ranks (1 is the best) or columns.scores" in refused.reason


def test_numbers_in_the_answers_themselves_are_refused_and_named_by_their_path() -> None:
    data = {"问题": Q, "候选": [{"text": BAD, "名次": 2}, {"text": GOOD, "名次": 1}]}
    columns = {"prompt": "问题", "answers": "候选"}
    [refused], _ = read(data, "ranking", columns=columns)
    assert isinstance(refused, Rejected)
    assert refused.reason.startswith("候选.名次 beside the answers")
    [record], _ = read(data, "ranking", columns=columns | {"ranks": "候选.名次"})
    assert isinstance(record, Ranking)
    assert record.ranks == (1, 0)


@pytest.mark.parametrize(
    "beside",
    [
        {"年龄": 30},
        {"编号": [1, 2, 3]},
        {"科室": ["内科", "外科"]},
        {"血压": "120/80"},
        {"血压": "120 80"},
        {"患者": {"age": 40, "weight": 60}},
        {"患者": {"smokes": True, "drinks": True}},
    ],
)
def test_what_cannot_be_an_order_of_the_answers_refuses_nothing(beside: dict[str, Any]) -> None:
    [record], unused = read({"question": Q, "answers": [GOOD, BAD], **beside}, "ranking")
    assert isinstance(record, Ranking), record
    assert list(unused) == [*beside]


@pytest.mark.parametrize("key", ["id", "ID", "answer_id", "modelId"])
def test_numbers_that_identify_answers_do_not_order_them(key: str) -> None:
    data = {"question": Q, "answers": [{"text": GOOD, key: 7}, {"text": BAD, key: 3}]}
    [record], _ = read(data, "ranking")
    assert isinstance(record, Ranking), record
    assert record.ranks == (0, 1)


@pytest.mark.parametrize("named", [{"scores": "scroes"}, {"ranks": "order"}])
@pytest.mark.parametrize("held", [{}, {"scores": [1, 5]}, {"scroes": None, "order": None}])
def test_a_named_order_that_is_not_there_is_not_guessed(named: dict[str, str], held: dict[str, Any]) -> None:
    columns = {"prompt": "question", "answers": "answers", **named}
    [refused], _ = read({"question": Q, "answers": [BAD, GOOD], **held}, "ranking", columns=columns)
    assert isinstance(refused, Rejected)


def test_the_text_of_a_ranking_is_its_best_answer() -> None:
    answers = [{"text": BAD, "score": 1}, {"text": GOOD, "score": 5}]
    [record], unused = read({"question": Q, "answers": answers}, "text")
    assert isinstance(record, TextRecord)
    assert record.text == f"{Q}\n{GOOD}"
    assert unused == {"(answers but the best)": len(BAD)}


def test_system_and_department_may_be_paths() -> None:
    columns = {"prompt": "q", "response": "a", "system": "m.system", "department": "m.tags.0"}
    data = {"q": Q, "a": GOOD, "m": {"system": "你是医生", "tags": ["内科"], "page": "十二"}}
    [record], unused = read(data, columns=columns)
    assert isinstance(record, Dialogue)
    assert [turn.role for turn in record.turns] == ["system", "user", "assistant"]
    assert (record.turns[0].content, record.department) == ("你是医生", "内科")
    assert unused == {"m.page": 2}


def test_a_thought_beside_several_turns_is_refused_and_one_beside_an_unlearned_turn_is_not_learned() -> None:
    turns = [{"role": "assistant", "content": GOOD}, {"role": "user", "content": Q}]
    [refused], _ = read({"Question": Q, "Complex_CoT": "想", "Response": [*turns, turns[0]]})
    assert isinstance(refused, Rejected)
    [refused], _ = read({"Question": Q, "Complex_CoT": "想", "Response": [turns[0] | {"weight": 0}]})
    assert isinstance(refused, Rejected)
    assert "not to be trained on" in refused.reason


def parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file)
    return file.getvalue()


def test_a_damaged_parquet_file_is_a_damaged_source() -> None:
    whole = parquet(question=[f"问{number}" * 50 for number in range(2000)], answer=["答"] * 2000)
    kinds = set()
    for seed in range(12):
        chance = random.Random(seed)
        damaged = bytearray(whole)
        for _ in range(5):
            damaged[chance.randrange(4, len(damaged) - 8)] ^= 0xFF
        with pytest.raises(DataError, match="damaged") as raised:
            read(bytes(damaged))
        assert raised.value.code is codes.UNREADABLE_SOURCE
        kinds.add(raised.value.message)
    assert len(kinds) > 1, "arrow has several words for it"


def test_two_columns_of_one_name_lose_none_in_parquet_either() -> None:
    file = io.BytesIO()
    table = pa.table([pa.array([each]) for each in (Q, GOOD, BAD)], names=["question", "answer", "answer"])
    pq.write_table(table, file)
    with pytest.raises(DataError, match="same name"):
        read(file.getvalue())


@pytest.mark.parametrize("name", ["base64", "rot13", "idna", "punycode", "undefined", "a\0b", "klingon"])
def test_what_is_no_encoding_of_text_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError, match="no codec") as raised:
        read(b"abc", "text", encoding=name)
    assert raised.value.code is INVALID_VALUE


@pytest.mark.parametrize(
    ("name", "codec", "text"),
    [("big5", "cp950", "裏面恒溫"), ("gb2312", "gb18030", "朱镕基㎡"), ("gbk", "gb18030", "㐀")],
)
def test_an_encoding_that_is_named_reads_what_programs_write_under_its_name(
    name: str, codec: str, text: str
) -> None:
    [record], _ = read(text.encode(codec), "text", encoding=name)
    assert isinstance(record, TextRecord)
    assert record.text == text
