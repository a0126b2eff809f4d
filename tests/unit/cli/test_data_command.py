"""data inspect and data example."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession, user_document
from zhongjing.data.records import Position, Rejected


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
    assert "record 5, line 5" in result.stdout
    assert "a stage would stop" in result.stdout
    assert "多喝水" not in result.stdout


def test_inspect_tells_of_rankings_whose_answers_all_tie(command: CommandLine, tmp_path: Path) -> None:
    answers = ["多喝水。", "多休息。"]
    good = [{"prompt": f"问题{i}？", "answers": answers, "ranks": [1, 2]} for i in range(3)]
    tied = {"prompt": "难题？", "answers": answers, "ranks": [1, 1]}
    lines_of(tmp_path / "ranked.jsonl", *good, tied)
    result = command("data", "inspect", "ranked.jsonl", "--kind", "ranking")
    assert result.exit_code == 0, result.stdout
    assert "1 (left out: there is nothing to compare)" in result.stdout
    lines_of(tmp_path / "ranked.jsonl", tied)
    assert command("data", "inspect", "ranked.jsonl", "--kind", "ranking").exit_code == 2


def test_inspect_of_an_empty_file_is_an_error(command: CommandLine, tmp_path: Path) -> None:
    for name, text in (("empty.csv", ""), ("blank.jsonl", "\n\n")):
        (tmp_path / name).write_text(text)
        result = command("data", "inspect", name, "--kind", "dialogue")
        assert result.exit_code == 2, name
        assert "error: the source is empty: it has no records" in result.stdout
        assert "written as" not in result.stdout


def test_the_encoding_of_a_bare_file_can_be_said(command: CommandLine, tmp_path: Path) -> None:
    text = "question,answer\n髋臼,髌骨\n"
    (tmp_path / "odd.csv").write_bytes(text.encode("gb18030"))
    result = command("data", "inspect", "odd.csv")
    assert result.exit_code == 2
    assert "odd: no record was read" in result.stdout
    assert "--encoding" in result.stdout
    result = command("data", "inspect", "odd.csv", "--encoding", "gb18030")
    assert result.exit_code == 0, result.stdout
    assert "odd: dialogue, 1 records" in result.stdout
    shown = command("data", "show", "odd.csv", "--encoding", "gb18030", "--text")
    assert "⟦髌骨" in shown.stdout, shown.output


def test_inspect_of_unknown_keys_names_them(command: CommandLine, tmp_path: Path) -> None:
    (tmp_path / "visits.csv").write_text("就诊号,患者提问,医生回复\n" + "1,头痛,休息\n2,发烧,喝水\n" * 3)
    result = command("data", "inspect", "visits.csv")
    assert result.exit_code == 2
    assert "就诊号" in result.stdout
    assert "`columns: {prompt: 患者提问, response: 医生回复}`" in result.stdout
    assert "written as" not in result.stdout
    assert "头痛" not in result.stdout


def test_inspect_says_where_rows_may_be_turns_of_one_visit(command: CommandLine, tmp_path: Path) -> None:
    rows = "".join(f"{number // 2},{number % 2 + 1},第{number}问,回答{number}\n" for number in range(8))
    (tmp_path / "visits.csv").write_text("就诊号,轮次,问题,答复\n" + rows)
    result = command("data", "inspect", "visits.csv")
    assert result.exit_code == 0, result.stdout
    assert "join no rows; write a visit as `messages`" in result.stdout


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
    assert len(paths) == 9
    assert all(path.stat().st_size > 0 for path in paths)
    assert {path.name for path in paths} >= {"kg.jsonl", "contradictions.jsonl"}
    assert "synthetic" in (tmp_path / "made" / "README.md").read_text(encoding="utf-8").lower()
    again = command("data", "example", "made", "--scale", "0.01")
    assert again.exit_code == 2
    assert "the folder is not empty" in again.stderr
    assert command("data", "example", "made", "--scale", "0.01", "--force").exit_code == 0


def own_document(tmp_path: Path, **limits: int) -> Path:
    """A document of a user's own: short and long dialogues and rankings, a tiny base."""
    talks: list[dict[str, object]] = [
        {"instruction": f"第{number}问：头痛怎么办？", "output": "多喝水，注意休息。"} for number in range(30)
    ]
    turns = [{"role": role, "content": "咳嗽三天了，夜里更重。" * 3} for role in ("user", "assistant")] * 3
    talks += [
        {"messages": turns},
        {"instruction": "长答？", "output": "答" * 400},
        {"instruction": "空", "output": ""},
    ]
    lines_of(tmp_path / "talks.jsonl", *talks, talks[0])
    ranked = [{"prompt": f"第{number}问", "answers": ["休息。" * 9, "不知道"]} for number in range(4)]
    lines_of(tmp_path / "ranked.jsonl", *ranked)
    data = {
        "metadata": {"name": "own"},
        "spec": {
            "base": {"tiny": {"vocabularySize": 600}},
            "sources": [
                {"name": "talks", "uri": "talks.jsonl", "kind": "dialogue", "maxQuarantineFraction": 0.5},
                {"name": "ranked", "uri": "ranked.jsonl", "kind": "ranking"},
            ],
            "stages": {
                "sft": {"data": [{"source": "talks"}], "maxLength": limits.get("sft", 64)},
                "rm": {"data": [{"source": "ranked"}], "maxLength": limits.get("rm", 256)},
            },
        },
    }
    path = tmp_path / "own.yaml"
    path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
    return path


