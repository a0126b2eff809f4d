"""config show and config schema."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import document, user_document
from zhongjing.cli.commands.config import equivalents


def test_show_fills_in_every_default(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(user_document()))
    result = command("config", "show", "my.yaml", "--set", "spec.seed=7")
    assert result.exit_code == 0, result.output
    shown = yaml.safe_load(result.stdout)
    assert shown["spec"]["seed"] == 7
    assert shown["spec"]["stages"]["sft"]["learningRate"] == 7e-5
    as_json = json.loads(command("config", "show", "my.yaml", "--set", "spec.seed=7", "-o", "json").stdout)
    assert as_json == shown


def test_show_says_what_is_wrong_and_where(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "my.yaml").write_text("spec:\n  seed: [1\n")
    result = command("config", "show", "my.yaml")
    assert result.exit_code == 2
    assert "my.yaml, line" in result.stderr
    data = user_document()
    data["spec"]["stages"]["sft"]["epoch"] = 1
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(data))
    result = command("config", "show", "my.yaml")
    assert result.exit_code == 2
    assert "spec.stages.sft.epoch" in result.stderr
    assert "did you mean 'epochs'" in result.stderr


def test_show_of_nothing(command: CommandLine) -> None:
    assert "no such file" in command("config", "show", "gone.yaml").stderr
    unknown = command("config", "show", "teeny")
    assert unknown.exit_code == 2
    assert "no such recipe" in unknown.stderr
    assert command("config", "show", "gone.yaml", "-o", "toml").exit_code == 2


def test_schema_is_json(command: CommandLine) -> None:
    schema = json.loads(command("config", "schema").stdout)
    assert "spec" in schema["properties"]


def test_batch_sizes_in_the_names_of_hugging_face() -> None:
    sft, rm = equivalents(document())
    assert sft.startswith(
        "sft in Hugging Face's names: per_device_train_batch_size=4 gradient_accumulation_steps=16 on 1"
    )
    assert "num_train_epochs=3 learning_rate=7e-05 lr_scheduler_type=cosine" in sft
    assert "per_device_train_batch_size=1 gradient_accumulation_steps=32" in rm


def test_brief_keeps_the_comments_of_the_recipe(command: CommandLine, tmp_path: Path) -> None:
    shown = command("config", "show", "tiny", "--brief")
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout.startswith("# ")
    assert len(shown.stdout.splitlines()) < len(command("config", "show", "tiny").stdout.splitlines())
    (tmp_path / "my.yaml").write_text(shown.stdout, encoding="utf-8")
    assert command("config", "show", "my.yaml", "--brief").stdout == shown.stdout
    assert command("config", "show", "my.yaml").stdout == command("config", "show", "tiny").stdout
    assert command("config", "show", "tiny", "--brief", "--set", "spec.seed=1").exit_code == 2
