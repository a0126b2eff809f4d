"""The archive and what goes into it: tails of logs, clean documents, equal bytes for equal input."""

from __future__ import annotations

import errno
import gzip
import json
import os
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zhongjing.cli.reporting import streams
from zhongjing.cli.reporting.bundle import Bundle, Gap
from zhongjing.cli.reporting.redact import Identity, Redactor
from zhongjing.cli.reporting.secrets import Secret
from zhongjing.cli.reporting.streams import Readable, joined, local_file, pieces, tail
from zhongjing.cli.reporting.structured import clean, metric_line, quarantine_line
from zhongjing.codes.storage import DISK_FULL, STORAGE_UNREACHABLE
from zhongjing.errors import StorageError, StorageUnavailableError

SECRET = "s3cr3t/of+the=run"
REDACTOR = Redactor([Secret("TOKEN", SECRET)], Identity(homes=["/home/li"], users=["li"], hosts=["node-1"]))
PROMPT = "你是一名经验丰富的中医医生，请用通俗的语言回答患者的问题。"


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    folder = tmp_path / "spool"
    folder.mkdir()
    return Bundle(folder, REDACTOR)


def written(bundle: Bundle, name: str) -> str:
    return (bundle.folder / name).read_text(encoding="utf-8")


def of(data: bytes) -> Readable:
    return Readable(len(data), lambda start, length: data[start : start + length])


# Pieces and tails


def test_pieces_are_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    data = "".join(f"第{number} line\n" for number in range(500)).encode() + b"no end"
    for size in (1, 7, 64, 4096):
        monkeypatch.setattr(streams, "PIECE", size)
        got = list(pieces(of(data)))
        assert "".join(piece.text for piece in got).encode() == data + b"\n"
        assert all(piece.text.endswith("\n") and not piece.cut for piece in got)


def test_no_more_than_a_piece_is_held() -> None:
    asked: list[int] = []

    def read(start: int, length: int) -> bytes:
        asked.append(length)
        return b"x" * length

    endless = Readable(200 * 2**20, read)  # one line
    texts = [len(piece.text) for piece in pieces(endless)]
    assert texts == [streams.LONGEST_LINE]
    assert max(asked) == streams.PIECE


def test_after_a_line_that_is_too_long_the_next_is_whole(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "PIECE", 4096)
    monkeypatch.setattr(streams, "LONGEST_LINE", 20_000)
    bundle.log("a.log", of(b"one\n" + b"x" * 30_000 + SECRET.encode() + b"\ntwo\n"))
    first, second, third = written(bundle, "a.log").splitlines()
    assert (first, third) == ("one", "two")
    assert second.strip("x") == "<the rest of the line is cut>"


def test_a_tail_begins_with_a_line() -> None:
    data = b"".join(b"line %d\n" % number for number in range(1000))
    for limit in range(1, 60):
        end = tail(of(data), limit)
        text = "".join(piece.text for piece in end.pieces).encode()
        assert data.endswith(text)
        assert len(text) <= limit
        assert len(text) > limit - len(b"line 999\n")
        assert end.cut == len(data) - len(text)
    assert tail(of(data), len(data)).cut == 0


def test_the_tail_of_one_long_line_is_empty() -> None:
    end = tail(of(b"x" * 5000), 100)
    assert (end.cut, list(end.pieces)) == (5000, [])


def test_a_tail_that_begins_within_a_key_block(bundle: Bundle) -> None:
    block = b"-----BEGIN PRIVATE KEY-----\n" + b"TUlJRXBBSUJBQUtDQVFFQTEyMzQ1Njc4OTBhYmNkZWY=\n" * 20
    data = b"line\n" * 100 + block + b"-----END PRIVATE KEY-----\nlast line\n"
    for limit in range(20, 900, 37):
        bundle.log("a.log", of(data), limit)
        text = written(bundle, "a.log")
        assert "TUlJ" not in text
    assert "last line" in text


def test_a_log_that_shrinks_while_it_is_read(bundle: Bundle) -> None:
    bundle.log("a.log", Readable(10_000_000, lambda start, length: b"line\n"[start : start + length]))
    assert bundle.names == ["a.log"]


