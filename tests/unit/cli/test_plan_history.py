"""plan --history: plan, peak and error of the results in a place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession, desired_state, manifest
from zhongjing.cli.display.summary import summary
from zhongjing.cli.display.view import view
from zhongjing.config.stages import Stage
from zhongjing.storage.manifest import MemoryUse, StageManifest

GIB = 2**30
GPU = MemoryUse(device="gpu", plan=61 * GIB, peak=60 * GIB, reserved=63 * GIB, host_plan=9, host_peak=8)


@pytest.fixture(autouse=True)
def runs(session: MemorySession, workdir: Path, monkeypatch: pytest.MonkeyPatch) -> MemorySession:
    store = session.store
    home = session.add(desired_state()) and session.layout("demo").home

    def keep(key: str, at: str, memory: MemoryUse | None, stage: Stage = Stage.SFT) -> None:
        made = manifest(stage, key=key, finished_at=f"2026-01-02T03:04:{at}.000Z", memory=memory)
        store.objects[f"{home}/{stage}/{key}/manifest.json"] = b""
        store.records[f"{home}/{stage}/{key}/manifest.json"] = made

    keep("b" * 16, "09", GPU)
    keep("a" * 16, "05", MemoryUse(device="cpu", plan=None, peak=GIB), Stage.RM)
    keep("c" * 16, "01", None)
    store.objects[f"{home}/sft/{'b' * 16}/checkpoints/step-00000001/manifest.json"] = b"a checkpoint's"

    def listed(prefix: str) -> Any:
        return [store.head(uri) for uri in store.objects if uri.startswith(f"{prefix}/")]

    monkeypatch.setattr(store, "list", listed, raising=False)
    return session


def test_the_last_runs_in_order(command: CommandLine) -> None:
    result = command("plan", "--history", "--local")
    assert result.exit_code == 0, result.output
    header, *rows = [line.split() for line in result.stdout.splitlines()]
    assert header == ["finished", "pipeline", "stage", "workers", "memory", "plan", "peak", "error"]
    assert [row[3] for row in rows] == ["rm", "sft"], "what was not measured is left out"
    assert rows[0][5:] == ["cpu", "-", "1.0", "GiB", "-"]
    assert rows[1][5:] == ["gpu", "61.0", "GiB", "60.0", "GiB", "+1.7", "%"]


def test_as_an_object(command: CommandLine) -> None:
    result = command("plan", "demo", "--history", "--local", "-o", "json")
    assert result.exit_code == 0, result.output
    last = json.loads(result.stdout)["runs"][-1]
    assert (last["pipeline"], last["stage"], last["key"]) == ("demo", "sft", "b" * 16)
    assert (last["plan"], last["peak"], last["reserved"]) == (61 * GIB, 60 * GIB, 63 * GIB)
    assert last["errorPercent"] == 1.67


def test_a_word_without_history_is_a_document(command: CommandLine) -> None:
    assert command("plan", "tiny").stdout == command("plan", "--recipe", "tiny").stdout
    result = command("plan", "demo")
    assert result.exit_code == 2
    assert "the recipes are: " in result.stderr
    assert "a FILE, --file or --recipe" in command("plan", "tiny", "--recipe", "tiny").stderr


def test_the_end_of_a_run_shows_both() -> None:
    lines = summary(view(desired_state(), None, {}), {Stage.SFT: manifest(Stage.SFT, memory=GPU)})
    assert lines[lines.index("memory of a worker") + 1] == "  sft      plan 61.0 GiB, peak 60.0 GiB"


def test_an_older_manifest_has_none() -> None:
    written = manifest(Stage.SFT).model_dump(mode="json")
    del written["memory"]
    assert StageManifest.model_validate(written).memory is None


def test_a_plan_measures_examples_and_says_that_cpus_need_no_gpus(command: CommandLine) -> None:
    result = command("plan", "tiny", "--gpus", "4xA100-80G")
    rows = {line.split()[0]: line for line in result.stdout.splitlines()[1:5]}
    assert "no limit known" in rows["rm"]
    assert all("," in rows[stage] for stage in ("pretrain", "sft", "rm")), "tokens, in thousands"
    assert "the document asks for CPUs" in result.stdout
    assert "--gpus 4xA100-80G does not count" in result.stdout
