"""Bad input through the real command line: each gets one clear answer, and leaves nothing half-written.

The tables stand in :mod:`tests.bad_input_cases`. What is refused before anything is started comes first, then
what only a store can tell; the last part damages a real run, and the tests of it share one workdir.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.bad_input_cases import DOCUMENT, EARLY, FILES, SMALL, STORES
from tests.bad_input_support import (
    Case,
    Place,
    Shell,
    check_people,
    check_programs,
    finish,
    listing,
)
from zhongjing.codes.code import BAD_INPUT

pytestmark = pytest.mark.integration


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def write_files(shell: Shell, case: Case) -> None:
    for name, content in {**FILES, **case.files}.items():
        file = shell.folder / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())


# Before anything is started


@pytest.mark.parametrize("case", EARLY, ids=str)
def test_refused_before_anything_starts(shell: Shell, case: Case) -> None:
    write_files(shell, case)
    before = listing(shell.folder)
    forms: list[tuple[str, ...]] = [(), ("-o", "json")] if case.json else [()]
    done = [
        shell.in_process(case.module, *case.arguments, *form, environment=case.environment) for form in forms
    ]
    assert done[0].stdout == case.said
    check_people(case, done[0])
    for each in done[1:]:
        check_programs(case, each)
    assert listing(shell.folder) == before  # so no workdir either
    assert listing(shell.temporary) == {}
    kept = 0 if case.exit_code == BAD_INPUT else len(forms)
    assert len(list((shell.state / "zhongjing" / "logs").glob("*"))) == kept
    assert shell.processes() == []


# Stores


def nobody() -> str:
    """An endpoint where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.mark.parametrize("case", STORES, ids=str)
def test_a_store_that_cannot_be_read(
    shell: Shell, s3_environment: dict[str, str], bucket_uri: str, case: Case
) -> None:
    names = {"bucket": bucket_uri, "nobody": nobody()}
    environment = {name: value.format(**names) for name, value in case.environment.items()}
    arguments = [word.format(**names) for word in case.arguments]
    done = [
        shell.in_process("zhongjing", *arguments, *form, environment={**s3_environment, **environment})
        for form in ((), ("-o", "json"))
    ]
    filled = Case(case.name, case.code, case.exit_code, [word.format(**names) for word in case.words])
    check_people(filled, done[0])
    check_programs(filled, done[1])
    assert s3_environment["AWS_SECRET_ACCESS_KEY"] not in done[0].stderr + done[1].stdout
    assert listing(shell.folder) == listing(shell.temporary) == {}


def test_a_local_run_whose_store_cannot_start(shell: Shell) -> None:
    case = Case(
        "a data folder that cannot be made",
        "UnusableFile",
        3,
        ["s3/data: the supervisor did not start", "File exists", "check the path"],
    )
    write_files(shell, case)
    (shell.folder / "zhongjing-runs" / "s3").mkdir(parents=True)
    (shell.folder / "zhongjing-runs" / "s3" / "data").write_text("in the way")
    before = set(listing(shell.folder))
    check_programs(case, shell("zhongjing.submit", "--local", "-f", "my.yaml", "-o", "json"))
    added = set(listing(shell.folder)) - before
    assert all(name.startswith("zhongjing-runs/") for name in added)
    assert not any(name.startswith("zhongjing-runs/pipelines/") for name in added)
    assert shell.processes() == []


# One workdir


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    place = Place(tmp_path_factory.mktemp("bad"))
    (place.folder / "small.yaml").write_text(SMALL)
    (place.folder / "my.yaml").write_text(DOCUMENT)
    for name in ("talks.jsonl", "ranked.jsonl"):
        (place.folder / name).write_text(FILES[name])
    yield place
    assert place.end() == []
    assert listing(place.temporary) == {}


@pytest.fixture
def up(place: Place) -> Place:
    """The same, its services running."""
    place.up()
    return place


def dead_supervisor() -> dict[str, Any]:
    return {"process": {"pid": 2**22 - 1, "started": "1"}, "ready": True, "s3_endpoint": "http://127.0.0.1:1"}


def another_program() -> dict[str, Any]:
    return {**dead_supervisor(), "process": {"pid": os.getpid(), "started": "1"}}


STALE: dict[str, Callable[[], str]] = {
    "of a process that is dead": lambda: json.dumps(dead_supervisor()),
    "of a process that is another program": lambda: json.dumps(another_program()),
    "that is cut": lambda: json.dumps(dead_supervisor())[:40],
}


