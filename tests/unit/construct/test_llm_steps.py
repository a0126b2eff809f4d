"""The steps normalize and expand against real HTTP and real S3: faults, stored answers, money."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.unit.construct.llm_support import KEY_NAME, desk_at, dialogue, set_key
from tests.unit.construct.scripted_server import (
    Body,
    Fault,
    ScriptedServer,
    dialogue_of,
    error,
    inquiring,
    polite,
)
from zhongjing.codes import language_model as codes
from zhongjing.codes import storage as storage_codes
from zhongjing.config.sources import Kind, Source, Storage
from zhongjing.construct.llm.batch import Batch, Desk
from zhongjing.construct.llm.expand import ExpandStep
from zhongjing.construct.llm.ledger import StoredAnswer
from zhongjing.construct.llm.limits import Limits, Prices
from zhongjing.construct.llm.normalize import NormalizeStep
from zhongjing.construct.runner import construct
from zhongjing.construct.step import Outcome
from zhongjing.data.records import Dialogue, Position, Record, TextRecord
from zhongjing.errors import LanguageModelError, StorageError
from zhongjing.storage.objects import ObjectStore

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    set_key(monkeypatch)


def normalized(desk: Desk, records: list[Record]) -> tuple[list[Outcome], dict[str, Any]]:
    """Outcomes, and the report of a process that did just this."""
    with Batch(desk) as batch:
        outcomes = list(NormalizeStep(desk).apply_all(records, batch))
        report = batch.report()
    return outcomes, {name: getattr(report, name) for name in report.__slots__}


def text_of(outcome: Outcome) -> str:
    (record,) = outcome.records
    assert isinstance(record, Dialogue)
    return record.turns[-1].content


def cases(count: int) -> list[Record]:
    return [dialogue(number) for number in range(count)]


def test_answers_are_stored_and_never_asked_for_again(storage: Storage, store: ObjectStore) -> None:
    records = [*cases(12), TextRecord("课本", Position("b", "u", 0))]
    with ScriptedServer() as server:
        server.delay = 0.02
        desk = desk_at(server, storage)
        outcomes, report = normalized(desk, records)
        assert [each.records[0].position.index for each in outcomes[:12]] == list(range(12))
        assert (
            text_of(outcomes[3])
            == "您好，根据您的描述，布洛芬每次0.3g，一天2次，饭后服。请您注意休息，祝您早日康复。"
        )
        assert outcomes[12] == Outcome((records[12],), {"no dialogue": 1})
        assert (report["asked"], report["looked_up"], report["requests"]) == (12, 0, 12)
        assert 2 <= server.most_under_way <= 4
        again, report = normalized(desk, records)
        assert again == outcomes
        assert (report["asked"], report["looked_up"], report["requests"], report["repeated"]) == (0, 12, 0, 0)
        assert (report["prompt_tokens"], report["completion_tokens"]) == (12 * 200, 12 * 50)
        assert len(server.bodies) == 12
    answers = [
        store.get_record(info.uri, StoredAnswer) for info in store.list(f"{storage.uri}/ledger/answers")
    ]
    assert len(answers) == 12
    assert {(each.model, each.prompt, each.form) for each in answers} == {
        ("tiny-2026-08-06", "normalize-1", "schema")
    }
    stored = b"".join(store.get(info.uri) for info in store.list(storage.uri))
    assert b"sk-" not in stored


def test_records_that_are_the_same_are_one_question(storage: Storage) -> None:
    with ScriptedServer() as server:
        server.delay = 0.05
        outcomes, _ = normalized(desk_at(server, storage), [dialogue(1), dialogue(1), dialogue(1)])
        assert len(server.bodies) == 1
        assert len({text_of(each) for each in outcomes}) == 1


def flattering(body: Body) -> str:
    """Doubles the dose until it is told of it; an answer without the fault comes then."""
    if len(body["messages"]) > 2:
        assert "剂量" in body["messages"][-1]["content"]
        return polite(body)
    return polite(body).replace("0.3g", "0.6g")


def test_a_flattering_answer_that_changes_the_dose_is_asked_for_again(storage: Storage) -> None:
    with ScriptedServer(flattering) as server:
        (outcome,), _ = normalized(desk_at(server, storage), [dialogue(1)])
        assert "0.3g" in text_of(outcome)
        assert outcome.counts == {
            "answers": 2,
            "fault: dose added": 1,
            "normalized": 1,
            "prompt tokens": 400,
            "completion tokens": 100,
        }
        assert [message["role"] for message in server.bodies[1]["messages"]] == [
            *("system", "user", "assistant", "user")
        ]


def lying(body: Body) -> str:
    """Rewrites the patient's words, always."""
    turns = [{"turn": turn["turn"], "text": "我的病已经全好了，谢谢医生。"} for turn in dialogue_of(body)]
    return json.dumps({"replies": turns}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda body: polite(body).replace("0.3g", "0.6g"), "a dose that the original lacks"),
        (lying, "rewrites turns that are not the doctor's"),
        (lambda body: polite(body)[:-20], "no whole JSON"),
        (lambda _: '{"result": "ok"}', "not as asked for"),
        (lambda _: "", "empty"),
    ],
)
def test_a_fault_that_stays_ends_in_quarantine(storage: Storage, answer: Any, reason: str) -> None:
    with ScriptedServer(answer) as server:
        (outcome,), _ = normalized(desk_at(server, storage), [dialogue(1)])
        assert len(server.bodies) == 3
    assert outcome.records == ()
    assert outcome.quarantined is not None
    assert outcome.quarantined.code is codes.UNUSABLE_ANSWER
    assert reason in outcome.quarantined.reason
    assert "after 3 tries" in outcome.quarantined.reason
    assert outcome.quarantined.reason.isascii()