def test_the_cut_of_a_log_is_told(bundle: Bundle) -> None:
    bundle.log("a.log", of(b"line\n" * 1000), 100)
    assert written(bundle, "a.log").splitlines()[0] == "<the first 4900 of 5000 bytes are cut>"
    assert bundle.gaps == [Gap("a.log", "the first 4900 of 5000 bytes are cut")]


def test_parts_are_read_as_one() -> None:
    parts = [b"abc", b"", b"defgh", b"i"]
    whole = joined([of(part) for part in parts])
    for start in range(10):
        for length in range(1, 11):
            assert whole.read(start, length) == b"abcdefghi"[start : start + length]


def test_a_live_log_keeps_its_end(bundle: Bundle) -> None:
    bundle.live_log("a.log", (f"step {number} {SECRET}" for number in range(10_000)), limit=4000)
    lines = written(bundle, "a.log").splitlines()
    assert lines[-1] == "step 9999 <redacted:TOKEN>"
    assert 50 < len(lines) < 200
    assert bundle.gaps[0].why.startswith("the first ")


# Documents


def test_a_manifest_keeps_configuration_and_loses_text() -> None:
    manifest = {
        "document": {"spec": {"stages": {"sft": {"systemPrompt": PROMPT}}, "base": {"chatTemplate": PROMPT}}},
        "keyFields": {"columns": {"text": "正文", "answers": "回答"}},
        "extra": {
            "answers": {"question": "what is it?", "base": "no idea", "sft": "一" * 40},
            "tokenCache": "s3://zhongjing/local/cache/tokens/ab12",
            "rewardMean": 0.5,
            "note": "the patient is well again",
            "nested": [{"text": "short", "score": 3}],
        },
        "lineage": {"host": "whatever", "platform": "Linux"},
        "model": {
            "uri": "s3://zhongjing/医学教科书第一册内科学基础知识/model",
            "files": [{"name": "a", "size": 1}],
        },
        "metrics": {"loss": 1.25},
        "samples": 7,
    }
    cleaned = clean(manifest, REDACTOR)
    assert cleaned["document"] == manifest["document"]
    assert cleaned["keyFields"] == manifest["keyFields"]
    assert cleaned["extra"] == {
        "answers": {
            "question": "<text 11 characters>",
            "base": "<text 7 characters>",
            "sft": "<text 40 characters>",
        },
        "tokenCache": "s3://zhongjing/local/cache/tokens/ab12",
        "rewardMean": 0.5,
        "note": "<text 25 characters>",
        "nested": [{"text": "<text 5 characters>", "score": 3}],
    }
    assert cleaned["lineage"] == {"host": "<host>", "platform": "Linux"}
    for same in ("model", "metrics", "samples"):
        assert cleaned[same] == manifest[same]


def test_secrets_go_from_values_and_keys_of_documents() -> None:
    document: dict[str, Any] = {
        "document": {
            "metadata": {"annotations": {"note": f"by li@h.cn {SECRET} {PROMPT}", "token": "short"}}
        },
        f"key {SECRET}": 1,
        "message": f"failed for {PROMPT}",
        "secretAccessKey": "anything",
        "list": [SECRET, {"x": "/home/li/data"}],
    }
    assert clean(document, REDACTOR) == {
        "document": {
            "metadata": {
                "annotations": {
                    "note": "by <e-mail> <redacted:TOKEN> <text 27 characters>。",
                    "token": "<redacted>",
                }
            }
        },
        "key <redacted:TOKEN>": 1,
        "message": "failed for <text 27 characters>。",
        "secretAccessKey": "<redacted>",
        "list": ["<redacted:TOKEN>", {"x": "~/data"}],
    }


def test_a_damaged_document_is_not_packed(bundle: Bundle) -> None:
    bundle.document("run/manifest.json", of(b'{"extra": {"answers": {"question": "a secret of the patient'))
    assert bundle.names == []
    assert bundle.gaps == [Gap("run/manifest.json", "it is damaged: no JSON of its 59 bytes at byte 35")]


def test_quarantine_has_places_and_reasons_only() -> None:
    entry = {
        "source": "texts",
        "uri": "s3://zhongjing/uploads/ab/texts.jsonl",
        "index": 3,
        "line": 4,
        "reason": "the answer is empty",
        "sha256": "ab" * 32,
        "text": "a patient's words",
        "more": "words",
    }
    assert json.loads(quarantine_line(json.dumps(entry), REDACTOR)) == {
        key: entry[key] for key in ("source", "uri", "index", "line", "reason")
    }
    assert quarantine_line('{"text": "a patient', REDACTOR) == "<a line that is not an entry>"
    assert quarantine_line('"a patient"', REDACTOR) == "<a line that is not an entry>"


