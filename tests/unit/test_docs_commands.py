"""Every command that README and docs print is one that can be given."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.commands_support import parse
from zhongjing.pipeline import state

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "CONTRIBUTING.md"]
PAGES = [page for page in PAGES if page.is_file() and page.name != "LOG.md"]  # the log tells of the past
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(page: Path) -> Iterator[str]:
    """Lines of a page's command blocks, prompts, comments and environment taken off."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```(?:sh|bash|console|text)?\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.split(r"\s+(?:#|·)\s?", re.sub(r"^\$ ", "", line.strip()))[0]
            found = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", found).replace(".venv/bin/", "")
            found = re.sub(r" -n(?= )", " -n", found).removesuffix(" &").removesuffix(" ...")
            yield from (part.strip() for part in found.split(" && "))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_one(page: Path) -> None:
    for line in commands(page):
        if re.match(r"zhongjing [a-z-]|python -m zhongjing\.submit", line):
            parse(re.sub(r"^zhongjing (?=-)", "zhongjing ", line), page.name)
        elif line.startswith("make "):
            wanted = [word for word in line.split()[1:] if "=" not in word and not word.startswith("-")]
            assert set(wanted) <= TARGETS, f"{page.name}: {line}"


def test_the_readmes_commands_are_found() -> None:
    found = list(commands(ROOT / "README.md"))
    assert sum(line.startswith(("zhongjing ", "python -m zhongjing.submit")) for line in found) > 12
    assert ". .venv/bin/activate".replace(".venv/bin/", "") in found
    assert "zhongjing pull tiny/ppo ./model --local" in found


def test_every_reason_of_progressing_is_documented() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    told = page.partition("Reasons of `Progressing`:")[2].partition("\n\n")[0]
    reasons = {state.RUNNING, state.RETRYING, state.QUEUED, state.WAITING_FOR_INPUT, "Suspending"}
    for reason in reasons.union(state.UNREADY, state.REFUSALS):
        assert f"`{reason}`" in told, reason


@pytest.mark.parametrize("module", ["zhongjing", "zhongjing.submit"])
def test_a_python_without_the_packages_is_told_which_one_has_them(module: str) -> None:
    program = (
        "import runpy, sys\n"
        "sys.modules['typer'] = None\n"
        f"sys.argv = ['x']; runpy.run_module({module!r}, run_name='__main__')"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith("error[MissingPackage]: ")
    assert "has no package typer" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ".venv/bin/python" in ended.stderr or "make setup" in ended.stderr
