"""The stage construct on real S3 and Ray: made, killed, suspended, skipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.local_support import end_supervisor, follow, submit
from tests.unit.construct.scripted_server import ScriptedServer
from zhongjing.backends.local.processes import marked, wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.backends.local.session import LocalSession
from zhongjing.config.stages import Stage
from zhongjing.construct.manifest import SourceManifest
from zhongjing.pipeline.state import StageState

RECORDS = 13000  # four parts


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalSession]:
    path = tmp_path_factory.mktemp("construct") / "runs"
    yield LocalSession.open(path, start=True, idle_seconds=120)
    end_supervisor(path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("raw") / "talks.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for number in range(RECORDS):
            phone = f"1381234{number % 10000:04d}"
            question = f"医生您好，我叫王小明，电话{phone}，第{number}次咨询足癣怎么治？"
            turns = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "常用特比萘芬。"},
            ]
            lines.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
    return file


def document(raw: Path, name: str, **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "training.zhongjing.dev/v1alpha1",
        "kind": "TrainingPipeline",
        "metadata": {"name": name},
        "spec": {
            "base": {"tiny": {}},
            "sources": [
                {
                    "name": "talks",
                    "kind": "dialogue",
                    "made": {"from": str(raw), "steps": ["deidentify"]},
                }
            ],
            "stages": {"sft": {"data": [{"source": "talks"}], "maxLength": 128}, "construct": {"retries": 3}},
            **spec,
        },
    }


def job(session: LocalSession) -> psutil.Process | None:
    for process in marked(RayHead(session.workdir.path).mark):
        if "jobs.construct" in process.cmdline():
            return process
    return None


def source_of(session: LocalSession, name: str) -> tuple[str, SourceManifest]:
    manifest = session.manifest(name, Stage.CONSTRUCT)
    assert manifest is not None
    uri = manifest.made["talks"].uri
    return uri, session.store.get_record(f"{uri}/_manifest.json", SourceManifest)


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_the_source_is_the_same(session: LocalSession, raw: Path) -> None:
    desired = submit(session, document(raw, "killed"), stages=[Stage.CONSTRUCT])
    made = f"{session.layout('killed').root}/local/sources"

    def parts() -> list[str]:
        return [each.uri for each in session.store.list(made) if "/_made/part-" in each.uri]

    with session.heartbeat():
        assert wait_until(lambda: bool(parts()), 120)
        process = job(session)
        assert process is not None
        process.kill()
    status = follow(session, desired)
    entry = status.stage(Stage.CONSTRUCT)
    assert (entry.state, entry.attempt) == (StageState.SUCCEEDED, 2), entry
    uri, source = source_of(session, "killed")
    assert (source.read, source.written) == (RECORDS, RECORDS)
    assert RECORDS in source.counts["deidentify"].values()
    text = b"".join(bytes(session.store.get(part.uri)) for part in source.parts)
    assert "王小明".encode() not in text
    assert b"1381234" not in text
    assert uri.startswith(made)
    # Another pipeline of the namespace finds it made.
    again = submit(session, document(raw, "other"), stages=[Stage.CONSTRUCT])
    assert follow(session, again).stage(Stage.CONSTRUCT).state is StageState.SUCCEEDED
    assert source_of(session, "other") == (uri, source)


@pytest.mark.slow
def test_what_a_model_writes_is_paid_once_though_the_job_is_killed(
    session: LocalSession, tmp_path: Path
) -> None:
    few = tmp_path / "few.jsonl"
    answer = "布洛芬每次0.3g，一天2次，饭后服。"
    rows = [{"instruction": f"第{number}个问题：头疼怎么办？", "output": answer} for number in range(200)]
    few.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    with ScriptedServer(key=None) as server:
        server.delay = 0.2
        user = document(few, "written")
        user["spec"]["sources"][0]["made"] = {
            "from": str(few),
            "steps": ["deidentify", "normalize"],
            "author": {"model": "tiny", "baseUrl": server.base_url, "keyVariable": None, "concurrency": 4},
        }
        desired = submit(session, user, stages=[Stage.CONSTRUCT])
        with session.heartbeat():
            assert wait_until(lambda: len(server.bodies) >= 50, 120)
            process = job(session)
            assert process is not None
            process.kill()
        entry = follow(session, desired).stage(Stage.CONSTRUCT)
        assert (entry.state, entry.attempt) == (StageState.SUCCEEDED, 2), entry
        repeated = server.seen.total() - len(server.seen)
    _, source = source_of(session, "written")
    assert source.written == source.counts["normalize"]["normalized"] == len(server.seen) == 200
    assert source.has_passed("deidentify")
    assert repeated <= source.notes["normalize"]["repeatedAfterKills"] <= 4
    assert source.notes["normalize"]["requests"] >= 200
    manifest = session.manifest("written", Stage.CONSTRUCT)
    assert manifest is not None
    assert manifest.extra["sources"]["talks"]["notes"] == source.notes


def test_what_is_made_is_skipped_and_other_steps_make_another(session: LocalSession, tmp_path: Path) -> None:
    few = tmp_path / "few.jsonl"
    turns = [{"role": "user", "content": "头痛？"}, {"role": "assistant", "content": "多休息。"}]
    few.write_text(json.dumps({"messages": turns}, ensure_ascii=False) + "\n", encoding="utf-8")
    user = document(few, "small")
    desired = submit(session, user, stages=[Stage.CONSTRUCT])
    status = follow(session, desired)
    assert status.stage(Stage.CONSTRUCT).state is StageState.SUCCEEDED
    assert session.progress("small", Stage.CONSTRUCT) is not None
    _, source = source_of(session, "small")
    assert [step.name for step in source.steps] == ["deidentify"]
    # Done before: nothing is submitted again.
    follow(session, submit(session, user, stages=[Stage.CONSTRUCT]))
    recorded = session.status("small")
    assert recorded is not None
    assert recorded.stage(Stage.CONSTRUCT).attempt == 1
    # Other steps make another source.
    user["spec"]["sources"][0]["made"]["policy"] = "s3://zhongjing/no/policy.yaml"
    failed = follow(session, submit(session, user, stages=[Stage.CONSTRUCT])).stage(Stage.CONSTRUCT)
    assert failed.state is StageState.FAILED
    assert "s3://zhongjing/no/policy.yaml" in failed.message


@pytest.mark.slow
def test_duplicates_and_what_a_test_set_has_go_before_other_steps(
    session: LocalSession, raw: Path, tmp_path: Path
) -> None:
    lines = raw.read_text(encoding="utf-8").splitlines()[:20]
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join([*lines, lines[3], lines[4]]) + "\n", encoding="utf-8")
    tests = f"{session.layout('unique').root}/tests/1.jsonl"
    session.store.put(tests, f"{lines[5]}\n".encode())
    user = document(few, "unique")
    user["spec"]["sources"][0]["made"] |= {"steps": ["dedup", "deidentify"], "against": [tests]}
    user["spec"]["sources"][0]["made"]["dedupThreshold"] = 1.0
    status = follow(session, submit(session, user, stages=[Stage.CONSTRUCT]))
    entry = status.stage(Stage.CONSTRUCT)
    assert entry.state is StageState.SUCCEEDED, entry
    _, source = source_of(session, "unique")
    assert [step.name for step in source.steps] == ["dedup", "deidentify"]
    assert (source.read, source.written) == (22, 19)
    counts = source.counts["dedup"]
    assert counts == {"equal: talks": 2, "leak (equal or opens alike): test-1": 1}