def test_inspect_of_a_document_holds_lengths_against_each_stages_limit(
    command: CommandLine, tmp_path: Path
) -> None:
    own_document(tmp_path)
    found = json.loads(command("data", "inspect", "-f", "own.yaml", "-o", "json").stdout)
    sft, rm = found["stages"]
    assert (sft["stage"], sft["limit"]) == ("sft", "spec.stages.sft.maxLength (64)")
    counts, tokens = sft["sources"][0]["counts"], sft["sources"][0]["tokens"]
    assert counts["read"] == 34
    assert counts["kept"] == counts["train"] + counts["validation"] == 31
    assert (counts["truncated"], counts["tooLong"]) == (1, 1)
    assert (counts["duplicates"], counts["quarantined"]) == (1, 1)
    assert tokens["largest"] > 64 > tokens["median"]
    assert rm["warnings"] == []
    assert rm["sources"][0]["counts"]["kept"] == 4
    shown = command("data", "inspect", "-f", "own.yaml").stdout
    assert "sft    maxLength (64)" in shown
    assert "多喝水" not in shown


def test_inspect_warns_with_the_field_to_change(command: CommandLine, tmp_path: Path) -> None:
    own_document(tmp_path, sft=1024, rm=16)
    shown = command("data", "inspect", "-f", "own.yaml").stdout
    assert (
        "warning: rm: ranked: 4 of 4 records (100%) are dropped: their answers alone are longer than" in shown
    )
    assert "spec.stages.rm.maxLength (16); raise it" in shown
    assert "warning: sft" not in shown


def test_data_show_renders_training_examples_with_their_targets_marked(
    command: CommandLine, tmp_path: Path
) -> None:
    own_document(tmp_path)
    result = command("data", "show", "-f", "own.yaml", "--stage", "sft", "-n", "2", "--text")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("<|im_start|>user") == 2
    assert "第0问：头痛怎么办？<|im_end|>" in result.stdout
    assert "⟦多喝水，注意休息。<|im_end|>⟧" in result.stdout
    ranked = command("data", "show", "ranked", "-f", "own.yaml", "-n", "1", "--text").stdout
    assert "rank 1 (1 is the best)" in ranked
    assert "rank 2" in ranked
    assert "⟦" not in ranked, "answers are compared, not learnt"
    bare = command("data", "show", "talks.jsonl", "-n", "1", "--text").stdout
    assert "⟦多喝水，注意休息。<|im_end|>⟧" in bare


