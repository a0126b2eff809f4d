"""The log of a job is read piece by piece: any text, cut anywhere, of any size."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections.abc import Iterator

import pytest

from zhongjing.backends.ray_jobs import LINE_CHARACTERS, log_lines

TEXTS = [
    "",
    "one\ntwo\n",
    'quotes " and \\ backslashes \\\\ud83d \\n\n\ttabs',
    "中文 𝛼 😀😀\n\ud83d alone \udc00\nend",
    "no end of line",
    "\n\n\n",
    "\ud83d",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("ascii_only", [True, False])
def test_any_text_cut_anywhere_is_what_it_was(text: str, ascii_only: bool) -> None:
    if not ascii_only:
        text = text.encode("utf-8", "replace").decode()
    body = json.dumps({"logs": text}, ensure_ascii=ascii_only).encode()
    expected = text.split("\n")[:-1] if text.endswith("\n") else text.split("\n")
    expected = [] if text == "" else expected
    for size in range(1, len(body) + 1):
        chunks = [body[start : start + size] for start in range(0, len(body), size)]
        assert list(log_lines(chunks)) == expected


def test_a_log_that_is_null_has_no_lines() -> None:
    assert list(log_lines([b'{"logs": null}'])) == []


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"logs": "cut', b'{"logs": "cut\\', b"x" * 5000])
def test_what_is_no_log_or_is_cut_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a whole log"):
        list(log_lines([body]))


def test_a_log_larger_than_the_memory_takes_bounded_memory() -> None:
    line = json.dumps("".join(random.Random(0).choices("abc 中", k=1000)) + "\n")[1:-1].encode()

    def chunks() -> Iterator[bytes]:
        yield b'{"logs": "'
        for _ in range(4000):
            yield line * 4
        yield b"x" * (3 * LINE_CHARACTERS)  # a line without an end
        yield b'"}'

    tracemalloc.start()
    count = sum(1 for _ in log_lines(chunks()))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 16000 + 3
    assert peak < 32 * 2**20, "of 20 MB of text, and a line of 3 MB"
