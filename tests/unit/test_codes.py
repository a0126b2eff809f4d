"""The catalogue of errors: every error names a code, every code is used, and the page says so."""

from __future__ import annotations

import ast
import functools
import pickle
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools.troubleshooting import troubleshooting_page
from zhongjing import codes, errors
from zhongjing.codes import GROUPS, Code
from zhongjing.errors import ConfigError, StorageUnavailableError

ROOT = Path(__file__).parents[2]
ALL = [code for group in GROUPS for code in group.codes]
# The exit codes of commands (README, docs/troubleshooting.md).
EXIT_CODES = {1, 2, 3, 130}


@functools.cache
def sources() -> dict[Path, ast.Module]:
    """All modules outside the catalogue, parsed."""
    files = [*(ROOT / "zhongjing").rglob("*.py"), *(ROOT / "jobs").rglob("*.py")]
    return {
        file: ast.parse(file.read_text(encoding="utf-8"))
        for file in files
        if "codes" not in file.relative_to(ROOT).parts
    }


def name_of(function: ast.expr) -> str:
    if isinstance(function, ast.Attribute):
        return function.attr
    return function.id if isinstance(function, ast.Name) else ""


def error_classes() -> set[str]:
    """Names of our error classes, wherever they are defined; RuleError tells pydantic of one."""
    known = {"RuleError"} | {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.ZhongjingError)
    }
    while True:
        more = {
            node.name
            for tree in sources().values()
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and any(name_of(base) in known for base in node.bases)
        }
        if more <= known:
            return known
        known |= more


def constructions() -> Iterator[tuple[Path, ast.Call]]:
    known = error_classes()
    for file, tree in sources().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and name_of(node.func) in known:
                yield file, node


def used_constants() -> set[tuple[str, str]]:
    """(area, constant) of every code that a module names, by whatever name it imported the area."""
    found: set[tuple[str, str]] = set()
    for tree in sources().values():
        areas: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "zhongjing.codes":
                areas |= {alias.asname or alias.name: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("zhongjing.codes."):
                # Ruff sees to it that nothing is imported in vain.
                area = (node.module or "").rpartition(".")[2]
                found |= {(area, alias.name) for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                area = areas.get(node.value.id, "")
                found.add((area, node.attr))
    return found


def test_every_error_names_its_code() -> None:
    found = list(constructions())
    assert len(found) > 200, "the scan sees nothing"
    silent = [
        f"{file.relative_to(ROOT)}:{call.lineno}"
        for file, call in found
        if not any(keyword.arg == "code" for keyword in call.keywords)
    ]
    assert silent == []


def test_every_code_is_used() -> None:
    places = {
        (area, constant): value
        for area, module in vars(codes).items()
        if not area.startswith("_") and hasattr(module, "__file__")
        for constant, value in vars(module).items()
        if isinstance(value, Code)
    }
    assert set(places.values()) == set(ALL)
    used = used_constants()
    assert [value.name for place, value in places.items() if place not in used] == []


def test_names_are_unique_also_as_anchors() -> None:
    assert Counter(code.name.lower() for code in ALL).most_common(1)[0][1] == 1
    titles = {re.sub(r"[^a-z0-9 ]", "", group.title.lower()).replace(" ", "-") for group in GROUPS}
    assert titles.isdisjoint(code.name.lower() for code in ALL)


@pytest.mark.parametrize("code", ALL, ids=str)
def test_a_code_says_what_why_and_what_to_do(code: Code) -> None:
    # Names of fields and programs may begin a sentence; words begin it with a capital.
    assert re.fullmatch(r"\S+( \S+){2,}(?<!\.)\.", code.summary)
    assert re.fullmatch(r"\S+( \S+)+(?<!\.)\.", code.cause)
    # A remedy follows "remedy: ", so it begins small and has no full stop: it is often copied from its end.
    assert re.fullmatch(r"\S[^\n]*[^.\s]", code.remedy)
    assert not re.match(r"[A-Z][a-z]", code.remedy)
    assert code.exit_code in EXIT_CODES
    assert codes.find(code.name) is code


def test_the_page_has_a_section_and_a_link_for_each_code() -> None:
    text = troubleshooting_page()
    for code in ALL:
        assert text.count(f"\n### {code.name}\n") == 1
        assert f"](#{code.name.lower()})" in text


def test_an_error_travels_between_processes_with_its_code() -> None:
    error = StorageUnavailableError("no answer", code=codes.storage.STORAGE_UNREACHABLE, where="s3://b")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is StorageUnavailableError
    assert again.as_dict() == error.as_dict()
    assert (again.code, again.exit_code) == (codes.storage.STORAGE_UNREACHABLE, 3)


def test_the_remedy_is_the_codes_unless_the_error_knows_better() -> None:
    code = codes.document.UNKNOWN_FIELD
    assert ConfigError("unknown key", code=code).remedy == code.remedy
    assert ConfigError("unknown key", code=code, remedy="write it right").remedy == "write it right"
