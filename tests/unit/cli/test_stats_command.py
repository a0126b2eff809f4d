"""data stats."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.unit.cli.conftest import CommandLine


@pytest.fixture
def corpora(tmp_path: Path) -> None:
    talk = [{"role": "user", "content": "头痛？"}, {"role": "assistant", "content": "休息。"}]
    dialogues = [
        {
            "messages": [*talk, {"role": "user", "content": f"还有{number}？"}, talk[1]],
            "department": "神经内科",
        }
        for number in range(3)
    ]
    dialogues += [{"messages": talk, "department": "内科"}]
    lines = [json.dumps(each, ensure_ascii=False) for each in dialogues]
    (tmp_path / "talks.jsonl").write_text("\n".join(lines))
    (tmp_path / "book.txt").write_text("第一章 总论\n发热是常见的症状。\n")


@pytest.mark.usefixtures("corpora")
def test_stats_shows_sizes_departments_and_turns_and_no_text(command: CommandLine) -> None:
    result = command("data", "stats", "talks.jsonl", "book.txt")
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert lines[0] == [
        "source",
        "kind",
        "departments",
        "size",
        "records",
        "characters",
        "turns",
        "multi-turn",
    ]
    assert lines[1][:3] == ["talks", "dialogue", "2"]
    assert lines[1][-2:] == ["7", "75.0%"]
    assert lines[2][:2] == ["book", "text"]
    assert lines[3][0] == "all"
    assert ["神经内科", "3", "75.0%", "#" * 30] in lines
    assert ["内科", "1", "25.0%", "#" * 10] in lines
    assert ["2", "3", "75.0%", "#" * 30] in lines
    assert "头痛" not in result.stdout


@pytest.mark.usefixtures("corpora")
def test_stats_as_json(command: CommandLine) -> None:
    result = command("data", "stats", "talks.jsonl", "-o", "json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["departments"] == {"神经内科": 3, "内科": 1}
    assert told["turns"] == {"1": 1, "2": 3}
    assert told["sources"][0]["records"] == 4
    assert told["sources"][0]["multiTurn"] == 3


def test_stats_of_a_damaged_file_ends_with_2(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    result = command("data", "stats", "empty.jsonl", "--kind", "dialogue")
    assert result.exit_code == 2
    assert "empty" in result.stderr
    assert command("data", "stats").exit_code == 2


@pytest.mark.usefixtures("corpora")
def test_scenarios_are_counted_and_all_is_drawn(command: CommandLine, tmp_path: Path) -> None:
    talks = [
        ("头痛怎么治？", "休息。"),
        ("吃什么药好？", "先检查。"),
        ("挂什么科？", "神经内科。"),
        ("你好", "您好。"),
    ]
    lines = [json.dumps({"instruction": asked, "output": told}, ensure_ascii=False) for asked, told in talks]
    (tmp_path / "asked.jsonl").write_bytes("\n".join(lines).encode("gb18030"))
    words = ("data", "stats", "asked.jsonl", "talks.jsonl", "--encoding", "gb18030")
    told = json.loads(command("data", "stats", "asked.jsonl", "--encoding", "gb18030", "-o", "json").stdout)
    assert told["scenarios"] == {"治疗方案": 1, "用药建议": 1, "就医建议": 1, "其他": 1}
    assert command(*words, "--picture", "no/where.svg").exit_code == 2
    result = command("data", "stats", "talks.jsonl", "book.txt", "--picture", "corpus.svg")
    assert result.exit_code == 0, result.output
    drawn = ElementTree.fromstring((tmp_path / "corpus.svg").read_text())
    shown = [each.text for each in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert {"Sources (bytes)", "Departments (dialogues)", "神经内科", "内科", "3  75.0%"} <= set(shown)
    assert "头痛" not in (tmp_path / "corpus.svg").read_text()
