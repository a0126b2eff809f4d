"""Small inputs after public reports on peers: each read with the right value, or refused by name.

Reports: MedicalGPT #38; LLaMA-Factory #912, #1560, #3555, #4108, #4683; HuatuoGPT #37; HuatuoGPT-II #19;
OpenAI's ``weight``, ms-swift's ``loss``; the layouts of CMB, HuatuoGPT-o1, Firefly, BELLE and UltraFeedback.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.data import build_support
from tests.unit.data.build_support import Bench
from tests.unit.data.reading import one, reason, said, turns
from zhongjing.cli.display.counts import counts_line
from zhongjing.config.sources import Columns, Kind
from zhongjing.config.stages import Stage
from zhongjing.data.layouts import parse
from zhongjing.data.records import Dialogue, Ranking, Rejected

bench = build_support.bench  # pytest takes a module's fixtures by their names in it

D, R = Kind.DIALOGUE, Kind.RANKING
Q, GOOD, BAD = "头痛怎么办", "多休息", "不知道"
ASKED, ANSWERED = ("user", Q), ("assistant", GOOD)
OPTIONS = {"A": "休息", "B": "吃药"}


@pytest.mark.parametrize(
    ("record", "question"),
    [
        ({"question": Q, "option": OPTIONS, "answer": GOOD}, f"{Q}\nA. 休息\nB. 吃药"),
        ({"question": Q, "options": ["休息", "吃药"], "answer": GOOD}, f"{Q}\nA. 休息\nB. 吃药"),
        ({"question": Q, "options": ["A. 休息", "B. 吃药"], "answer": GOOD}, f"{Q}\nA. 休息\nB. 吃药"),
        ({"question": Q, "options": "A 休息\nB 吃药", "answer": GOOD}, f"{Q}\nA 休息\nB 吃药"),
        (
            {"Question": Q, "Options": [{"key": "A", "value": "休息"}], "Answer": GOOD},
            f"{Q}\nA. 休息",
        ),
        ({"question": Q, "option": {**OPTIONS, "E": ""}, "answer": GOOD}, f"{Q}\nA. 休息\nB. 吃药"),
        ({"instruction": "只用三个字回答。", "question": Q, "answer": GOOD}, f"只用三个字回答。\n{Q}"),
        ({"context": "男，45岁。", "question": Q, "answer": GOOD}, f"男，45岁。\n{Q}"),
        ({"instruction": "", "input": Q, "output": GOOD}, Q),
        ({"instruction": Q, "input": None, "output": GOOD, "history": None}, Q),
        ({"kind": "QA", "input": Q, "target": GOOD}, Q),
        ({"questions": Q, "answers": GOOD}, Q),
        ({"questions": [[Q, "头痛怎么办呢"]], "answers": [GOOD]}, Q),
        ({"data": [f"问：{Q}", f"答：{GOOD}"]}, Q),
        ({"conversation": [{"human": Q, "assistant": GOOD}]}, Q),
        ({"prompt": [said("user", Q)], "completion": [said("assistant", GOOD)]}, Q),
    ],
)
def test_nothing_of_a_question_is_dropped(record: Any, question: str) -> None:
    """Exam options, an instruction beside the question, a context, an input without an instruction."""
    assert turns(one(record)) == [("user", question), ANSWERED]


def test_what_is_left_out_of_an_exam_question_is_named() -> None:
    record = {
        "exam_type": "医师考试",
        "question": Q,
        "option": OPTIONS,
        "answer": "A",
        "question_type": "单选",
    }
    parsed = parse(record, Columns(), D)
    assert parsed.unused == {"exam_type": 4, "question_type": 2}
    assert parsed.layout == "question+option/answer"
    phrased = parse({"questions": [[Q, "头痛呢"]], "answers": [GOOD]}, Columns(), D)
    assert phrased.unused == {"questions[]": 3}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("nan", "the answer is missing"),
        ("NaN", "the answer is missing"),
        ("None", "the answer is missing"),
        (float("nan"), "the answer is missing"),
        ({"诊断": "感冒"}, "the answer is not a text"),
    ],
)
def test_an_answer_that_a_program_wrote_for_nothing_is_missing(answer: Any, expected: str) -> None:
    assert reason(one({"instruction": Q, "output": answer})) == expected


@pytest.mark.parametrize(
    "answer", ['["头痛", "发烧"]', '["头痛"]', "[1]", '[{"role": "药物", "value": "阿司匹林"}]']
)
def test_an_answer_that_is_a_json_list_stays_as_it_is(answer: str) -> None:
    """Extraction tasks answer so; only lists of turns are read as such."""
    assert turns(one({"instruction": Q, "output": answer})) == [ASKED, ("assistant", answer)]
    asked = one({"instruction": answer, "output": GOOD})
    assert turns(asked) == [("user", answer), ANSWERED]
    pair = one({"prompt": Q, "chosen": answer, "rejected": BAD}, R)
    assert isinstance(pair, Ranking)
    assert pair.answers == (answer, BAD)


def test_turns_in_the_cells_of_a_table_are_read() -> None:
    asked, good, bad = (json.dumps([said(*turn)]) for turn in (ASKED, ANSWERED, ("assistant", BAD)))
    assert turns(one({"prompt": asked, "completion": good})) == [ASKED, ANSWERED]
    pair = one({"prompt": asked, "chosen": good, "rejected": bad}, R)
    assert isinstance(pair, Ranking)
    assert (pair.prompt[0].content, pair.answers) == (Q, (GOOD, BAD))


def test_the_answer_none_in_chinese_is_one() -> None:
    assert turns(one({"instruction": "有无过敏史？", "output": "无"}))[1] == ("assistant", "无")


@pytest.mark.parametrize(
    ("key", "no", "yes"),
    [("weight", 0, 1), ("weight", 0.0, None), ("loss", False, True), ("train", False, True)],
)
def test_turns_marked_not_to_train_are_no_targets(key: str, no: Any, yes: Any) -> None:
    record = {
        "messages": [
            said("user", Q),
            said("assistant", BAD, **{key: no}),
            said("user", "再想"),
            said("assistant", GOOD, **({} if yes is None else {key: yes})),
        ]
    }
    found = one(record)
    assert isinstance(found, Dialogue)
    assert [turn.learn for turn in found.turns if turn.role == "assistant"] == [False, True]
    assert parse(record, Columns(), D).unused == {}
    assert reason(one(record, Kind.TEXT)).startswith("a turn is marked not to be trained on")


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"weight": 0}, "every answer is marked not to be trained on"),
        ({"weight": 0.5}, "weight of a turn is neither 0 nor 1"),
        ({"weight": "x"}, "weight of a turn is not a number"),
        ({"weight": 1, "loss": False}, "weight and loss of a turn contradict each other"),
        ({"loss": True, "train": False}, "loss and train of a turn contradict each other"),
        ({"train_detail": [{"begin_offset": 0, "train": False}]}, "a turn is to be learned in part"),
        ({"tool_calls": [{"name": "查询药品"}]}, "a turn calls a tool (tool_calls)"),
    ],
)
def test_turns_that_cannot_be_honoured_are_refused(more: dict[str, Any], expected: str) -> None:
    assert reason(one({"messages": [said("user", Q), said("assistant", GOOD, **more)]})).startswith(expected)


def test_tools_are_refused_by_name() -> None:
    talk = {"messages": [said("user", Q), said("assistant", GOOD)]}
    assert reason(one({**talk, "tools": '[{"name": "查询药品"}]'})).startswith("the record has tools")
    empty: list[Any] = ["", "[]", [], None]
    for nothing in empty:
        assert turns(one({**talk, "tools": nothing})) == [ASKED, ANSWERED]


@pytest.mark.parametrize(
    ("record", "answer"),
    [
        (
            {"messages": [said("user", Q), said("assistant", GOOD, reasoning_content="想")]},
            f"<think>\n想\n</think>\n\n{GOOD}",
        ),
        ({"question": Q, "answer": GOOD, "reasoning": "想"}, f"<think>\n想\n</think>\n\n{GOOD}"),
        (
            {"Question": Q, "Complex_CoT": "想", "Response": GOOD},
            f"## Thinking\n\n想\n\n## Final Response\n\n{GOOD}",
        ),
    ],
)
def test_thoughts_in_a_key_of_their_own_stay_with_the_answer(record: Any, answer: str) -> None:
    """As Qwen3's template and HuatuoGPT-o1's training code write them."""
    assert turns(one(record)) == [ASKED, ("assistant", answer)]
    assert parse(record, Columns(), D).unused == {}


@pytest.mark.parametrize(
    ("record", "answers", "ranks", "told"),
    [
        ({"prompt": Q, "answers": [BAD, GOOD], "scores": [1, 9]}, (BAD, GOOD), (1, 0), "highest best"),
        ({"prompt": Q, "answers": [BAD, GOOD], "scores": ["1", "9.5"]}, (BAD, GOOD), (1, 0), "highest best"),
        ({"prompt": Q, "answers": [BAD, GOOD], "ranks": [2, 1]}, (BAD, GOOD), (1, 0), "smallest best"),
        (
            {"prompt": Q, "answers": [BAD, GOOD], "ranks": [2, 1], "scores": [3, 3]},
            (BAD, GOOD),
            (1, 0),
            "smallest",
        ),
        (
            {"prompt": Q, "answers": [{"text": BAD, "score": 1}, {"text": GOOD, "score": 9}]},
            (BAD, GOOD),
            (1, 0),
            "highest best",
        ),
        (
            {"prompt": Q, "answers": [{"content": BAD, "rating": 1}, {"content": GOOD, "rating": 5}]},
            (BAD, GOOD),
            (1, 0),
            "highest best",
        ),
        (
            {"prompt": Q, "answers": ["甲", "乙", "丙"], "scores": [5, 7, 5]},
            ("甲", "乙", "丙"),
            (1, 0, 1),
            "highest",
        ),
        (
            {
                "instruction": Q,
                "completions": [
                    {"response": BAD, "overall_score": 2.0},
                    {"response": GOOD, "overall_score": 8.5},
                ],
            },
            (BAD, GOOD),
            (1, 0),
            "highest best",
        ),
        ({"query": Q, "responses": [BAD, GOOD], "scores": [-1.5, 0.2]}, (BAD, GOOD), (1, 0), "highest best"),
        ({"prompt": Q, "answers": [GOOD, BAD]}, (GOOD, BAD), (0, 1), "first best"),
        ({"instruction": Q, "input": "", "output": [GOOD, BAD]}, (GOOD, BAD), (0, 1), "first best"),
        ({"question": Q, "response_j": GOOD, "response_k": BAD}, (GOOD, BAD), (0, 1), "preference"),
        (
            {"prompt": Q, "chosen": [GOOD], "rejected": [BAD, "滚"]},
            (GOOD, BAD, "滚"),
            (0, 1, 1),
            "several answers",
        ),
        (
            {"prompt": Q, "chosen": GOOD, "rejected": BAD, "score_chosen": 8.0},
            (GOOD, BAD),
            (0, 1),
            "preference",
        ),
    ],
)
def test_the_order_of_answers_is_what_the_record_says(
    record: Any, answers: tuple[str, ...], ranks: tuple[int, ...], told: str
) -> None:
    found = one(record, R)
    assert isinstance(found, Ranking), found
    assert (found.answers, found.ranks) == (answers, ranks)
    assert told in parse(record, Columns(), R).layout


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (
            {"prompt": Q, "answers": [{"text": BAD, "rank": 2}, {"text": GOOD, "rank": 1}, {"text": "中"}]},
            "some of the answers have a rank and some have none",
        ),
        (
            {"prompt": Q, "answers": [{"text": BAD, "score": 2}, {"text": GOOD, "score": None}]},
            "some of the answers have a score and some have none",
        ),
        (
            {"prompt": Q, "answers": [BAD, GOOD], "ranks": [1, 2], "scores": [1, 9]},
            "ranks and scores order the answers differently",
        ),
        ({"prompt": Q, "answers": [BAD, GOOD], "scores": [1]}, "scores and answers are not equally many"),
        ({"prompt": Q, "answers": [BAD, GOOD], "scores": [1, "高"]}, "a score is not a number"),
        ({"prompt": Q, "answers": [BAD, GOOD], "scores": [2, 2]}, "all answers tie"),
        ({"prompt": Q, "responses": [BAD, GOOD]}, "the answers have neither ranks nor scores"),
        ({"questions": Q, "answers": [BAD, GOOD]}, "the answers have neither ranks nor scores"),
        (
            {"prompt": Q, "chosen": BAD, "rejected": GOOD, "score_chosen": 1, "score_rejected": 9},
            "score_chosen is less than score_rejected",
        ),
        (
            {"prompt": Q, "chosen": BAD, "rejected": GOOD, "chosen-rating": 4, "rejected-rating": 4},
            "chosen-rating equals rejected-rating",
        ),
        ({"prompt": Q, "chosen": BAD, "rejected": GOOD, "margin": -2}, "margin is negative"),
    ],
)
def test_no_order_is_guessed_where_a_guess_can_invert(record: Any, expected: str) -> None:
    assert reason(one(record, R)).startswith(expected)


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"query": Q, "response": GOOD, "answer": BAD}, "columns.response"),
        ({"question": Q, "prompt": "别的", "answer": GOOD}, "columns.prompt"),
        ({"instruction": Q * 2, "prompt": f"请回答：{Q * 2}", "output": GOOD}, "columns.prompt"),
        (
            {
                "messages": [said("user", Q), said("assistant", GOOD)],
                "conversations": [said("user", Q), said("assistant", BAD)],
            },
            "columns.messages",
        ),
        (
            {"instruction": f"Human:{Q}\nAssistant:{GOOD}\nHuman:还有呢？\nAssistant:", "output": GOOD},
            "roleMarks",
        ),
    ],
)
def test_of_two_readings_that_fit_none_is_taken_and_the_field_that_decides_is_named(
    record: Any, field: str
) -> None:
    found = one(record)
    assert isinstance(found, Rejected)
    assert field in found.reason
    assert found.code.name == "AmbiguousRecord"


def test_the_reading_is_told_in_one_line_of_the_job(bench: Bench) -> None:
    bench.source("own", "ranking", [{"prompt": Q, "answers": [BAD, GOOD], "scores": [1, 9], "note": "注"}])
    (counts,) = bench.build(Stage.RM, "own", validationFraction=0.0).counts
    assert counts_line(counts) == (
        "own: 1 read, 1 kept; read as answers by score, the highest best; not used: note (1 records, "
        "1 characters)"
    )


def test_scores_order_answers_that_columns_name() -> None:
    """Also where `columns` does not name them: they stand beside the answers."""
    record = {"q": Q, "ans": [BAD, GOOD], "scores": [1, 9], "s": [9, 1]}
    found = one(record, R, columns={"prompt": "q", "answers": "ans"})
    assert isinstance(found, Ranking)
    assert found.ranks == (1, 0)
    found = one(record, R, columns={"prompt": "q", "answers": "ans", "scores": "s"})
    assert isinstance(found, Ranking)
    assert found.ranks == (0, 1)
    # What is named counts, whatever else stands there.
    named = one(record, R, columns={"prompt": "q", "answers": "ans", "ranks": "scores"})
    assert isinstance(named, Ranking)
    assert named.ranks == (0, 1)
