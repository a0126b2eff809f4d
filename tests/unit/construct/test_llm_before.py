"""What is known and refused before anything is asked: prompts, costs, sources that are not de-identified."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.construct.llm_support import dialogue
from zhongjing.codes import language_model as codes
from zhongjing.config.sources import Kind, Storage
from zhongjing.construct.llm.batch import Desk
from zhongjing.construct.llm.consent import require_deidentified
from zhongjing.construct.llm.estimate import Assumptions, estimate
from zhongjing.construct.llm.expand import ExpandStep
from zhongjing.construct.llm.limits import Limits, Prices
from zhongjing.construct.llm.normalize import NormalizeStep
from zhongjing.construct.llm.prompt import load_prompt
from zhongjing.construct.llm.server import Server
from zhongjing.construct.manifest import Ancestor, SourceManifest, StepRecord
from zhongjing.data.records import Dialogue, Position, Record, TextRecord
from zhongjing.errors import ConfigError, LanguageModelError

DESK = Desk(Server("http://h/v1", "m"), Storage(uri="s3://bucket"), "s3://bucket/ledger", "work")


def manifest(*steps: str, parents: list[Ancestor] | None = None, complete: bool = True) -> SourceManifest:
    return SourceManifest(
        key="k",
        kind=Kind.DIALOGUE,
        steps=[StepRecord(name=name, version=1) for name in steps],
        inputs=[],
        input_digest="d",
        parents=parents or [],
        complete=complete,
        read=1,
        written=1,
        characters=1,
        parts=[],
        created="2026-01-01T00:00:00Z",
        code_version="0",
    )


def test_a_source_that_is_not_deidentified_is_refused() -> None:
    clean = manifest("deidentify").as_ancestor("s3://corpus/clean")
    raw = manifest("dedup").as_ancestor("s3://corpus/raw")
    require_deidentified(manifest("deidentify", "dedup"), "s3://a")
    require_deidentified(manifest("dedup", parents=[clean]), "s3://a")
    require_deidentified(None, "s3://a", accept_identifiable=True)
    for refused in (
        None,
        manifest("dedup"),
        manifest(parents=[clean, raw]),
        manifest(parents=[clean], complete=False),
    ):
        with pytest.raises(LanguageModelError) as caught:
            require_deidentified(refused, "s3://corpus/raw")
        assert (caught.value.code, caught.value.where) == (codes.NOT_DEIDENTIFIED, "s3://corpus/raw")


@pytest.mark.parametrize("name", ["normalize", "expand"])
def test_a_prompt_is_a_file_of_a_version(name: str) -> None:
    prompt = load_prompt(name, 1)
    assert (prompt.label, len(prompt.digest)) == (f"{name}-1", 64)
    step = NormalizeStep(DESK) if name == "normalize" else ExpandStep(DESK)
    messages = step.opening(dialogue(3))
    assert messages is not None
    for message in (*messages, *prompt.again("{}", "原因在此")):
        assert "{{" not in message["content"]
    assert "第3位" in messages[1]["content"]
    assert "原因在此" in prompt.again("{}", "原因在此")[1]["content"]


def test_a_prompt_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expand-1, judge-1, normalize-1") as caught:
        load_prompt("normalize", 9)
    assert caught.value.code is codes.UNKNOWN_PROMPT
    (tmp_path / "own-1.md").write_text("# 系统\n\n你好\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="each once"):
        load_prompt("own", 1, tmp_path)


def test_what_fills_a_prompt_is_not_filled_itself() -> None:
    messages = NormalizeStep(DESK).opening(dialogue(1, "{{longest}}是什么", "{{dialogue}}"))
    assert messages is not None
    assert "{{longest}}是什么" in messages[1]["content"]


def test_an_estimate_by_hand() -> None:
    """100 dialogues at known lengths; the slowest bound tells the hours."""
    records: list[Record] = [dialogue(0, "疼" * 40, "药" * 60) for _ in range(100)]
    records.append(TextRecord("课本", Position("b", "u", 0)))
    limits = Limits(concurrency=10, requests_per_minute=22, prices=Prices(2.0, 8.0, "CNY"))
    assumptions = Assumptions(growth=2.0, shortest_answer=10, failed_tries=0.1, seconds=6.0)
    found = estimate(records, NormalizeStep(replace(DESK, limits=limits)), assumptions)
    assert (found.records, found.asked, found.requests) == (101, 100, 110)
    # 100 Chinese characters a record, doubled; every tenth is asked for again.
    assert found.completion_tokens == round(100 * 200 * 1.1)
    assert found.prompt_tokens > 110 * 100
    assert found.money == pytest.approx((found.prompt_tokens * 2 + found.completion_tokens * 8) / 1e6)
    assert found.hours == pytest.approx(110 / 22 / 60)
    faster = replace(limits, requests_per_minute=None)
    by_seconds = estimate(records, NormalizeStep(replace(DESK, limits=faster)), assumptions)
    assert by_seconds.hours == pytest.approx(110 * 6 / 10 / 3600)


def test_only_terse_dialogues_are_counted_for_expand() -> None:
    data = os.environ.get("ZHONGJING_DATA")
    if data is None:
        pytest.skip("ZHONGJING_DATA names no folder")
    import json

    records: list[Record] = []
    with (Path(data) / "medical_qa_corpus.jsonl").open(encoding="utf-8") as file:
        for number, line in enumerate(file):
            row = json.loads(line)
            records.append(dialogue(number, str(row["问"]), str(row["答"])))
    step = ExpandStep(DESK)
    found = estimate(records, step)
    answers = [each.turns[1].content for each in records if isinstance(each, Dialogue)]
    terse = [answer for answer in answers if len(answer.strip()) <= step.terse]
    assert (found.records, found.asked) == (len(records), len(terse))
