"""The tutorial as it is printed, in order: from two files to a chat, on real parts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.local_support import end_supervisor
from zhongjing.backends.local.processes import python_path

PAGE = Path(__file__).parents[2] / "docs" / "tutorial.md"
_BLOCK = re.compile(r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)
# Enough steps to see that each stage learns from the files; the page's own take some minutes.
_EPOCHS = {"pretrain": 0.3, "sft": 0.3, "rm": 0.15, "ppo": 0.2}


def blocks(kind: str) -> list[tuple[str, str]]:
    """Titles and texts of the page's blocks of a kind."""
    return [
        (title, text)
        for found, title, text in _BLOCK.findall(PAGE.read_text(encoding="utf-8"))
        if found == kind
    ]


def commands() -> list[str]:
    """Every command, but the one that finds `zhongjing` in a checkout."""
    lines = [line for _, text in blocks("bash") for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("export ")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    place = tmp_path_factory.mktemp("tutorial")
    yield place
    if (place / "zhongjing-runs").exists():
        end_supervisor(place / "zhongjing-runs")


def run(folder: Path, command: str) -> str:
    """What a shell in ``folder`` says to a command."""
    search = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": search, "PYTHONPATH": python_path()}
    environment.pop("ZHONGJING_WORKDIR", None)
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_the_lines_that_the_page_shows_are_read(folder: Path) -> None:
    shown = dict(blocks("json"))
    for title, text in shown.items():
        json.loads(text)
        (folder / f"shown-{title}").write_text(text, encoding="utf-8")
    assert "kept         1" in run(folder, "zhongjing data inspect shown-doctors.jsonl")
    told = run(folder, "zhongjing data inspect shown-ranked.jsonl")
    assert "kept         1" in told
    assert "answers by rank, the smallest best: 1" in told


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_new_user_comes_from_two_files_to_a_chat(folder: Path) -> None:
    documents = dict(blocks("yaml"))
    document = yaml.safe_load(documents["my.yaml"])
    for stage, epochs in _EPOCHS.items():
        document["spec"]["stages"][stage]["epochs"] = epochs
    (folder / "my.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")

    told = {command: run(folder, command) for command in commands()}

    closing = told["zhongjing submit -f my.yaml --local"]
    assert all(f"{stage}" in closing for stage in ("pretrain", "sft", "rm", "ppo"))
    assert (folder / "curves" / "loss.png").is_file() or list((folder / "curves").glob("*.png"))
    assert (folder / "my-model" / "README.md").is_file()
    answer = told[next(command for command in commands() if "chat" in command)]
    assert answer.strip()
    again = told[next(command for command in commands() if "learningRate=1e-3" in command)]
    plan = dict(re.findall(r"^(?:# )?(pretrain|sft|rm|ppo) +(run|skip)", again, re.MULTILINE))
    assert plan == {"pretrain": "skip", "sft": "run", "rm": "skip", "ppo": "run"}


def test_the_real_base_of_the_page_is_a_valid_one() -> None:
    """Step 6 as a document: the fields that it names are there."""
    from zhongjing.config.resolve import parse_document, resolve

    documents = dict(blocks("yaml"))
    document = yaml.safe_load(documents["my.yaml"])
    document["spec"]["base"] = yaml.safe_load(documents[""])["base"]
    resolve(parse_document(yaml.safe_dump(document), "tutorial"))
