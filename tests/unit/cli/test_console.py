"""What is written where: escape sequences only where a terminal shows them."""

from __future__ import annotations

import io
import json
import sys

import pytest

from zhongjing.cli.console import Console, escape_unencodable

PAINTED = "\x1b[36m(worker pid=7)\x1b[0m \x1b]8;;http://x\x07发烧\x1b]8;;\x07 50\x1b[K %"


class Screen(io.StringIO):
    """A terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("terminal", [False, True])
def test_escapes_never_go_into_pipes(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (Screen(), Screen()) if terminal else (io.StringIO(), io.StringIO())
    monkeypatch.setattr("sys.stdout", out)
    monkeypatch.setattr("sys.stderr", err)
    console = Console()
    console.say(PAINTED)
    console.raw(PAINTED + "\n")
    console.warn(PAINTED)
    expected = PAINTED if terminal else "(worker pid=7) 发烧 50 %"
    assert out.getvalue().splitlines() == [expected] * 2
    assert err.getvalue().splitlines() == [expected]


@pytest.mark.parametrize(
    ("encoding", "typed", "heard", "shown"),
    [
        (
            "ascii",
            "头痛😀".encode(),
            "头痛😀",
            "发烧😀 é",
        ),
        ("gbk", "头痛".encode("gbk"), "头痛", "发烧\\U0001f600 é"),
        ("gbk", b"\xff\xfe", "\\xff\\xfe", "发烧\\U0001f600 é"),
        ("latin-1", b"caf\xe9", "café", "\\u53d1\\u70e7\\U0001f600 é"),
        ("utf-8", b"\xff", "\\xff", "发烧😀 é"),
    ],
)
def test_terminals_that_are_not_utf8_show_every_character(
    monkeypatch: pytest.MonkeyPatch, encoding: str, typed: bytes, heard: str, shown: str
) -> None:
    read, out, err = (
        io.TextIOWrapper(io.BytesIO(content), encoding=encoding) for content in (typed + b"\n", b"", b"")
    )
    for name, stream in (("stdin", read), ("stdout", out), ("stderr", err)):
        monkeypatch.setattr(f"sys.{name}", stream)
    escape_unencodable()
    assert sys.stdin.readline() == heard + "\n"
    console = Console()
    console.raw("发烧😀 é\n")
    console.say("发烧😀 é")
    console.warn("发烧😀 é")
    console.result({"answer": "发烧😀 é"})
    text = out.buffer.getvalue().decode(out.encoding)
    assert text.splitlines()[:2] == [shown, shown]
    assert json.loads("".join(text.splitlines()[2:])) == {"answer": "发烧😀 é"}, "escapes of JSON alone"
    assert err.buffer.getvalue().decode(err.encoding).splitlines() == [shown]
