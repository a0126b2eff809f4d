"""The command line against a real API server, controller and Ray; only the stages' jobs are stand-ins."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from tests.cluster.controller_support import Place, place, ray_and_store
from tests.cluster.crd_support import with_crd
from tests.local_support import ZHONGJING
from zhongjing.backends.kubernetes.resources import PIPELINES
from zhongjing.backends.local.processes import wait_until
from zhongjing.backends.local.ray_head import RayHead
from zhongjing.cli.app import app
from zhongjing.config.stages import Stage
from zhongjing.pipeline.state import ConditionType
from zhongjing.storage.embedded import EmbeddedS3

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

RM = [Stage.RM]
SLOW = {"steps": 300, "step_seconds": 0.1}


class Terminal:
    """Gives command lines, in this process or as processes of their own."""

    def __init__(self, place: Place, folder: Path) -> None:
        self.place = place
        self.folder = folder

    def file(self, name: str, stages: Sequence[Stage] = RM, **fields: Any) -> Path:
        """A document in a file; its sources are in the bucket."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.place.document(name, stages, **fields)), encoding="utf-8")
        return path

    def __call__(self, *words: str | Path) -> Result:
        """Runs a command line here."""
        return CliRunner().invoke(app, [*map(str, words), "-n", self.place.api.namespace])

    def spawn(self, *words: str | Path) -> subprocess.Popen[str]:
        """Starts a command line elsewhere."""
        return subprocess.Popen(
            [*ZHONGJING, *map(str, words), "-n", self.place.api.namespace],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        )


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayHead, EmbeddedS3]]:
    with with_crd("default"), ray_and_store(tmp_path_factory.mktemp("services")) as found:
        yield found


@pytest.fixture
def here(services: tuple[RayHead, EmbeddedS3], tmp_path: Path) -> Iterator[Place]:
    with place(*services, tmp_path) as made:
        made.install(made.release)
        made.start()
        yield made


