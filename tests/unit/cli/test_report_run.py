"""What is packed of a run, read through a session: which objects, which logs, what is said of the rest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.fakes import (
    MemorySession,
    MemoryStore,
    desired_state,
    pipeline_status,
    stage_status,
)
from zhongjing.cli.reporting.bundle import Bundle
from zhongjing.cli.reporting.redact import Redactor
from zhongjing.cli.reporting.run import collect_run
from zhongjing.codes import storage as codes
from zhongjing.config.stages import Stage
from zhongjing.errors import NotFoundError, StorageError, StorageUnavailableError
from zhongjing.pipeline.state import StageState
from zhongjing.storage.objects import ObjectInfo

HOME = "s3://zhongjing/local/demo"
POINT = {"kind": "train", "step": 1, "time": "t", "epoch": 0.5, "values": {"loss": 2.5}}


class ListedStore(MemoryStore):
    """Lists what it has, reads ranges, and may be gone after some reads."""

    reads_left = 1000

    def list(self, uri: str) -> Iterator[ObjectInfo]:
        time = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
        for name, data in sorted(self.objects.items()):
            if name.startswith(f"{uri}/"):
                yield ObjectInfo(uri=name, size=len(data), etag="e", last_modified=time)

    def get_range(self, uri: str, start: int, length: int) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise StorageUnavailableError("no answer", code=codes.STORAGE_UNREACHABLE, where=uri)
        return self.objects[uri][start : start + length]


class LoggedSession(MemorySession):
    """Has no log but those that it is given."""

    def logs(
        self, pipeline: str, stage: Stage, *, follow: bool = False, attempt: int | None = None
    ) -> Iterator[str]:
        if stage not in self.log_lines:
            raise NotFoundError("no log was kept", code=codes.OBJECT_NOT_FOUND)
        yield from self.log_lines[stage]


@pytest.fixture
def session() -> LoggedSession:
    made = LoggedSession()
    made.store = ListedStore()
    made.add(desired_state())
    entry = stage_status(StageState.FAILED, attempt=3, submission_id="demo-0a1b2c3d-sft-a3")
    made.frames = [(pipeline_status({Stage.SFT: entry}), {})]
    return made


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path, Redactor())


def put(session: LoggedSession, name: str, value: Any) -> None:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    session.store.objects[f"{HOME}/{name}"] = data


def gaps(bundle: Bundle) -> dict[str, str]:
    return {gap.what: gap.why for gap in bundle.gaps}


def test_documents_are_packed_and_everything_else_is_listed(bundle: Bundle, session: LoggedSession) -> None:
    packed = [
        *("sft/current.json", "sft/k1/manifest.json", "sft/k1/progress.json", "sft/k1/requests/a1.json"),
        *("sft/k1/stop/a1.json", "sft/k1/checkpoints/step-00000008/manifest.json", "sft/k2/progress.json"),
    ]
    listed = [
        *("sft/k1/model/model.safetensors", "sft/k1/checkpoints/step-00000008/adamw.safetensors"),
        *(
            "sft/k1/model/config.json",
            "sft/k1/curves/loss.png",
            "sft/k1/checkpoints/step.json",
            "sft/k1/other.json",
        ),
    ]
    for name in (*packed, *listed):
        put(session, name, {"a": 1})
    collect_run(bundle, session, "demo", [])
    assert {name for name in bundle.names if name.startswith("run/")} == {f"run/{name}" for name in packed}
    listing = (bundle.folder / "objects.txt").read_text()
    for name in (*packed, *listed):
        assert f"             8  2026-01-02T03:04:05Z  {name}\n" in listing
    assert json.loads((bundle.folder / "pipeline.json").read_text())["pipeline"] == "demo"
    assert json.loads((bundle.folder / "status.json").read_text())["stages"]["sft"]["attempt"] == 3


@pytest.mark.parametrize("finished", [False, True])
def test_metrics_are_one_file(bundle: Bundle, session: LoggedSession, finished: bool) -> None:
    for number in range(3):
        line = json.dumps({**POINT, "step": number}).encode() + b"\n"
        put(session, f"sft/k1/metrics/part-{number:05d}.jsonl", line)
    if finished:
        put(session, "sft/k1/metrics.jsonl", json.dumps({**POINT, "step": 7}).encode() + b"\n")
    collect_run(bundle, session, "demo", [])
    lines = (bundle.folder / "run/sft/k1/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == ([7] if finished else [0, 1, 2])


def test_logs_of_every_attempt(bundle: Bundle, session: LoggedSession) -> None:
    put(session, "sft/k1/logs/driver-a1.log", b"one\n")
    put(session, "sft/k1/logs/traceback-a1.txt", b"Traceback\n")
    session.log_lines[Stage.SFT] = ["live"]
    collect_run(bundle, session, "demo", kept_drivers=["demo-0a1b2c3d-sft-a2"])
    found = [name for name in bundle.names if name.endswith((".log", ".txt")) and name.startswith("run/")]
    assert found == [
        "run/sft/driver-a3.log",
        "run/sft/k1/logs/driver-a1.log",
        "run/sft/k1/logs/traceback-a1.txt",
    ]
    assert (bundle.folder / "run/sft/driver-a3.log").read_text() == "live\n"


def test_a_log_that_nobody_kept_is_told(bundle: Bundle, session: LoggedSession) -> None:
    collect_run(bundle, session, "demo", [])
    assert list(gaps(bundle)) == [f"run/sft/driver-a{attempt}.log" for attempt in (1, 2, 3)]
    assert "no log of this attempt was kept" in gaps(bundle)["run/sft/driver-a1.log"]


def test_a_damaged_status_is_packed_as_it_lies_there(bundle: Bundle, session: LoggedSession) -> None:
    session.frames = [StorageError("the object is damaged", code=codes.DAMAGED_OBJECT)]
    put(session, "status.json", {"version": 9, "token": "t", "message": "by li@h.cn"})
    collect_run(bundle, session, "demo", [])
    packed = json.loads((bundle.folder / "status.json").read_text())
    assert packed == {"version": 9, "token": "<redacted>", "message": "by <e-mail>"}
    assert gaps(bundle) == {"status.json": "the object is damaged"}


def test_a_store_that_goes_away_ends_the_reading(bundle: Bundle, session: LoggedSession) -> None:
    for number in range(5):
        put(session, f"sft/k{number}/manifest.json", {"a": 1})
    session.store.reads_left = 2
    with pytest.raises(StorageUnavailableError):
        collect_run(bundle, session, "demo", [])
    assert session.store.reads_left == -1
    assert [name for name in bundle.names if name.startswith("run/")] == [
        f"run/sft/k{number}/manifest.json" for number in range(2)
    ]
