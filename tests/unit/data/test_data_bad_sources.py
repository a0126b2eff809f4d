"""Builds from sources that are bad, empty or missing, and what they put into quarantine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.published_tokenizers import write_tokenizer
from tests.unit.data import build_support
from tests.unit.data.build_support import QUARANTINE, Bench, qa
from tests.unit.data.support import MemoryStore
from zhongjing.codes import Code
from zhongjing.codes import data as codes
from zhongjing.config.stages import Stage
from zhongjing.data.encoding import RecordEncoder
from zhongjing.data.records import Position
from zhongjing.data.rejections import place
from zhongjing.errors import DataError, MissingInputError

# pytest takes a module's fixtures by their names in it.
bench = build_support.bench


def test_quarantine_above_the_limit_stops_and_says_where(bench: Bench) -> None:
    bad = [{"question": f"私密{i}", "answer": ""} for i in range(3)]
    bench.source("qa", "dialogue", qa(0, 97) + bad)
    with pytest.raises(DataError) as caught:
        bench.build(Stage.SFT, "qa")
    message = str(caught.value)
    assert "3 of 100 records (3.0%) of source qa" in message
    assert "1.0% are allowed" in message
    assert "the answer is empty (3, first: s3://b/qa line 98)" in message
    assert f"`zhongjing data quarantine {QUARANTINE}`" in message
    assert "私密" not in message
    assert len(bench.memory.get(QUARANTINE).splitlines()) == 3
    bench.sources[0]["maxQuarantineFraction"] = 0.03
    assert bench.build(Stage.SFT, "qa").counts[0].quarantined == 3
    bench.sources[0]["maxQuarantineFraction"] = 0.02
    with pytest.raises(
        DataError, match=r"2\.0% are allowed: the answer is empty \(3, first: s3://b/qa line 98"
    ):
        bench.build(Stage.SFT, "qa")


def test_rankings_that_order_nothing_are_left_out_and_no_fault_of_the_source(bench: Bench) -> None:
    good = [{"prompt": f"问题{i}", "answers": ["好的回答", "坏的回答"]} for i in range(20)]
    tied = [{"prompt": f"难题{i}", "answers": ["甲", "乙"], "ranks": [1, 1]} for i in range(10)]
    bench.source("ranked", "ranking", [*good, *tied])
    for _ in ("made", "found made"):
        counts = bench.build(Stage.RM, "ranked").counts[0]
        assert (counts.read, counts.kept, counts.tied, counts.quarantined) == (30, 20, 10, 0)
    lines = [json.loads(line) for line in bench.memory.get(QUARANTINE).splitlines()]
    assert {line["reason"] for line in lines} == {"all answers tie; there is nothing to compare"}
    assert [line["line"] for line in lines] == list(range(21, 31))
    bench.source("undecided", "ranking", tied)
    with pytest.raises(DataError, match="can be used; the answers of 10 all tie"):
        bench.build(Stage.RM, "undecided")


def test_text_is_kept_in_the_stages_quarantine_only_and_only_on_request(bench: Bench) -> None:
    bench.source("qa", "dialogue", [*qa(0, 200), {"question": "私密", "answer": ""}], keepText=True)
    ref = bench.build(Stage.SFT, "qa")
    assert json.loads(bench.memory.get(QUARANTINE))["text"] == '{"question": "私密", "answer": ""}'
    assert "text" not in json.loads(bench.memory.get(f"{ref.uri}/quarantine.jsonl"))


def test_nothing_left_to_train_on(bench: Bench) -> None:
    bench.source("exam", "dialogue", qa(0, 10), split="test")
    bench.source("same", "dialogue", qa(0, 10, "别"))
    with pytest.raises(
        DataError, match=r"nothing is left to train on: same: 10 read, 0 for training.*10 leaks"
    ):
        bench.build(Stage.SFT, "same")
    bench.source("empty", "dialogue", b"")
    with pytest.raises(DataError, match="source empty has no records") as caught:
        bench.build(Stage.SFT, "empty")
    assert caught.value.code is codes.EMPTY_SOURCE
    assert caught.value.where == "s3://b/empty"


def test_an_empty_source_beside_a_full_one_is_an_error(bench: Bench) -> None:
    bench.source("qa", "dialogue", qa(0, 20))
    bench.source("empty", "dialogue", b"\n\n")
    with pytest.raises(DataError, match="source empty has no records"):
        bench.build(Stage.SFT, "qa", "empty")


@pytest.mark.parametrize(
    ("stage", "kind", "records", "code", "reason"),
    [
        pytest.param(
            Stage.SFT,
            "dialogue",
            [{"text": "私密"}] * 3,
            codes.UNKNOWN_LAYOUT,
            "the record is plain text; the source is of kind dialogue (3, first: s3://b/bad line 1)",
            id="text as dialogue",
        ),
        pytest.param(
            Stage.RM,
            "ranking",
            qa(0, 3),
            codes.UNKNOWN_LAYOUT,
            "the record has no ranked answers (3, first: s3://b/bad line 1)",
            id="dialogue as ranking",
        ),
        pytest.param(
            Stage.SFT,
            "dialogue",
            [{"ask": "私密", "reply": "私密"}, {"ask": "私密", "reply": "私密", "b": 1}],
            codes.NO_GOOD_RECORD,
            "the dialogue has no answer; its keys are (ask, reply): "
            "write `columns: {prompt: ask, response: reply}` (1, first: s3://b/bad line 1); "
            "the dialogue has no answer; its keys are (ask, b, reply): "
            "write `columns: {prompt: ask, response: reply}` (1, first: s3://b/bad line 2)",
            id="questions only",
        ),
        pytest.param(
            Stage.SFT,
            "dialogue",
            [{"q": "私密", "a": "私密"}, {"q": "私密", "a": "私密", "b": 1}],
            codes.UNKNOWN_LAYOUT,
            "no known layout among its keys (a, q); "
            "write `columns: {prompt: q, response: a}` (1, first: s3://b/bad line 1); "
            "no known layout among its keys (a, b, q); "
            "write `columns: {prompt: q, response: a}` (1, first: s3://b/bad line 2)",
            id="unknown keys",
        ),
        pytest.param(
            Stage.SFT,
            "dialogue",
            [{"私密的问题，怎么办": "私密", "a": "私密"}] * 2,
            codes.UNKNOWN_LAYOUT,
            "no known layout among its keys (2, first: s3://b/bad line 1)",
            id="keys that are text",
        ),
        pytest.param(
            Stage.RM,
            "ranking",
            [{"prompt": f"私密{i}", "answers": ["私密"]} for i in range(4)],
            codes.TOO_FEW_ANSWERS,
            "only one answer is ranked; a comparison needs two (4, first: s3://b/bad line 1)",
            id="K = 1",
        ),
        pytest.param(
            Stage.RM,
            "ranking",
            [{"prompt": "私密", "answers": ["私密"]}, {"text": "私密"}],
            codes.NO_GOOD_RECORD,
            "only one answer is ranked; a comparison needs two (1, first: s3://b/bad line 1); "
            "the record is plain text; the source is of kind ranking (1, first: s3://b/bad line 2)",
            id="mixed reasons",
        ),
        pytest.param(
            Stage.SFT,
            "dialogue",
            b'{"question": "\xe7\xa7\x81", "answer": ""}\n[\n{\n}\n"\xe7\xa7\x81"\n',
            codes.NO_GOOD_RECORD,
            "; and 2 other reasons",
            id="five reasons",
        ),
    ],
)
def test_a_source_without_a_good_record_says_why(
    bench: Bench,
    stage: Stage,
    kind: str,
    records: bytes | list[Any],
    code: Code,
    reason: str,
) -> None:
    bench.source("bad", kind, records, maxQuarantineFraction=1.0)
    with pytest.raises(DataError) as caught:
        bench.build(stage, "bad")
    error = caught.value
    assert error.code is code
    assert error.where == "s3://b/bad"
    assert f"records of source bad (kind {kind}) can be used: " in error.message
    assert reason in error.message
    assert "私" not in str(error)
    assert QUARANTINE in error.remedy
    lines = [json.loads(line) for line in bench.memory.get(QUARANTINE).splitlines()]
    assert {line["line"] for line in lines} == set(range(1, len(lines) + 1))
    assert "私" not in json.dumps(lines, ensure_ascii=False)


def test_single_answers_among_rankings_are_quarantined_with_their_reason(bench: Bench) -> None:
    good = [{"prompt": f"问题{i}", "answers": ["好的回答", "坏的回答"]} for i in range(99)]
    bench.source("ranked", "ranking", [*good, {"prompt": "私密", "answers": ["私密"]}])
    counts = bench.build(Stage.RM, "ranked").counts[0]
    assert (counts.read, counts.quarantined, counts.kept) == (100, 1, 99)
    line = json.loads(bench.memory.get(QUARANTINE))
    assert (line["code"], line["line"]) == ("TooFewAnswers", 100)
    assert line["reason"] == "only one answer is ranked; a comparison needs two"


def test_a_place_is_a_line_or_a_record_counted_from_one() -> None:
    assert place(Position("a", "s3://b/a.jsonl", 7, 12)) == "s3://b/a.jsonl line 12"
    assert place(Position("a", "s3://b/a.parquet", 7)) == "s3://b/a.parquet record 8"


def test_a_source_without_a_listing_is_missing(bench: Bench) -> None:
    bench.source("qa", "dialogue", qa(0, 5))
    bench.frozen.clear()
    with pytest.raises(MissingInputError, match="qa"):
        bench.build(Stage.SFT, "qa")


def thoughts(start: int, count: int) -> list[dict[str, str]]:
    pairs = qa(start, count)
    return [
        {**pair, "answer": f"<think>\n想{i}\n</think>\n\n{pair['answer']}"} for i, pair in enumerate(pairs)
    ]


def test_a_template_that_cuts_answers_is_told_before_anything_is_tokenised(
    memory: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tokenizer(tmp_path, "r1-distill")
    bench = Bench(memory, tmp_path)
    bench.source("qa", "dialogue", qa(0, 97) + thoughts(97, 3))
    ranked = [
        {"prompt": "头痛", "answers": ["<think>\n想\n</think>\n\n多休息", f"多喝水{i}"]} for i in range(5)
    ]
    bench.source("ranked", "ranking", ranked)
    with monkeypatch.context() as patch:
        patch.setattr(RecordEncoder, "encode", lambda *_: pytest.fail("tokenised"))
        for stage, name, words in (
            (Stage.SFT, "qa", r"3 of 100 records \(3\.0%\) of source qa, 1\.0% are allowed"),
            (Stage.RM, "ranked", "5 of 5 records"),
        ):
            with pytest.raises(DataError, match=words) as caught:
                bench.build(stage, name)
            assert caught.value.code is codes.REWRITTEN_ANSWERS
            assert "想" not in str(caught.value)
    bench.sources[0]["maxQuarantineFraction"] = 0.03
    counts = bench.build(Stage.SFT, "qa").counts[0]
    assert (counts.quarantined, counts.kept) == (3, 97)
    lines = [json.loads(line) for line in bench.memory.get(QUARANTINE).splitlines()]
    assert {line["code"] for line in lines} == {"RewrittenAnswers"}
    assert [line["line"] for line in lines] == [98, 99, 100]


def test_what_a_template_does_to_answers_otherwise_is_counted(memory: MemoryStore, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, "qwen2.5-base")
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))
    settings["chat_template"] = settings["chat_template"].replace(
        "m.content", "m.content | replace('水', '')"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    bench = Bench(memory, tmp_path)
    bench.source("qa", "dialogue", qa(0, 10))
    with pytest.raises(DataError, match="the chat template cuts or rewrites an answer") as caught:
        bench.build(Stage.SFT, "qa")
    assert caught.value.code is codes.REWRITTEN_ANSWERS


def test_the_job_says_how_files_are_read_and_what_was_not_used(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.source("qa", "dialogue", [{**pair, "remark": "甲乙"} for pair in qa(0, 20)])
    with caplog.at_level("INFO", "zhongjing.data"):
        counts = bench.build(Stage.SFT, "qa").counts[0]
    assert (counts.unused["remark"].records, counts.unused["remark"].characters) == (20, 40)
    assert "source qa: s3://b/qa is read as JSON lines, a record each, utf-8" in caplog.messages
    assert "source qa: not used: remark (20 records, 40 characters)" in caplog.messages