def test_a_refused_record_is_left_out_and_the_others_go_on(storage: Storage) -> None:
    def script(_: int, body: Body) -> Fault | None:
        return error(400, "content_filter") if "第2位" in body["messages"][1]["content"] else None

    with ScriptedServer(script=script) as server:
        outcomes, _ = normalized(desk_at(server, storage), cases(4))
    assert [len(each.records) for each in outcomes] == [1, 1, 0, 1]
    assert outcomes[2].quarantined is not None
    assert outcomes[2].quarantined.code is codes.REQUEST_REFUSED


@pytest.mark.parametrize("code", ["insufficient_quota", "model_not_found"])
def test_what_is_done_when_the_run_stops_is_kept(storage: Storage, code: str) -> None:
    def script(number: int, _: Body) -> Fault | None:
        if number < 10:
            return None
        return Fault(429 if code == "insufficient_quota" else 404, {"code": code})

    with ScriptedServer(script=script) as server:
        desk = desk_at(server, storage)
        with pytest.raises(LanguageModelError) as caught:
            normalized(desk, cases(40))
        assert caught.value.code in (codes.OUT_OF_FUNDS, codes.UNKNOWN_LANGUAGE_MODEL)
        assert 10 < len(server.bodies) <= 14  # no more than were under way
        server.script = None
        server.bodies.clear()
        outcomes, report = normalized(desk, cases(40))
    assert (len(outcomes), report["looked_up"], report["asked"], len(server.bodies)) == (40, 10, 30, 30)
    assert report["repeated"] == 0  # they were refused, not lost


