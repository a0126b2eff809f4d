"""data inspect and data example."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import user_document


def lines_of(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path


def test_inspect_tells_format_counts_and_what_would_be_quarantined(
    command: CommandLine, tmp_path: Path
) -> None:
    good = [{"instruction": f"问题{number}？", "output": "多喝水。"} for number in range(3)]
    lines_of(tmp_path / "talks.jsonl", *good, good[0], {"nothing": 1})
    result = command("data", "inspect", "talks.jsonl")
    assert result.exit_code == 2  # one of five is above the limit of 1 %
    assert "talks: dialogue, 5 records" in result.stdout
    assert "talks.jsonl: JSON lines, a record each, utf-8" in result.stdout
    assert "  duplicates   1 (left out)" in result.stdout
    assert "record 4, line 5" in result.stdout
    assert "a stage would stop" in result.stdout
    assert "多喝水" not in result.stdout


def test_inspect_as_json(command: CommandLine, tmp_path: Path) -> None:
    lines_of(tmp_path / "talks.jsonl", {"instruction": "问？", "output": "答。"})
    result = command("data", "inspect", "talks.jsonl", "-o", "json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert report["usable"] is True
    assert report["sources"][0]["kept"] == 1


def test_inspect_of_examples_and_of_a_document(command: CommandLine, tmp_path: Path) -> None:
    result = command("data", "inspect", "example://rankings?scale=0.01")
    assert result.exit_code == 0, result.output
    assert "rankings: ranking" in result.stdout
    data = user_document(stages=("sft",))
    data["spec"]["sources"][0]["uri"] = "example://dialogues?scale=0.01"
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(data))
    result = command("data", "inspect", "-f", "my.yaml")
    assert "sft: dialogue" in result.stdout
    assert command("data", "inspect", "example://no").exit_code == 2


def test_inspect_of_nothing(command: CommandLine) -> None:
    result = command("data", "inspect")
    assert result.exit_code == 2
    assert "there is nothing to inspect" in result.stderr
    result = command("data", "inspect", "gone.jsonl", "-o", "json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"] == "MissingInputError"


def test_example_writes_the_corpora_once(command: CommandLine, tmp_path: Path) -> None:
    result = command("data", "example", "made", "--scale", "0.01")
    assert result.exit_code == 0, result.output
    paths = [Path(line.split()[1]) for line in result.stdout.splitlines()]
    assert len(paths) == 7
    assert all(path.stat().st_size > 0 for path in paths)
    assert "synthetic" in (tmp_path / "made" / "README.md").read_text(encoding="utf-8").lower()
    again = command("data", "example", "made", "--scale", "0.01")
    assert again.exit_code == 2
    assert "the folder is not empty" in again.stderr
    assert command("data", "example", "made", "--scale", "0.01", "--force").exit_code == 0
