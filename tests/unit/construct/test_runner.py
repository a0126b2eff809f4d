"""Sources made by steps: layouts, parts, resume, refusals, lineage. On a real S3 server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.construct import own_steps
from tests.unit.construct.own_steps import Marked
from zhongjing.codes import construct as codes
from zhongjing.codes import data as data_codes
from zhongjing.config.sources import Kind, Source
from zhongjing.construct import parts
from zhongjing.construct.manifest import MANIFEST_NAME, find_manifest
from zhongjing.construct.runner import Progress, Told, construct, in_processes
from zhongjing.data.readers import read_object
from zhongjing.data.records import Dialogue, Record, Rejected
from zhongjing.errors import ConfigError, DataError
from zhongjing.storage.listing import stored_listing
from zhongjing.storage.objects import ObjectStore

ROOT = Path(__file__).parents[3]


def lines(count: int, *more: dict[str, str]) -> bytes:
    talks = [
        {"instruction": f"第{number}个问题？", "output": f"第{number}个回答", "department": "内科"}
        for number in range(count)
    ]
    return "".join(json.dumps(each, ensure_ascii=False) + "\n" for each in [*talks, *more]).encode()


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_RECORDS", own_steps.PART_RECORDS)


@pytest.fixture
def raw(store: ObjectStore, bucket_uri: str) -> Source:
    """40 dialogues and a bad line in two objects."""
    store.put(f"{bucket_uri}/raw/a.jsonl", lines(25, {"instruction": "坏"}))
    store.put(f"{bucket_uri}/raw/b.jsonl", lines(15))
    return Source(
        name="raw",
        uri=f"{bucket_uri}/raw",
        kind=Kind.DIALOGUE,
        max_quarantine_fraction=0.5,
        license="cc0-1.0",
    )


def contents(store: ObjectStore, folder: str) -> dict[str, bytes]:
    """All objects but the manifest, which says when it was written."""
    names = {info.uri.removeprefix(f"{folder}/"): store.get(info.uri) for info in store.list(folder)}
    return {name: data for name, data in names.items() if name != MANIFEST_NAME}


def read_all(store: ObjectStore, source: Source) -> list[Record | Rejected]:
    return [
        record
        for info in stored_listing(store, source.place)[0]
        for record in read_object(info.uri, source, store)
    ]


@pytest.mark.usefixtures("small_parts")
def test_a_source_is_made_in_parts_with_counts_and_read_back(
    store: ObjectStore, bucket_uri: str, raw: Source
) -> None:
    store.put(
        f"{bucket_uri}/raw/c.jsonl",
        lines(0, *({"instruction": f"{word}？", "output": "答"} for word in ("坏", "空", "弃"))),
    )
    out = f"{bucket_uri}/clean"
    told: list[Progress] = []
    manifest = construct(store, raw, [Marked()], out, listen=told.append)
    assert (manifest.read, manifest.written) == (44, 40)
    assert manifest.counts == {"marked": {"answers": 40, "left out": 1}}
    assert manifest.quarantined == {
        "marked: it asks for it": 1,
        "read: the dialogue has no answer": 1,
        "write: what the steps made of it cannot be used: a turn is empty": 1,
    }
    assert [part.uri.rpartition("/")[2] for part in manifest.parts] == [
        f"part-{number:05d}.jsonl" for number in range(6)
    ]
    assert find_manifest(store, out) == manifest
    assert (manifest.kind, manifest.license, manifest.complete) == (Kind.DIALOGUE, "cc0-1.0", False)
    # As a document would train on it: the folder, with what is noted beside the parts left out.
    found = read_all(store, raw.model_copy(update={"uri": out}))
    assert len(found) == 40
    first = found[0]
    assert isinstance(first, Dialogue)
    assert first.department == "内科"
    assert [turn.content for turn in first.turns] == ["第0个问题？", "第0个回答。"]
    assert all(isinstance(record, Dialogue) and len(record.turns) == 2 for record in found)
    line = json.loads(store.get(f"{out}/part-00000.jsonl").splitlines()[1])
    assert line["_origin"] == "0#1"
    assert told[-1].fraction == 1.0
    assert told[-1].records == 44
    fractions = [each.fraction for each in told]
    assert fractions == sorted(fractions)


@pytest.mark.usefixtures("small_parts")
def test_quarantine_has_places_and_text_only_where_it_is_asked_for(
    store: ObjectStore, bucket_uri: str, raw: Source
) -> None:
    store.put(f"{bucket_uri}/raw/c.jsonl", lines(0, {"instruction": "坏掉的话", "output": "答"}))

    def quarantine(out: str) -> list[dict[str, object]]:
        held = [data for name, data in contents(store, out).items() if "quarantine" in name]
        return [json.loads(line) for data in held for line in data.splitlines()]

    construct(store, raw, [Marked()], f"{bucket_uri}/without")
    entries = quarantine(f"{bucket_uri}/without")
    assert [(each["step"], each["index"], "text" in each) for each in entries] == [
        ("read", 25, False),
        ("marked", 0, False),
    ]
    asked = raw.model_copy(update={"keep_text": True})
    construct(store, asked, [Marked()], f"{bucket_uri}/with")
    assert "坏掉的话" in str(quarantine(f"{bucket_uri}/with")[1]["text"])


@pytest.mark.usefixtures("small_parts")
def test_what_is_complete_is_found_and_another_key_is_refused(
    store: ObjectStore, bucket_uri: str, raw: Source
) -> None:
    out = f"{bucket_uri}/clean"
    manifest = construct(store, raw, [Marked()], out)
    assert construct(store, raw, [Marked(pause=99)], out) == manifest
    for steps, change in (([Marked("！")], b""), ([Marked()], lines(1))):
        if change:
            store.put(f"{bucket_uri}/raw/d.jsonl", change)
        with pytest.raises(ConfigError) as caught:
            construct(store, raw, steps, out)
        assert caught.value.code is codes.OUTPUT_IN_USE
    store.put(f"{bucket_uri}/others/file.txt", b"x")
    for taken in ("others", "raw/below"):
        with pytest.raises(ConfigError) as caught:
            construct(store, raw, [Marked()], f"{bucket_uri}/{taken}")
        assert caught.value.code is codes.OUTPUT_IN_USE


@pytest.mark.usefixtures("small_parts")
def test_a_failing_step_names_the_place_and_no_text(store: ObjectStore, bucket_uri: str, raw: Source) -> None:
    store.put(f"{bucket_uri}/raw/c.jsonl", lines(0, {"instruction": "炸，病人张三", "output": "答"}))
    with pytest.raises(DataError) as caught:
        construct(store, raw, [Marked()], f"{bucket_uri}/clean")
    assert caught.value.code is codes.STEP_FAILED
    assert "c.jsonl line 1" in str(caught.value)
    assert "KeyError" in str(caught.value)
    assert "张三" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_a_source_with_too_many_bad_records_is_not_complete(
    store: ObjectStore, bucket_uri: str, raw: Source
) -> None:
    strict = raw.model_copy(update={"max_quarantine_fraction": 0.01})
    with pytest.raises(DataError) as caught:
        construct(store, strict, [Marked()], f"{bucket_uri}/clean")
    assert caught.value.code is data_codes.TOO_MANY_BAD_RECORDS
    assert find_manifest(store, f"{bucket_uri}/clean") is None
    # Nobody trains on half of a source: to a listing it is not there.
    assert store.exists(f"{bucket_uri}/clean/part-00000.jsonl")
    for uri in ("clean", "clean/", "clean/*.jsonl"):
        found, left_out = stored_listing(store, f"{bucket_uri}/{uri}")
        assert not found
        assert "not complete" in left_out[0]


@pytest.mark.usefixtures("small_parts")
def test_lineage_leads_back_to_the_raw_records(store: ObjectStore, bucket_uri: str, raw: Source) -> None:
    first = construct(store, raw, [Marked()], f"{bucket_uri}/first")
    again = raw.model_copy(update={"uri": f"{bucket_uri}/first"})
    second = construct(store, again, [Marked("！", name="again")], f"{bucket_uri}/second")
    assert second.complete
    assert [(each.key, each.uri) for each in second.parents] == [(first.key, f"{bucket_uri}/first")]
    assert second.has_passed("marked")
    assert second.has_passed("again")
    store.put(f"{bucket_uri}/first/added.jsonl", lines(1))
    third = construct(store, again, [Marked(name="again")], f"{bucket_uri}/third")
    assert not third.has_passed("marked")


@pytest.mark.usefixtures("small_parts")
def test_processes_make_the_same_bytes(store: ObjectStore, bucket_uri: str, raw: Source) -> None:
    construct(store, raw, [Marked()], f"{bucket_uri}/one")
    construct(store, raw, [Marked()], f"{bucket_uri}/two", work=in_processes(2))
    assert contents(store, f"{bucket_uri}/one") == contents(store, f"{bucket_uri}/two")


@pytest.mark.usefixtures("small_parts")
def test_killed_at_several_parts_it_resumes_to_the_same_bytes(
    store: ObjectStore, bucket_uri: str, raw: Source
) -> None:
    undisturbed = construct(store, raw, [Marked()], f"{bucket_uri}/undisturbed")
    out = f"{bucket_uri}/killed"
    command = [sys.executable, "-m", "tests.unit.construct.own_steps", raw.place, out, "0.05"]
    for part in (0, 2, 4):
        run = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
        deadline = time.monotonic() + 60
        while not store.exists(f"{out}/_made/part-{part:05d}.json"):
            assert run.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        run.send_signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL
        assert find_manifest(store, out) is None
    before = {info.uri: info.last_modified for info in store.list(out)}
    manifest = construct(store, raw, [Marked()], out)
    assert contents(store, out) == contents(store, f"{bucket_uri}/undisturbed")
    same = {"created": "", "parts": []}
    assert manifest.model_copy(update=same) == undisturbed.model_copy(update=same)
    kept = f"{out}/part-00000.jsonl"
    assert {info.uri: info.last_modified for info in store.list(out)}[kept] == before[kept]


def test_the_time_that_is_left_is_told_by_the_last_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A resumed run goes through stored answers in no time, and asks for the rest."""
    now = 0.0
    monkeypatch.setattr("zhongjing.construct.runner.time.monotonic", lambda: now)
    heard: list[Progress] = []
    told = Told(heard.append, 1000)
    part = parts.Part(0, 0, 1000)
    for fraction, seconds in (
        (0.0, 0),
        (0.5, 1),
        *((0.5 + step / 1000, 1 + 10 * step) for step in range(1, 61)),
    ):
        now = float(seconds)
        told.working(part, fraction)
    # A thousandth in ten seconds: 4,400 seconds for the rest, not 474.
    assert heard[-1].seconds_left == pytest.approx(4400, rel=0.01)