def test_metrics_stay_as_they_are() -> None:
    line = '{"kind":"train","step":1,"time":"t","epoch":0.1,"values":{"loss":13812345678.0}}'
    assert metric_line(line, REDACTOR) == line
    for bad in (
        "a patient's words",
        '{"kind":"train","text":"words"}',
        '{"kind":"sample","values":{"a":"words"}}',
    ):
        assert json.loads(metric_line(bad, REDACTOR)) == {
            "note": "a line that is not a metric point was left out"
        }


def test_large_metrics_keep_their_end(bundle: Bundle) -> None:
    line = b'{"kind":"train","step":1,"time":"t","epoch":0.1,"values":{"loss":1.5}}\n'
    bundle.lines("m.jsonl", of(line * 100), 20 * len(line), metric_line)
    lines = written(bundle, "m.jsonl").splitlines()
    assert len(lines) == 21
    assert json.loads(lines[0]) == {"note": f"the first {80 * len(line)} of {100 * len(line)} bytes are cut"}


# The archive


def test_equal_input_gives_equal_bytes(tmp_path: Path) -> None:
    made: list[bytes] = []
    for order in (("b", "a/c", "a/b"), ("a/b", "b", "a/c")):
        folder = tmp_path / "-".join(order).replace("/", "_")
        folder.mkdir()
        bundle = Bundle(folder, REDACTOR)
        for name in order:
            bundle.text(name, f"text of {name}")
        os.utime(folder / "b", (1, 1))
        (folder / "b").chmod(0o640)
        archive = tmp_path / f"{len(made)}.tar.gz"
        bundle.write(archive, "demo-report", now=1_700_000_000.7)
        made.append(archive.read_bytes())
        assert archive.stat().st_mode & 0o777 == 0o600
    assert made[0] == made[1]
    with tarfile.open(tmp_path / "0.tar.gz") as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == [f"demo-report/{name}" for name in ("a/b", "a/c", "b")]
    assert {(m.mode, m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members} == {
        (0o600, 0, 0, "", "", 1_700_000_000)
    }
    assert gzip.decompress(made[0])


def test_names_of_members_are_clean_and_stay_inside(bundle: Bundle) -> None:
    bundle.text(f"../../{SECRET}/node-1/./x.log", "x")
    assert bundle.names == ["_redacted_TOKEN_/_host_/x.log"]


def test_what_cannot_be_read_is_noted(bundle: Bundle, tmp_path: Path) -> None:
    readable = local_file(Path(__file__))

    def refuse(start: int, length: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    bundle.log("a.log", Readable(10, refuse))
    bundle.log("b.log", readable)
    assert bundle.gaps[0].what == "a.log"
    assert "Permission denied" in bundle.gaps[0].why
    assert "b.log" in bundle.names


def test_a_store_that_is_gone_is_not_asked_again(bundle: Bundle) -> None:
    def gone(start: int, length: int) -> bytes:
        raise StorageUnavailableError("no answer", code=STORAGE_UNREACHABLE)

    with pytest.raises(StorageUnavailableError):
        bundle.log("a.log", Readable(10, gone))


def test_a_full_disk_ends_the_report(bundle: Bundle, tmp_path: Path) -> None:
    bundle.log("a.log", of(os.urandom(300_000).hex().encode()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    attempts: list[Callable[[], None]] = [
        lambda: bundle.log("b.log", of(b"line\n" * 100_000)),
        lambda: bundle.write(tmp_path / "x.tar.gz", "r", 0.0),
    ]
    for fail in attempts:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(StorageError) as raised:
                fail()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert raised.value.code is DISK_FULL
    assert [path.name for path in tmp_path.iterdir()] == ["spool"]


def test_a_report_has_a_largest_size(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("zhongjing.cli.reporting.bundle.TOTAL_BYTES", 250)
    small = Bundle(bundle.folder, REDACTOR)
    for number in range(4):
        small.log(f"{number}.log", of(b"x" * 99 + b"\n"))
    assert small.names == ["0.log", "1.log"]
    assert [gap.what for gap in small.gaps] == ["2.log", "3.log"]
