"""What a shell completes, and help that stands as it was written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from zhongjing.cli.app import app
from zhongjing.cli.options import fields
from zhongjing.config.resolve import apply_overrides, recipe, resolve


def completed(*words: str) -> list[str]:
    """What bash is offered behind ``zhongjing`` and these words, the last one incomplete."""
    environment = {
        "_ZHONGJING_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(["zhongjing", *words]),
        "COMP_CWORD": str(len(words)),
    }
    result = CliRunner().invoke(app, [], env=environment, prog_name="zhongjing")
    assert result.exit_code == 0, result.output
    return result.stdout.split()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder, names in (("zhongjing-runs", ("tiny", "trial")), ("other", ("mine",))):
        for name in names:
            (tmp_path / folder / "pipelines" / name).mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["status", "t"], ["tiny", "trial"]),
        (["logs", "ti"], ["tiny"]),
        (["stop", "--workdir", "other", ""], ["mine"]),
        (["submit", "--pipeline", "tr"], ["trial"]),
        (["pull", "tiny/"], ["tiny/pretrain", "tiny/sft", "tiny/rm", "tiny/ppo"]),
        (["pull", "tri"], ["trial/pretrain", "trial/sft", "trial/rm", "trial/ppo"]),
        (["curves", "tiny/p"], ["tiny/pretrain", "tiny/ppo"]),
        (["submit", "--stage", "p"], ["pretrain", "ppo"]),
        (["logs", "tiny", "--stage", "r"], ["rm"]),
        (["submit", "--set", "spec.stages.sft.lea"], ["spec.stages.sft.learningRate="]),
        (["plan", "--set", "spec.bas"], ["spec.base."]),
        (["config", "show", "tiny", "--set", "s"], ["spec."]),
    ],
)
def test_completion_knows_pipelines_stages_and_set_paths(
    runs: Path, words: list[str], offered: list[str]
) -> None:
    assert completed(*words) == offered


def test_where_nothing_was_run_nothing_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert completed("status", "") == []
    assert list(tmp_path.iterdir()) == []


def test_every_path_that_is_offered_can_be_set() -> None:
    todo, leaves = ["spec."], list[str]()
    while todo:
        for path in fields(todo.pop()):
            (todo if path.endswith(".") else leaves).append(path)
    assert len(leaves) > 150
    document = resolve(recipe("tiny")).model_dump(mode="json")
    for path in leaves:
        if path.startswith("spec.stages."):
            here: Any = document
            for part in path.removesuffix("=").split("."):
                here = (here or {}).get(part, "missing") if isinstance(here, dict) or here is None else here
            assert here != "missing" or "mixture" in path or ".construct." in path, path
    assert (
        resolve(apply_overrides(recipe("tiny"), ["spec.stages.sft.lora.rank=4"])).spec.stages.sft is not None
    )
    assert fields("spec.stages.sft.learningRate=") == fields("nothing.") == fields("spec.seed.x") == []


def commands(command: Any, name: str = "zhongjing") -> list[tuple[str, Any]]:
    found = [(name, command)]
    for inner, each in getattr(command, "commands", {}).items():
        found += commands(each, f"{name} {inner}")
    return found


@pytest.mark.parametrize("name", [name for name, _ in commands(typer.main.get_command(app))])
def test_examples_of_the_help_keep_their_lines(name: str) -> None:
    words = name.split()[1:]
    epilog = dict(commands(typer.main.get_command(app)))[name].epilog or ""
    shown = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"}, prog_name="zhongjing").stdout
    lines = {line.strip() for line in shown.splitlines()}
    for line in epilog.splitlines():
        if line.startswith("  zhongjing "):
            assert line.strip() in lines, line
