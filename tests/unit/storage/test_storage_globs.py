from __future__ import annotations

import pytest

from zhongjing.storage.globs import fixed_folder, is_glob, pattern_of

KEYS = [
    "a.jsonl",
    "books/内科.txt",
    "books/外科.txt",
    "books/old/a.txt",
    "books/old/deep/b.txt",
    "books/x[1].txt",
    "data/part-0.jsonl",
    "data/part-1.jsonl",
    "data/part-10.jsonl",
]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.jsonl", ["a.jsonl"]),
        ("books/*.txt", ["books/内科.txt", "books/外科.txt", "books/x[1].txt"]),
        ("books/?科.txt", ["books/内科.txt", "books/外科.txt"]),
        ("**/*.txt", [key for key in KEYS if key.endswith(".txt")]),
        ("books/**", [key for key in KEYS if key.startswith("books/")]),
        ("books/**/*.txt", [key for key in KEYS if key.startswith("books/")]),
        ("books/*/*.txt", ["books/old/a.txt"]),
        ("data/part-[01].jsonl", ["data/part-0.jsonl", "data/part-1.jsonl"]),
        ("data/part-[!0].jsonl", ["data/part-1.jsonl"]),
        ("data/part-[0-9]*.jsonl", ["data/part-0.jsonl", "data/part-1.jsonl", "data/part-10.jsonl"]),
        ("books/x[[]1].txt", ["books/x[1].txt"]),
        ("books?内科.txt", []),
        ("**", KEYS),
    ],
)
def test_matches_whole_keys(pattern: str, expected: list[str]) -> None:
    compiled = pattern_of(pattern)
    assert [key for key in KEYS if compiled.fullmatch(key)] == expected


def test_unclosed_bracket_is_itself() -> None:
    assert pattern_of("a[b").fullmatch("a[b")


def test_dot_is_not_magic() -> None:
    assert pattern_of("a.txt").fullmatch("abtxt") is None


@pytest.mark.parametrize(
    ("pattern", "folder"),
    [("a/b/*.json", "a/b"), ("*.json", ""), ("a/*/c/d.json", "a"), ("a/**/d", "a"), ("a/b/c.json", "a/b")],
)
def test_fixed_folder_is_what_must_be_listed(pattern: str, folder: str) -> None:
    assert fixed_folder(pattern) == folder


def test_is_glob() -> None:
    assert is_glob("a/*.txt")
    assert not is_glob("a/b.txt")