@pytest.mark.parametrize("content", STALE.values(), ids=STALE)
def test_the_record_of_a_supervisor_that_is_gone(place: Place, content: Callable[[], str]) -> None:
    place.workdir.mkdir(exist_ok=True)
    (place.workdir / "supervisor.json").write_text(content())
    done = place.run("status")
    assert (done.returncode, done.stderr.strip()) == (0, "there are no pipelines here yet")
    assert place.record("supervisor.json")["process"]["pid"] != os.getpid()
    place.kill("supervisor.json")


def test_ports_that_are_taken(place: Place) -> None:
    place.up()
    place.kill("supervisor.json")
    place.kill("s3/server.json")
    taken = place.record("s3/ports.json")
    sockets = []
    for port in taken.values():
        other = socket.socket()
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        sockets.append(other)
    try:
        done = place.run("status")
    finally:
        for other in sockets:
            other.close()
    assert done.returncode == 0, done.stderr
    assert set(place.record("s3/ports.json").values()).isdisjoint(taken.values())
    assert f":{place.record('s3/ports.json')['s3']}" in place.record("environment.json")["AWS_ENDPOINT_URL"]


def test_a_source_of_another_store(place: Place) -> None:
    place.up()
    case = Case(
        "another store",
        "SourceNotFound",
        2,
        ["nothing is at s3://corpora/a.jsonl", "the store of its own workdir", "spec.sources.talks.uri"],
    )
    done = place.submit("-f", "my.yaml", "--set", "spec.sources.talks.uri=s3://corpora/a.jsonl")
    place.refuses(case, done)
    assert place.keys("demo/") == []
    assert not (place.workdir / "pipelines" / "demo").exists()


def wild(*more: str) -> tuple[str, ...]:
    """A pretraining whose learning rate explodes."""
    settings = {"learningRate": "10", "checkpoints": "{everySteps: 2, keep: 3}"}
    changes = ["metadata.name=wild", *(f"spec.stages.pretrain.{n}={v}" for n, v in settings.items()), *more]
    return ("-f", "small.yaml", "--stage", "pretrain", *(w for each in changes for w in ("--set", each)))


@pytest.fixture(scope="module")
def exploded(place: Place) -> dict[str, Any]:
    """What was told of the run with the learning rate that explodes; another document came while it began."""
    place.up()
    first = place.command("submit", "-o", "json", *wild())
    deadline = time.monotonic() + 120
    while not (place.workdir / "pipelines" / "wild").exists() and time.monotonic() < deadline:
        assert first.poll() is None
        time.sleep(0.05)
    others = [
        place.command("submit", "-o", "json", "-f", "my.yaml"),
        place.command("submit", "-o", "json", *wild("spec.stages.pretrain.maxLength=32")),
    ]
    refused = [finish(process) for process in others]
    for words, done in zip(
        (
            ["the pipeline wild runs in this workdir"],
            ["wild runs with another document", "maxLength: 64 -> 32"],
        ),
        refused,
        strict=True,
    ):
        case = Case("in use", "WorkdirInUse", 2, [*words, "here/runs", "zhongjing stop wild --local"])
        place.refuses(case, done)
    assert not (place.workdir / "pipelines" / "demo").exists()
    return place.refuses(EXPLODES, finish(first))


EXPLODES = Case(
    "a learning rate that explodes",
    "Diverged",
    1,
    ["step ", "last good checkpoint: step ", "lower learningRate"],
)


@pytest.mark.slow
def test_a_workdir_in_use_and_a_learning_rate_that_explodes(place: Place, exploded: dict[str, Any]) -> None:
    kept = place.checkpoints("wild", "pretrain")
    assert f"last good checkpoint: step {max(kept)}" in exploded["message"]
    assert [place.damage(checkpoint) for checkpoint in kept.values()] == [[]] * len(kept)
    assert not [key for key in place.keys("wild/pretrain/") if key.endswith("pretrain/manifest.json")]


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_used(place: Place, exploded: dict[str, Any]) -> None:
    kept = place.checkpoints("wild", "pretrain")
    last, before = sorted(kept, reverse=True)[:2]
    place.flip(f"{kept[last]['folder']}/{kept[last]['files'][0]['name']}")
    shown = place.refuses(EXPLODES, place.submit(*wild()))
    assert shown["message"] == exploded["message"]  # it went on from the one before, and came as far
    again = place.checkpoints("wild", "pretrain")
    assert again[last]["attempt"] == 2
    assert again[before]["attempt"] == 1
    assert place.damage(again[last]) == []
    log = place.run("logs", "wild", "--stage", "pretrain")
    assert "going back to the one before" in log.stdout