@pytest.fixture
def terminal(here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return Terminal(here, tmp_path)


def test_submit_follows_to_the_end_and_again_finds_nothing_to_do(here: Place, terminal: Terminal) -> None:
    file = terminal.file("whole", [Stage.SFT, Stage.RM], labels={"steps": 5})
    dry = terminal("submit", "-f", file, "--dry-run", "-o", "yaml")
    assert dry.exit_code == 0, dry.output
    assert here.pipelines.get("whole") is None
    printed = yaml.safe_load(dry.stdout)

    done = terminal("submit", "-f", file)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[:5] == [
        f"whole: runs in the namespace {here.api.namespace} (release zj)",
        "note: whether sft, rm fits is not known: the sizes of the base are not known here",
        "stage  plan  why",
        "sft    run   was never run",
        "rm     run   was never run",
    ]
    assert any(line.startswith("sft    succeeded") for line in lines)
    there = here.get("whole")
    assert there.holds(ConditionType.COMPLETE)
    # What the dry run printed is what was made.
    assert there.spec == printed["spec"]
    assert there.metadata["labels"] == printed["metadata"]["labels"]
    assert printed["metadata"]["namespace"] == here.api.namespace

    again = terminal("submit", "-f", file, "-o", "json")
    assert again.exit_code == 0, again.output
    said = json.loads(again.stdout)
    assert (said["condition"], said["exitCode"]) == ("Complete", 0)
    assert said["stages"]["rm"]["metrics"]
    assert here.get("whole").generation == there.generation
    assert here.starts("whole", Stage.RM) == ["a1"]

    shown = terminal("status", "whole")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[0] == "whole: Complete"
    logs = terminal("logs", "whole", "--stage", "rm")
    assert logs.exit_code == 0, logs.output
    assert logs.stdout.strip()
    stop = terminal("stop", "whole")
    assert stop.stdout == "whole: is complete, there is nothing to stop\n"


def test_two_terminals_submit_the_same_and_attach_to_one_run(here: Place, terminal: Terminal) -> None:
    file = terminal.file("shared", labels={"steps": 30, "step_seconds": 0.1})
    commands = [terminal.spawn("submit", "-f", file) for _ in range(3)]
    ends = [command.communicate(timeout=120) for command in commands]
    assert [command.returncode for command in commands] == [0, 0, 0], ends
    assert here.starts("shared", Stage.RM) == ["a1"]
    assert here.get("shared").generation == 1
    assert sum("run   was never run" in out for out, _ in ends) >= 1


def test_ctrl_c_leaves_the_run_going(here: Place, terminal: Terminal) -> None:
    command = terminal.spawn("submit", "-f", terminal.file("going", labels=SLOW))
    assert wait_until(lambda: here.pipelines.get("going") is not None, 60)
    here.wait("going", lambda each: each.is_active)
    command.send_signal(signal.SIGINT)
    out, err = command.communicate(timeout=20)
    assert command.returncode == 130, err
    namespace = here.api.namespace
    said, follow, stop = err.splitlines()
    assert said == "going: no longer followed; the run goes on"
    assert follow.endswith(f"zhongjing status going --watch -n {namespace}")
    assert stop.endswith(f"zhongjing stop going -n {namespace}")
    assert out.startswith(f"going: runs in the namespace {namespace}")
    assert not here.get("going").suspend
    # Somebody else who submits the same is attached to it.
    other = terminal("submit", "-f", terminal.file("going", labels=SLOW), "--no-wait")
    assert "going: runs already, attached to it" in other.stdout
    assert here.get("going").generation == 1
    # The commands that were named do what was said.
    watched = terminal.spawn("status", "going", "--watch")
    # Before its first step there is nothing to keep.
    here.wait("going", lambda each: (each.status.get("progress") or "0%") not in ("0%", "100%"))
    stopped = terminal("stop", "going")
    assert stopped.exit_code == 0, stopped.output
    assert "checkpoint" in stopped.stdout
    assert here.get("going").holds(ConditionType.SUSPENDED)
    out, err = watched.communicate(timeout=60)
    assert watched.returncode == 0, err
    assert "suspended" in out


def test_a_stopped_run_goes_on_from_its_checkpoint(here: Place, terminal: Terminal) -> None:
    file = terminal.file("pause", labels={"steps": 60, "step_seconds": 0.1})
    assert terminal("submit", "-f", file, "--no-wait").exit_code == 0
    here.wait("pause", lambda each: (each.status.get("progress") or "0%") not in ("0%", "100%"))
    assert terminal("stop", "pause").exit_code == 0
    suspended = here.get("pause")
    assert suspended.suspend
    assert suspended.holds(ConditionType.SUSPENDED)
    resumed = terminal("resume", "pause")
    assert resumed.exit_code == 0, resumed.output
    there = here.get("pause")
    assert there.holds(ConditionType.COMPLETE)
    assert "suspend" not in there.spec
    assert here.starts("pause", Stage.RM) == ["a1", "a2"]
    assert terminal("stop", "gone").exit_code == 2


def test_a_failed_run_says_why_and_the_same_command_tries_again(here: Place, terminal: Terminal) -> None:
    file = terminal.file("broken", labels={"fail_data": "rm"})
    failed = terminal("submit", "-f", file)
    assert failed.exit_code == 2, failed.output
    namespace = here.api.namespace
    *told, log = failed.stderr.splitlines()
    assert told == ["", "error[EmptySource]: rm: the corpus is empty", "  remedy: fill it"]
    assert log.endswith(f"zhongjing logs broken --stage rm -n {namespace}")
    here.api.patch(PIPELINES, "broken", {"metadata": {"labels": {"fail-data": "no"}}})
    # The document is the same; an explicit `suspend: false` is what makes a new generation of it.
    before = here.get("broken")
    again = terminal("submit", "-f", terminal.file("broken", labels={"fail_data": "no"}))
    assert again.exit_code == 0, again.output
    assert "rm     run   failed before, tries again" in again.stdout
    after = here.get("broken")
    assert {"suspend": False, **after.spec} == {"suspend": False, **before.spec}
    assert after.generation > before.generation
    assert here.starts("broken", Stage.RM) == ["a1", "a2"]


def test_local_files_travel_and_leave_no_trace_of_this_machine(
    here: Place, terminal: Terminal, tmp_path: Path
) -> None:
    document = here.document("mine", [Stage.SFT, Stage.RM])
    mine, yours = tmp_path / "mine", tmp_path / "yours"
    for folder in (mine, yours):
        (folder / "dialogues" / "more").mkdir(parents=True)
        (folder / "dialogues" / "a.jsonl").write_text(dialogue(1), encoding="utf-8")
        (folder / "dialogues" / "more" / "a.jsonl").write_text(dialogue(2), encoding="utf-8")
        (folder / "base").mkdir()
        (folder / "base" / "config.json").write_text('{"max_position_embeddings": 8192}', encoding="utf-8")
        document["spec"]["base"] = {"uri": str(folder / "base")}
        sources = {source["name"]: source for source in document["spec"]["sources"]}
        sources["dialogues"]["uri"] = str(folder / "dialogues")
        sources["rankings"]["uri"] = "example://rankings?scale=0.1"
        (folder / "doc.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
    dry = terminal("submit", "-f", mine / "doc.yaml", "--dry-run")
    assert "# note: the 4 local files" in dry.stdout
    uploads = f"{here.bucket}/{here.api.namespace}/uploads"
    assert not list(here.store.list(uploads))
    done = terminal("submit", "-f", mine / "doc.yaml")
    assert done.exit_code == 0, done.output
    assert "uploaded 4 of 4 local files" in done.stdout
    first = here.get("mine")
    assert str(tmp_path) not in json.dumps(first.raw)
    uris = {source["name"]: source["uri"] for source in first.spec["sources"]}
    assert re.fullmatch(rf"{uploads}/sets/[0-9a-f]{{16}}/", uris["dialogues"])
    assert re.fullmatch(rf"{uploads}/[0-9a-f]{{32}}/rankings.jsonl", uris["rankings"])
    assert first.spec["base"]["uri"].startswith(f"{here.bucket}/{here.api.namespace}/cache/bases/")
    stored = sorted(item.uri.removeprefix(uris["dialogues"]) for item in here.store.list(uris["dialogues"]))
    assert stored == ["a.jsonl", "more/a.jsonl"]
    # The same files in another folder are the same pipeline, and nothing is sent again.
    again = terminal("submit", "-f", yours / "doc.yaml")
    assert again.exit_code == 0, again.output
    assert "uploaded" not in again.stdout
    assert here.get("mine").generation == first.generation
    # Other content is another source: its stage runs again, the other one does not.
    (yours / "dialogues" / "a.jsonl").write_text(dialogue(3), encoding="utf-8")
    changed = terminal("submit", "-f", yours / "doc.yaml")
    assert "uploaded 2 of 4 local files" in changed.stdout  # a set is a folder of its own
    assert "rm     skip  is done" in changed.stdout
    assert changed.exit_code == 0, changed.output
    assert len(here.starts("mine", Stage.SFT)) == 2
    assert len(here.starts("mine", Stage.RM)) == 1


def test_a_local_file_that_is_still_to_be_made(here: Place, terminal: Terminal, tmp_path: Path) -> None:
    document = here.document("later", RM)
    file = tmp_path / "rankings.jsonl"
    document["spec"]["sources"][0] |= {"uri": str(file), "wait": True}
    written = tmp_path / "later.yaml"
    written.write_text(yaml.safe_dump(document), encoding="utf-8")
    waiting = terminal("submit", "-f", written)
    assert waiting.exit_code == 1, waiting.output
    assert "note: source rankings is not there yet" in waiting.stdout
    assert "rm: waiting for input" in waiting.stderr
    assert here.get("later").spec["sources"][0]["uri"].endswith("/uploads/awaited/later/rankings/")
    file.write_text(json.dumps({"prompt": "头痛", "answers": ["休息", "不知道"]}) + "\n", encoding="utf-8")
    done = terminal("submit", "-f", written)
    assert done.exit_code == 0, done.output


def test_refresh_data_lists_the_sources_anew(here: Place, terminal: Terminal) -> None:
    file = terminal.file("fresh")
    assert terminal("submit", "-f", file).exit_code == 0
    here.store.put(f"{here.bucket}/data/rankings.jsonl", b"more than before")
    kept = terminal("submit", "-f", file)
    assert "note: source rankings has changed since it was first used" in kept.stdout
    assert here.starts("fresh", Stage.RM) == ["a1"]
    taken = terminal("submit", "-f", file, "--refresh-data")
    assert taken.exit_code == 0, taken.output
    assert len(here.starts("fresh", Stage.RM)) == 2
    assert here.get("fresh").holds(ConditionType.COMPLETE)
    # Once is once.
    assert terminal("submit", "-f", file).exit_code == 0
    assert len(here.starts("fresh", Stage.RM)) == 2
    rerun = terminal("submit", "-f", file, "--rerun", "rm")
    assert rerun.exit_code == 0, rerun.output
    assert here.get("fresh").spec["reruns"] == {"rm": 1}
    assert len(here.starts("fresh", Stage.RM)) == 3


def test_what_a_running_stage_reads_cannot_be_changed_under_it(here: Place, terminal: Terminal) -> None:
    file = terminal.file("fixed", labels=SLOW)
    assert terminal("submit", "-f", file, "--no-wait").exit_code == 0
    here.wait("fixed", lambda each: each.status.get("stages", {}).get("rm", {}).get("state") == "Running")
    refused = terminal("submit", "-f", file, "--set", "spec.stages.rm.learningRate=3e-3")
    assert refused.exit_code == 2
    told, remedy = refused.stderr.splitlines()[:2]
    assert told == "error[StageRuns]: spec.stages.rm: rm runs, its settings cannot be changed"
    assert f"zhongjing stop fixed -n {here.api.namespace}, then submit" in remedy
    asked = terminal("submit", "-f", file, "--refresh-data")
    assert asked.exit_code == 2
    assert "its sources cannot be listed again" in asked.stderr
    stopped = terminal("stop", "fixed", "--now")
    assert stopped.exit_code == 0, stopped.output
    changed = terminal(
        "submit",
        "-f",
        file,
        "--set",
        "spec.stages.rm.learningRate=3e-3",
        "--set",
        "metadata.labels.steps='2'",
    )
    assert changed.exit_code == 0, changed.output
    assert here.get("fixed").spec["stages"]["rm"]["learningRate"] == 3e-3


def dialogue(number: int) -> str:
    record = {"instruction": f"第{number}个问题：头痛怎么办？", "output": "多休息，多喝水，必要时就医。"}
    return json.dumps(record, ensure_ascii=False) + "\n"
