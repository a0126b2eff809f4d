"""Machine ranking: both orders asked, what they differ on ties; lineage, refusal, and nothing paid twice."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.feedback_support import task, write_task_set
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from tests.unit.construct.scripted_server import KEY, Body, Fault, ScriptedServer
from zhongjing.construct.manifest import find_manifest
from zhongjing.feedback.machine import ranks_of
from zhongjing.storage.objects import ObjectStore

TEXTS = ("质量1", "质量3", "质量2", "质量0")


def shown(body: Body) -> tuple[str, str]:
    """The answers that are compared, in the order in which the judge sees them."""
    text = body["messages"][1]["content"]
    found = re.search(r"回答甲：\n\n(\".*\")\n\n回答乙：\n\n(\".*\")\n", text)
    assert found is not None
    return json.loads(found[1]), json.loads(found[2])


def verdict(better: str) -> str:
    return json.dumps({"why": "理由", "better": better}, ensure_ascii=False)


def by_quality(body: Body) -> str:
    """A judge that reads the quality that stands in the answers."""
    first, second = (text[:3] for text in shown(body))
    return verdict("tie" if first == second else "first" if first > second else "second")


@pytest.fixture
def session(store: ObjectStore) -> MemorySession:
    session = MemorySession()
    session.store = store
    return session


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with ScriptedServer(by_quality) as server:
        yield server


def words(server: ScriptedServer, bucket_uri: str, out: str = "ranked") -> tuple[str, ...]:
    judge = ("--judge", "tiny", "--base-url", server.base_url, "--concurrency", "2")
    where = (f"{bucket_uri}/tasks", f"{bucket_uri}/{out}", "--local", "--ledger", f"{bucket_uri}/ledger")
    return "feedback", "rank", *where, *judge


def rankings(store: ObjectStore, folder: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.get(f"{folder}/part-00000.jsonl").splitlines()]


def test_a_judge_ranks_and_the_lineage_says_so(
    command: CommandLine, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    tied = ("质量1", "质量2", "质量1。")
    same = ("质量1", "质量1。")
    tasks = [task(0, TEXTS), task(1, tied), task(2, same)]
    write_task_set(store, f"{bucket_uri}/tasks", tasks)
    result = command(*words(server, bucket_uri))
    assert result.exit_code == 0, result.output
    first, second = rankings(store, f"{bucket_uri}/ranked")
    assert (first["answers"], first["ranks"]) == (list(TEXTS), [3, 1, 2, 4])
    assert second["ranks"] == [2, 1, 2]
    assert first["prompt"][-1]["role"] == "user"
    manifest = find_manifest(store, f"{bucket_uri}/ranked")
    assert manifest is not None
    (step,) = manifest.steps
    assert (step.name, step.parameters["by"], step.parameters["model"]) == ("rank", "machine", "tiny")
    assert manifest.has_passed("deidentify")
    assert manifest.notes["rank"]["consistent"] == 1.0
    counts = manifest.counts["rank"]
    assert (counts["pairs"], counts["ranked"], counts["all tie"]) == (6 + 3 + 1, 3, 1)
    asked = len(server.bodies)
    assert counts["answers"] == asked == 12 + 6 + 2
    assert command(*words(server, bucket_uri, "again")).exit_code == 0
    assert len(server.bodies) == asked
    assert rankings(store, f"{bucket_uri}/again") == rankings(store, f"{bucket_uri}/ranked")
    # The abilities of Table 2, the more important first; nothing of how an answer came to be.
    prompt = server.bodies[0]["messages"][0]["content"]
    names = ["准确", "安全", "伦理", "理解", "清晰", "主动", "连贯", "一致", "温和"]
    places = [prompt.index(f"{number}. {name}：") for number, name in enumerate(names, 1)]
    assert places == sorted(places)
    assert "temperature" not in json.dumps(server.bodies[0]["messages"])


def test_a_judge_that_favours_a_place_orders_nothing(
    command: CommandLine, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    write_task_set(store, f"{bucket_uri}/tasks", [task(0, TEXTS)])

    def first_unless_worst(body: Body) -> str:
        return verdict("second" if shown(body)[0] == "质量0" else "first")

    server.answer = first_unless_worst
    assert command(*words(server, bucket_uri)).exit_code == 0
    (ranking,) = rankings(store, f"{bucket_uri}/ranked")
    assert ranking["ranks"] == [1, 1, 1, 2]
    manifest = find_manifest(store, f"{bucket_uri}/ranked")
    assert manifest is not None
    assert manifest.notes["rank"]["consistent"] == 0.5
    assert manifest.counts["rank"]["pairs: orders disagree"] == 3


def test_patients_text_is_not_sent_unless_accepted(
    command: CommandLine, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    write_task_set(store, f"{bucket_uri}/tasks", [task(0, TEXTS)], deidentified=False)
    refused = command(*words(server, bucket_uri))
    assert refused.exit_code == 2, refused.output
    assert "NotDeidentified" in refused.output
    assert not server.bodies
    plan = command(*words(server, bucket_uri), "--plan")
    assert (plan.exit_code, len(server.bodies)) == (1, 0)
    assert "refused" in plan.stdout
    assert command(*words(server, bucket_uri), "--accept-identifiable").exit_code == 0


def test_a_plan_counts_both_orders_of_every_pair(
    command: CommandLine, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    write_task_set(store, f"{bucket_uri}/tasks", [task(number, TEXTS) for number in range(10)])
    assert command(*words(server, bucket_uri)).exit_code == 0
    asked = len(server.bodies)
    result = command(*words(server, bucket_uri, "new"), "--plan", "-o", "json")
    assert result.exit_code == 0, result.output
    (asking,) = json.loads(result.stdout)["asking"]
    assert (asking["records"], asking["requests"]) == (10, 132)  # 12 each, and a tenth again
    assert len(server.bodies) == asked


def test_bad_input_is_named(
    command: CommandLine, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    assert "no task set here" in command(*words(server, bucket_uri)).output
    task_set = write_task_set(store, f"{bucket_uri}/tasks", [task(0, TEXTS)])
    where = f"{bucket_uri}/tasks", f"{bucket_uri}/ranked", "--local"
    assert "give --judge and --base-url" in command("feedback", "rank", *where, "--judge", "tiny").output
    store.put(f"{bucket_uri}/tasks/{task_set.parts[0].name}", b"{}\n")
    edited = command(*words(server, bucket_uri))
    assert edited.exit_code != 0
    assert "not what was written" in edited.output
    assert not server.bodies


def test_an_answer_that_never_fits_is_quarantined_and_counted(
    command: CommandLine, store: ObjectStore, bucket_uri: str, server: ScriptedServer
) -> None:
    write_task_set(store, f"{bucket_uri}/tasks", [task(0, TEXTS), task(1, ("坏", "质量1"))])

    def faulty(_: int, body: Body) -> Fault | None:
        return Fault(body='{"why": "", "better": "甲"}') if "坏" in shown(body) else None

    server.script = faulty
    result = command(*words(server, bucket_uri), "--tries", "2", "--max-unusable", "0.5")
    assert result.exit_code == 0, result.output
    assert len(rankings(store, f"{bucket_uri}/ranked")) == 1
    manifest = find_manifest(store, f"{bucket_uri}/ranked")
    assert manifest is not None
    assert manifest.counts["rank"]["fault: wrong schema"] == 4
    assert sum(manifest.quarantined.values()) == 1


def test_equal_points_tie() -> None:
    assert ranks_of([1.5, 3.0, 1.5, 0.0]) == (1, 0, 1, 2)