@contextlib.contextmanager
def file_system(folder: Path, size: str) -> Iterator[Path]:
    """A file system of its own for a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"file systems cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_without_room_before_the_start(shell: Shell) -> None:
    case = Case("no room", "DiskFull", 3, ["runs: the disk is full", "64.0Mi are free", "free some space"])
    write_files(shell, case)
    with file_system(shell.folder / "runs", "64m") as workdir:
        arguments = ("--local", "-f", "my.yaml", "--workdir", "runs", "-o", "json")
        check_programs(case, shell("zhongjing.submit", *arguments))
        assert {path.name for path in workdir.iterdir()} == {"logs"}
    assert shell.processes() == []


@pytest.fixture
def small_disk(up: Place) -> Iterator[Path]:
    """The scratch folder of the workdir on a file system of its own, which has room for one run."""
    with file_system(up.workdir / "scratch", "48m") as folder:
        yield folder


def fill(folder: Path) -> Path:
    """Fills the file system of a folder to the last byte."""
    file = folder / "filler"
    with file.open("wb", buffering=0) as stream:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    stream.write(b"\0" * size)
            except OSError:
                continue
    return file


SMALL_RUN = ("-f", "small.yaml", "--stage", "pretrain")


@pytest.mark.slow
def test_a_disk_that_fills_up(place: Place, small_disk: Path) -> None:
    running = place.command("submit", "-o", "json", *SMALL_RUN)
    deadline = time.monotonic() + 120
    while not place.checkpoints("small", "pretrain") and time.monotonic() < deadline:
        assert running.poll() is None, finish(running)
        time.sleep(0.05)
    filler = fill(small_disk)
    case = Case(
        "a full disk",
        "DiskFull",
        3,
        # A checkpoint's files are kept and written again, so it is the result that finds no room.
        ["the disk is full", "free some space"],
    )
    place.refuses(case, finish(running))
    kept = place.checkpoints("small", "pretrain")
    assert kept
    assert [place.damage(checkpoint) for checkpoint in kept.values()] == [[]] * len(kept)
    assert not [key for key in place.keys("small/pretrain/") if key.endswith("pretrain/manifest.json")]
    filler.unlink()
    done = place.submit(*SMALL_RUN)
    assert done.returncode == 0, done.stderr
    stage = json.loads(done.stdout)["stages"]["pretrain"]
    assert (stage["state"], stage["attempt"]) == ("Succeeded", 2)


@pytest.fixture(scope="module")
def result(place: Place) -> str:
    """Key of the manifest of a pretraining that is done."""
    place.up()
    done = place.submit(*SMALL_RUN)
    assert done.returncode == 0, done.stderr
    uri: str = json.loads(done.stdout)["stages"]["pretrain"]["manifestUri"]
    return uri.removeprefix("s3://zhongjing/")


@pytest.mark.slow
def test_a_damaged_model(place: Place, result: str) -> None:
    place.flip(result.replace("manifest.json", "model/model.safetensors"))
    case = Case("a damaged model", "DamagedObject", 3, ["model.safetensors", "--rerun pretrain"])
    place.refuses(case, place.submit("-f", "small.yaml", "--stage", "sft"))
    assert not [key for key in place.keys("small/sft/") if "/model/" in key or "/checkpoints/" in key]
    assert not [
        key for key in place.keys("small/sft/") if key.count("/") == 4 and key.endswith("manifest.json")
    ]


@pytest.mark.slow
def test_an_adapter_of_another_base(place: Place, result: str) -> None:
    made = next(key for key in place.keys("cache/bases/") if key.endswith("/config.json"))
    base = f"s3://zhongjing/{made.removesuffix('/config.json')}"
    (place.folder / "reward").mkdir()
    config = {"base_model_name_or_path": "./other", "peft_type": "LORA"}
    (place.folder / "reward" / "adapter_config.json").write_text(json.dumps(config))
    case = Case(
        "another base",
        "AdapterMismatch",
        2,
        [f"the reward model stands on ./other, the policy on {base}", "all four roles on one base"],
    )
    settings = ("metadata.name=foreign", f"spec.stages.ppo.from={base}", "spec.stages.ppo.reward=./reward")
    arguments = [word for each in settings for word in ("--set", each)]
    place.refuses(case, place.submit("-f", "my.yaml", "--stage", "ppo", *arguments))
    assert not [key for key in place.keys("foreign/ppo/") if key.endswith("manifest.json")]
