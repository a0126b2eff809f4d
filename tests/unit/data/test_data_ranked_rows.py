"""Rankings as tables have them: answers in rows or in numbered columns, ranks under the name of scores."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.data import reading
from tests.unit.data.support import json_lines
from zhongjing.codes import data as codes
from zhongjing.config.sources import Kind
from zhongjing.config.stages import RmSettings, Stage
from zhongjing.data.losses import data_warnings
from zhongjing.data.readers import ReadStats
from zhongjing.data.records import Dialogue, Ranking, Record, Rejected
from zhongjing.storage.manifest import SourceCounts

COLUMNS = {"prompt": "问题", "response": "回答"}


def read(data: bytes, kind: str = "dialogue", **source: Any) -> tuple[list[Record | Rejected], ReadStats]:
    stats = ReadStats()
    return reading.read(data, Kind(kind), stats, **source), stats


def rows(column: str, *values: object, questions: int = 3) -> bytes:
    """A table with a row for each answer, each with the next value in the column."""
    lines = [f"问题,回答,{column}"]
    lines += [
        f"第{number}问,回答{place},{value}"
        for number in range(questions)
        for place, value in enumerate(values)
    ]
    return "\n".join(lines).encode() + b"\n"


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("rank", (1, 2, 3)),
        ("rank", (3, 1, 2)),
        ("医生排序", (2, 1)),
        ("名次", (0, 1)),
        ("专家评分", (4.5, 1)),
        ("reward", (-1.5, 0.3)),
        ("次序", (1, 2, 3)),
        ("位置", (3, 1, 2)),
    ],
)
def test_a_row_for_each_answer_is_refused_by_the_column_that_ranks_them(
    column: str, values: tuple[float, ...]
) -> None:
    records, _ = read(rows(column, *values), columns=COLUMNS)
    refused = [each for each in records if isinstance(each, Rejected)]
    assert len(refused) >= 3
    assert {each.code for each in refused} == {codes.AMBIGUOUS_RECORD}
    assert all(each.reason.startswith(f"{column} seems to rank") for each in refused)
    assert "kind ranking" in refused[0].reason


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("编号", (17, 18)),
        ("年龄", (30, 30)),
        ("score", (5, 5)),
        ("科室", ("内科", "外科")),
        ("rank", (1,)),
        ("轮次", (1, 2)),
    ],
)
def test_rows_that_nothing_ranks_are_dialogues(column: str, values: tuple[object, ...]) -> None:
    records, _ = read(rows(column, *values), columns=COLUMNS)
    assert all(isinstance(each, Dialogue) for each in records), records


@pytest.mark.parametrize("column", ["就诊号", "序号", "id", "visit_id", "sessionId", ""])
def test_the_number_of_a_visit_or_row_ranks_no_answers_to_a_greeting(column: str) -> None:
    lines = [f"{column},轮次,问题,回答"]
    for visit in (1, 2, 3):
        lines += [f"{visit},1,你好,您好{visit}", f"{visit},2,第{visit}问,答{visit}"]
    records, _ = read("\n".join(lines).encode(), columns=COLUMNS)
    assert all(isinstance(each, Dialogue) for each in records), records


def test_the_same_row_again_is_a_duplicate_and_no_ranking() -> None:
    data = b"question,answer,rank\n" + b"q,a,1\nq,a,2\n"
    records, _ = read(data)
    assert all(isinstance(each, Dialogue) for each in records)


def scored(values: list[list[int]], key: str) -> tuple[list[Record | Rejected], list[str]]:
    """Records with scores under a key, and the warnings about their source."""
    data = [
        {"问题": f"第{number}问", "候选": [f"答{place}" for place, _ in enumerate(each)], key: each}
        for number, each in enumerate(values)
    ]
    columns = {"prompt": "问题", "answers": "候选", "scores": key}
    records, stats = read(json_lines(data), "ranking", columns=columns)
    counts = SourceCounts(name="own", digest="d", read=len(data), kept=len(data), layouts=dict(stats.layouts))
    settings = RmSettings.model_validate({"data": [{"source": "own"}]})
    return records, data_warnings(Stage.RM, settings, [counts])


def test_scores_that_are_ranks_in_every_record_are_warned_of() -> None:
    _, (said,) = scored([[2, 1, 3], [1, 2, 3], [2, 1]], "医生意见")
    assert said.startswith("own: the scores of its 3 records are the numbers from 1 to that of the answers")
    assert "columns.ranks" in said


def test_scores_that_are_scores_are_not() -> None:
    records, warnings = scored([[2, 1, 3], [5, 2, 3], [2, 1]], "医生意见")
    assert all(isinstance(each, Ranking) for each in records)
    assert warnings == []


@pytest.mark.parametrize("key", ["医生排序", "名次", "doctor_rank", "ranking"])
def test_a_key_named_after_ranks_is_no_key_of_scores(key: str) -> None:
    records, _ = scored([[2, 1, 3]], key)
    assert isinstance(records[0], Rejected)
    assert f"columns.ranks: {key}" in records[0].reason
    [record], _ = scored([[5, 1, 4]], key)
    assert isinstance(record, Ranking)


@pytest.mark.parametrize(
    ("header", "layout"),
    [
        ("问题,答案1,排名1,答案2,排名2,答案3,排名3", "rank"),
        ("question,answer1,rank1,answer2,rank2,answer3,rank3", "rank"),
        ("Question,Answer A,Rank A,Answer B,Rank B,Answer C,Rank C", "rank"),
        ("问题,回答甲,名次甲,回答乙,名次乙,回答丙,名次丙", "rank"),
        ("question,response_1,score_1,response_2,score_2,response_3,score_3", "score"),
    ],
)
def test_numbered_columns_are_answers_with_their_ranks(header: str, layout: str) -> None:
    best, worst = ("1", "3") if layout == "rank" else ("9", "0.5")
    data = f"{header}\n头痛,喝水,{worst},就医,{best},,\n发烧,一,2,二,2,三,{best}\n".encode()
    records, stats = read(data, "ranking")
    two, three = records
    assert isinstance(two, Ranking)
    assert isinstance(three, Ranking)
    assert (two.answers, two.ranks) == (("喝水", "就医"), (1, 0))
    assert (three.answers, three.ranks) == (("一", "二", "三"), (1, 1, 0))
    assert stats.unused.report() == {}
    assert all(layout in name for name in stats.layouts)


@pytest.mark.parametrize(
    ("header", "row", "reason"),
    [
        ("问题,答案1,答案2", "q,a,b", "neither ranks nor scores"),
        ("问题,答案1,排名1,答案2,排名2", "q,a,1,b,", "a rank is not a number"),
        ("问题,答案1,排名1,答案2,排名3", "q,a,1,b,2", "a rank is not a number"),
        ("问题,答案1,排名1,回答1,排名2", "q,a,1,b,2", "both belong to answer 1"),
        ("问题,答案1,排名1,答案2,排名2", "q,a,1,,", "only one answer"),
        ("问题,答案1,排名1,答案2,排名2,评分1,评分2", "q,a,1,b,2,3,9", "or the other in columns.ignore"),
    ],
)
def test_numbered_columns_without_an_order_are_refused(header: str, row: str, reason: str) -> None:
    [refused], _ = read(f"{header}\n{row}\n".encode(), "ranking")
    assert isinstance(refused, Rejected)
    assert reason in refused.reason


def test_of_contradicting_columns_those_to_ignore_can_be_named() -> None:
    source = {"columns": {"ignore": ["评分1", "评分2"]}}
    [record], _ = read(
        "问题,答案1,排名1,答案2,排名2,评分1,评分2\nq,a,1,b,2,3,9\n".encode(), "ranking", **source
    )
    assert isinstance(record, Ranking)
    assert record.ranks == (0, 1)


def test_a_column_that_belongs_to_no_answer_orders_nothing() -> None:
    [record], stats = read(b"question,answer1,rank1,answer2,rank2,scored\nq,a,2,b,1,yes\n", "ranking")
    assert isinstance(record, Ranking)
    assert record.ranks == (1, 0)
    assert list(stats.unused.report()) == ["scored"]


def test_from_may_say_where_a_dialogue_with_role_marks_is_from() -> None:
    data = b'{"from": "forum", "text": "Human: hi\\nAssistant: yes"}\n'
    [record], _ = read(data, roleMarks="split")
    assert isinstance(record, Dialogue)
    assert [turn.role for turn in record.turns] == ["user", "assistant"]


@pytest.mark.parametrize("roles", ["role,content", "角色,内容", "说话人,发言"])
def test_a_row_for_each_turn_is_refused_with_the_layout_to_write(roles: str) -> None:
    data = f"visit_id,{roles}\n1,user,头痛\n1,assistant,喝水\n".encode()
    records, _ = read(data)
    for refused in records:
        assert isinstance(refused, Rejected)
        assert refused.code is codes.UNKNOWN_LAYOUT
        assert "the record is one turn" in refused.reason
        assert "visit_id" in refused.reason
        assert '{"messages": [' in refused.reason


@pytest.mark.parametrize("columns", [{}, {"prompt": "问题", "answers": "answers"}])
@pytest.mark.parametrize(("key", "value"), [("tokens", [40, 60]), ("meta.tokens", {"tokens": [40, 60]})])
def test_a_list_that_is_no_order_can_be_ignored(key: str, value: object, columns: dict[str, str]) -> None:
    data = json_lines([{"问题": "头痛", "answers": ["就医", "喝水"], key.partition(".")[0]: value}])
    [refused], _ = read(data, "ranking", columns=columns)
    assert isinstance(refused, Rejected)
    assert refused.reason.startswith(f"{key} beside")
    assert "columns.ignore" in refused.reason
    [record], _ = read(data, "ranking", columns={**columns, "ignore": [key]})
    assert isinstance(record, Ranking)
    assert record.ranks == (0, 1)