def test_data_show_shows_text_only_on_a_terminal_or_on_request(command: CommandLine, tmp_path: Path) -> None:
    own_document(tmp_path)
    result = command("data", "show", "-f", "own.yaml", "-n", "1")
    assert result.exit_code == 0
    assert "talks.jsonl, record 1, line 1" in result.stdout
    assert "of them targets" in result.stdout
    assert "头痛" not in result.output
    assert "--text" in result.stderr


def test_data_show_of_what_is_not_there(command: CommandLine, tmp_path: Path) -> None:
    own_document(tmp_path)
    assert "there is nothing to show" in command("data", "show").stderr
    result = command("data", "show", "talk", "-f", "own.yaml")
    assert result.exit_code == 2
    assert "there is: ranked, talks" in result.stderr
    result = command("data", "show", "-f", "own.yaml", "--stage", "ppo")
    assert "the document has no stage ppo\n  remedy: it has: sft, rm" in result.stderr
    assert command("data", "show", "gone.jsonl").exit_code == 2


def test_data_show_says_why_it_shows_nothing(command: CommandLine, tmp_path: Path) -> None:
    lines_of(tmp_path / "talks.jsonl", {"instruction": "问？", "output": "答。"})
    lines_of(tmp_path / "empty.jsonl")
    result = command("data", "show", "talks.jsonl", "--stage", "rm", "--text")
    assert result.exit_code == 2
    assert "of 1 records none can be shown as rm has them: 1 cannot be used" in result.stderr
    assert "remedy: these can be shown: --stage sft" in result.stderr
    assert "of 0 records none" in command("data", "show", "empty.jsonl", "--text").stderr
    result = command("data", "show", "example://rankings?scale=0.05", "--stage", "sft", "--text")
    assert "none can be shown as sft has them" in result.stderr
    assert "remedy: these can be shown: --stage rm" in result.stderr
    data = user_document(stages=("sft", "rm"))
    data["spec"]["sources"][0]["uri"] = "s3://b/far.jsonl"
    data["spec"]["sources"][1]["uri"] = str(
        lines_of(tmp_path / "near.jsonl", {"prompt": "问", "answers": ["a", "b"]})
    )
    (tmp_path / "far.yaml").write_text(yaml.safe_dump(data))
    result = command("data", "show", "-f", "far.yaml", "--text")
    assert result.exit_code == 2
    assert "no source of sft is a file of this machine" in result.stderr
    assert "remedy: these can be shown: --stage rm" in result.stderr


def test_a_target_that_moves_the_cursor_is_blanked(command: CommandLine, tmp_path: Path) -> None:
    lines_of(tmp_path / "odd.jsonl", *[{"instruction": "问？", "output": "\x1b[2J答。"}] * 3)
    result = command("data", "show", "odd.jsonl", "--text", "-n", "1")
    assert "[2J答。" in result.stdout
    assert "\x1b" not in result.stdout


def test_what_a_rehearsal_counts_is_what_the_job_counts(command: CommandLine, tmp_path: Path) -> None:
    """Both read, split and cut by the same code; here the sums are held together."""
    own_document(tmp_path)
    found = json.loads(command("data", "inspect", "-f", "own.yaml", "-o", "json").stdout)
    for stage in found["stages"]:
        for counts in (source["counts"] for source in stage["sources"]):
            lost = sum(counts[name] for name in ("tooLong", "duplicates", "leaks", "tied", "quarantined"))
            assert counts["read"] == counts["kept"] + lost


def test_data_quarantine_lists_places_and_reasons_without_text(
    command: CommandLine, session: MemorySession, workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = Rejected(Position("own", "s3://b/own.jsonl", 3, 5), "the answer is empty", "0" * 64, "私密")
    kept = {"s3://b/quarantine.jsonl": record.as_json().encode() + b"\n"}
    monkeypatch.setattr(session.store, "get", kept.__getitem__, raising=False)
    result = command("data", "quarantine", "s3://b/quarantine.jsonl", "--local")
    assert result.stdout == "s3://b/own.jsonl line 5: the answer is empty\n", result.output