def test_a_wrong_key_stops_and_the_right_one_goes_on(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer() as server:
        step = NormalizeStep(desk_at(server, storage))
        monkeypatch.setenv(KEY_NAME, "sk-wrong")
        with pytest.raises(LanguageModelError) as caught:
            step.apply(dialogue(1))
        assert caught.value.code is codes.API_KEY_REFUSED
        set_key(monkeypatch)
        # The step travels to other processes; what it has open does not.
        outcome = pickle.loads(pickle.dumps(step)).apply(dialogue(1))
        assert text_of(outcome).startswith("您好")
        assert step.report().asked == 1
        step.close()


def test_a_budget_is_kept_over_resumed_runs(storage: Storage) -> None:
    # 200 + 50 tokens an answer: 0.0003 each at these prices; a request may cost 0.006 at most.
    prices = Prices(prompt=1.0, completion=2.0)
    with ScriptedServer() as server:
        desk = desk_at(server, storage, limits=Limits(concurrency=2, budget=0.012, prices=prices))
        with pytest.raises(LanguageModelError) as caught:
            normalized(desk, cases(60))
        assert caught.value.code is codes.BUDGET_SPENT
        paid = len(server.bodies)
        assert 10 < paid < 40
        with pytest.raises(LanguageModelError):
            normalized(desk, cases(60))
        assert len(server.bodies) - paid == 0  # what was spent before counts
        richer = replace(desk, limits=replace(desk.limits, budget=1.0))
        _, report = normalized(richer, cases(60))
        assert (len(server.bodies), report["money"]) == (60, pytest.approx(60 * 0.0003))


def test_a_damaged_answer_is_said_and_not_paid_again(storage: Storage, store: ObjectStore) -> None:
    with ScriptedServer() as server:
        desk = desk_at(server, storage)
        normalized(desk, [dialogue(1)])
        (info,) = store.list(f"{storage.uri}/ledger/answers")
        store.put(info.uri, store.get(info.uri).replace("您好".encode(), "你好".encode()))
        with pytest.raises(StorageError) as caught:
            normalized(desk, [dialogue(1)])
        assert (caught.value.code, caught.value.where) == (storage_codes.DAMAGED_OBJECT, info.uri)
        assert len(server.bodies) == 1


def test_expand_makes_several_turns(storage: Storage) -> None:
    with ScriptedServer(inquiring) as server:
        desk = desk_at(server, storage)
        long = dialogue(1, "头疼怎么办", "请多休息，注意保暖。" * 10)
        with Batch(desk) as batch:
            outcomes = list(ExpandStep(desk).apply_all([dialogue(0), long], batch))
    first, second = outcomes
    (record,) = first.records
    assert isinstance(record, Dialogue)
    assert [turn.role for turn in record.turns] == ["user", "assistant"] * 2
    assert (record.turns[0], record.department) == (dialogue(0).turns[0], "神经内科")
    assert (first.counts["expanded"], first.counts["turns added"]) == (1, 2)
    assert second == Outcome((long,), {"not terse": 1})


def test_a_source_made_by_both_steps_is_asked_for_many_records_at_a_time(
    storage: Storage, store: ObjectStore
) -> None:
    """The runner gives a part to a step of this kind as a whole; a resumed run asks nothing."""

    def both(body: Body) -> str:
        return inquiring(body) if "doctor" in body["messages"][0]["content"] else polite(body)

    answer = "布洛芬0.3g，一天2次。"
    rows = [{"instruction": f"第{number}个问题，头疼怎么办？", "output": answer} for number in range(24)]
    data = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    store.put(f"{storage.uri}/raw/a.jsonl", data)
    source = Source(name="raw", uri=f"{storage.uri}/raw", kind=Kind.DIALOGUE)
    with ScriptedServer(both) as server:
        server.delay = 0.05
        desk = desk_at(server, storage)
        with pytest.raises(LanguageModelError) as caught:
            construct(store, source, [ExpandStep(desk)], f"{storage.uri}/one")
        assert (caught.value.code, server.bodies) == (codes.NOT_DEIDENTIFIED, [])
        desk = replace(desk, accept_identifiable=True)
        steps = [ExpandStep(desk), NormalizeStep(desk)]
        made = construct(store, source, steps, f"{storage.uri}/one")
        assert (made.read, made.written, made.quarantined) == (24, 24, {})
        assert made.counts["expand"]["expanded"] == made.counts["normalize"]["normalized"] == 24
        assert (made.has_passed("normalize"), len(server.bodies)) == (True, 48)
        assert server.most_under_way == 4
        again = construct(store, source, steps, f"{storage.uri}/two")
        assert len(server.bodies) == 48
        assert [part.digest for part in again.parts] == [part.digest for part in made.parts]
        notes = made.notes["normalize"]
        assert (notes["requests"], notes["repeatedAfterKills"], notes["retries"]) == (48, 0, {})
        assert (notes["promptTokens"], notes["cost"], notes["records"]) == (48 * 200, None, 24)
        assert notes["acceptIdentifiable"] is True
    line = json.loads(store.get(f"{storage.uri}/one/part-00000.jsonl").splitlines()[0])
    assert "您好，请问这种情况持续多久了" in json.dumps(line, ensure_ascii=False)


def test_a_forked_process_opens_its_own_batch() -> None:
    """In a process of its own: newer Pythons warn of a fork beside threads."""
    script = """
import os
from zhongjing.construct.llm import batch
batch._open["desk"] = None
pid = os.fork()
if pid == 0:
    os._exit(10 + len(batch._open))
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
os._exit(0 if (code, len(batch._open)) == (10, 1) else 1)
"""
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
