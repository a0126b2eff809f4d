from __future__ import annotations

import json
from pathlib import Path
from typing import cast

import pytest

from tests.unit.data.support import MemoryStore, json_lines
from zhongjing.config.sources import Kind, Source
from zhongjing.data.inspect import expand, inspect_sources, lengths
from zhongjing.errors import MissingInputError
from zhongjing.pipeline.freeze import freeze_source
from zhongjing.storage.layout import Layout
from zhongjing.storage.objects import ObjectStore


def test_a_report_tells_everything_and_no_text(tmp_path: Path, tokenizer_folder: Path) -> None:
    records = [
        {"instruction": "问一", "output": "答一", "cate1": "内科"},
        {"instruction": "问一", "output": "答一", "cate1": "外科"},
        {"instruction": "问二", "output": "答二", "history": [["先问", "先答"]], "cate1": "nan"},
        {"instruct": "问一", "output": "另答"},
        {"instruction": "秘密", "output": ""},
        {"instruction": "问三", "output": "答三", "system": "系统"},
    ]
    path = tmp_path / "中文 Sample.json"
    path.write_bytes(json.dumps(records, ensure_ascii=False).encode("gb18030"))
    (report,) = inspect_sources([str(path)], tokenizer_folder=tokenizer_folder).sources
    assert report.kind is Kind.DIALOGUE
    assert [(o.format, o.encoding, o.size) for o in report.objects] == [
        ("json", "gb18030", path.stat().st_size)
    ]
    assert report.layouts == {"instruction/output": 4, "instruct/output": 1}
    assert (report.read, report.kept, report.duplicates, report.rejected) == (6, 4, 1, 1)
    assert report.same_opening == 1
    assert report.reasons == {"the answer is empty": 1}
    assert (report.examples[0].index, report.examples[0].line) == (4, 1)
    assert report.turns == {1: 3, 2: 1}
    assert report.with_system == 1
    assert report.departments == {"内科": 1}
    assert report.without_department == 3
    assert report.characters.total == 4 + 8 + 4 + 6
    assert report.tokens is not None
    assert report.tokens.total > report.characters.total
    assert report.over_limit
    assert "秘密" not in report.model_dump_json()


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (json_lines([{"prompt": "问", "chosen": "好", "rejected": "坏"}]), Kind.RANKING),
        (json_lines([{"prompt": "问", "answers": ["好", "坏"]}]), Kind.RANKING),
        (json_lines([{"prompt": "问"}]), Kind.PROMPTS),
        ("问题,答案1,排名1,答案2,排名2\n头痛,好,1,坏,2\n".encode(), Kind.RANKING),
        (json_lines([{"text": "正文"}]), Kind.TEXT),
        (json_lines([{"问": "问", "答": "答"}]), Kind.DIALOGUE),
        ("第一章\n传染病\n".encode(), Kind.TEXT),
        (b"department,title,ask,answer\na,b,c,d\n", Kind.DIALOGUE),
        (b"", Kind.TEXT),
    ],
)
def test_the_kind_of_a_bare_path_is_told_from_its_records(tmp_path: Path, content: bytes, kind: Kind) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    (report,) = inspect_sources([str(path)]).sources
    assert report.kind is kind
    assert report.rejected == 0


def test_rankings_tell_answers_and_ties(tmp_path: Path) -> None:
    path = tmp_path / "ranked.jsonl"
    records = [
        {"prompt": "问一", "answers": ["甲", "乙", "丙"], "ranks": [0, 1, 1]},
        {"prompt": "问二", "answers": ["甲", "乙"]},
        {"prompt": "问三", "answers": ["甲"]},
    ]
    path.write_bytes(json_lines(records))
    (report,) = inspect_sources([str(path)], kind=Kind.RANKING).sources
    assert report.answers == {2: 1, 3: 1}
    assert report.ties == 1
    assert report.rejected == 1


def test_a_damaged_object_is_an_error_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question": "q", "answer": "a"}]')
    (tmp_path / "b.json").write_text('[{"question": "q2", "answer": "a"}, {"que')
    result = inspect_sources([str(tmp_path / "*.json")])
    (report,) = result.sources
    assert report.error is not None
    assert "b.json" in report.error
    assert report.read == 2
    assert not result.usable


def test_sources_of_a_document_and_globs_in_a_store() -> None:
    memory = MemoryStore()
    for name in ("b", "a"):
        memory.put(f"s3://b/{name}.jsonl", json_lines([{"q": f"问{name}", "a": "答"}] * 3))
    store = cast("ObjectStore", memory)
    source = Source.model_validate(
        {
            "name": "s",
            "uri": "s3://b/*.jsonl",
            "kind": "dialogue",
            "columns": {"prompt": "q", "response": "a"},
        }
    )
    (report,) = inspect_sources([source], store=store).sources
    assert [o.uri for o in report.objects] == ["s3://b/a.jsonl", "s3://b/b.jsonl"]
    assert (report.read, report.kept, report.duplicates) == (6, 2, 4)
    (some,) = inspect_sources([source], store=store, max_records=2).sources
    assert some.read == 2


def test_what_is_not_there(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "none*"), "s3://b/x", "example://textbook"):
        with pytest.raises(MissingInputError):
            expand(uri)
    with pytest.raises(MissingInputError, match="nothing is there"):
        expand("s3://b/x", cast("ObjectStore", MemoryStore()))


def test_folders_are_alike_in_inspect_and_submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "corpus"
    (folder / "deep").mkdir(parents=True)
    memory = MemoryStore()
    data = ("a.jsonl", "deep/b.jsonl", "reading-room.txt")
    about = ("README.md", "LICENSE", "dataset_infos.json", "deep/readme_zh.txt")
    for name in (*data, *about, ".hidden.jsonl"):
        (folder / name).write_bytes(json_lines([{"question": f"问{name}", "answer": "答"}]))
        if not name.startswith("."):
            memory.put(f"s3://b/corpus/{name}", (folder / name).read_bytes())
    store = cast("ObjectStore", memory)
    source = Source(name="s", uri=str(folder), kind=Kind.DIALOGUE)
    for uri in (str(folder), f"{folder}/**", "s3://b/corpus", "s3://b/corpus/"):
        found, left_out = expand(uri, store)
        assert [name.partition("/corpus/")[2] for name in found] == list(data), uri
        assert sorted(left_out) == sorted(name.rpartition("/")[2] for name in about), uri
        frozen = freeze_source(store, Layout("s3://b/r", "n", "p"), source.model_copy(update={"uri": uri}))
        assert frozen is not None
        assert len(frozen.objects) == len(data)
    monkeypatch.chdir(tmp_path)
    (report,) = inspect_sources(["corpus"]).sources
    assert [one.uri for one in report.objects] == [f"corpus/{name}" for name in data]
    assert (report.kept, sorted(report.left_out)) == (
        3,
        ["LICENSE", "README.md", "dataset_infos.json", "readme_zh.txt"],
    )
    assert expand(f"{folder}/README.md") == ([f"{folder}/README.md"], []), "named by itself"


def test_lengths() -> None:
    found = lengths(list(range(1, 101)))
    assert (found.total, found.smallest, found.mean, found.median, found.p95, found.largest) == (
        5050, 1, 50.5, 51, 96, 100,
    )  # fmt: skip
    assert lengths([]).total == 0
