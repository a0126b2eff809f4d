"""Every command that a message names can be given as it stands: parsed here, with the place at hand."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import zhongjing
from tests.unit.cli.commands_support import parse
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession
from zhongjing.cli import target
from zhongjing.cli.app import app
from zhongjing.codes import GROUPS
from zhongjing.config.commands import Commands
from zhongjing.config.resolve import recipe

PACKAGE = Path(zhongjing.__file__).parent
PLACES = {
    "local": "--local",
    "workdir": "--local --workdir 'my runs'",
    "namespace": "-n train",
    "all": "-n train --context prod --release big",
    "current": "",
}
MARKED = re.compile(r"`((?:zhongjing|kubectl|helm) [^`]+)`")
# A command in a text that the user reads, outside of marks. `zhongjing` alone is the program's name.
BARE = re.compile(
    r"(?<![`\w.-])(zhongjing (?:submit|status|logs|stop|resume|pull|curves|plan|dashboard|report|doctor|data|"
    r"config|chat)\b|python -m zhongjing)"
)


def texts() -> Iterator[tuple[str, str]]:
    """Every string of the package but docstrings and help, f-strings with words in place of values."""
    for file in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        documented = {
            id(node.body[0].value)
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        parts = {
            id(each) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for each in node.values
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.JoinedStr):
                pieces = [
                    str(each.value) if isinstance(each, ast.Constant) else _word(each) for each in node.values
                ]
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", "".join(pieces)
            elif id(node) in documented | parts or not isinstance(node, ast.Constant):
                continue
            elif isinstance(node.value, str):
                yield f"{file.relative_to(PACKAGE)}:{node.lineno}", node.value


def _word(value: Any) -> str:
    name = ast.unparse(value)
    return "rm" if "stage" in name else "demo"


TEXTS = list(texts())


@pytest.mark.parametrize("place", PLACES)
def test_every_command_that_a_message_names_parses_as_it_stands(place: str) -> None:
    commands = Commands(PLACES[place], ["-f", "my.yaml"], name="zhongjing")
    seen = 0
    for where, text in TEXTS:
        for match in MARKED.finditer(text):
            made = commands.complete(f"`{match[1]}`", "demo", "rm")
            if made.startswith("zhongjing"):
                seen += 1
                parse(made, where)
                words = shlex.split(made)
                if words[1] in ("submit", "status", "logs", "stop", "resume", "pull", "report"):
                    assert (
                        words[-len(shlex.split(PLACES[place])) :] == shlex.split(PLACES[place])
                        or not PLACES[place]
                    )
            elif PLACES[place].startswith("-n") and " -n " not in match[1] and "--all-namespaces" not in made:
                assert " -n train" in made or "--raw" in made, (where, made)
    assert seen > 30


def test_no_command_is_named_outside_of_marks() -> None:
    epilogs = {str(each) for each in _epilogs(typer.main.get_command(app))}
    shown = [
        (where, text)
        for where, text in TEXTS
        if BARE.search(MARKED.sub("", text)) and not any(text.strip() in epilog for epilog in epilogs)
    ]
    allowed = (
        "config/troubleshooting.py",
        "codes/machine.py",
        "controller/process.py",
        "submit.py",
    )
    assert [each for each in shown if not each[0].startswith(allowed)] == []


def _epilogs(command: Any) -> Iterator[str]:
    yield command.epilog or ""
    for inner in getattr(command, "commands", {}).values():
        yield from _epilogs(inner)


def test_every_example_of_the_help_parses() -> None:
    lines = [
        re.split(r"  +", line.strip())[0].split(" && ")[0]
        for epilog in _epilogs(typer.main.get_command(app))
        for line in epilog.splitlines()
        if line.startswith("  zhongjing ")
    ]
    assert len(lines) > 50
    for line in lines:
        parse(line, line)


def test_the_catalogue_names_its_commands_in_marks() -> None:
    for code in (code for group in GROUPS for code in group.codes):
        for text in (code.remedy, code.cause):
            assert not BARE.search(MARKED.sub("", text)), (code.name, text)


# What is made of a mark


@pytest.mark.parametrize(
    ("place", "text", "made"),
    [
        ("--local --workdir r", "`zhongjing stop NAME --local`", "zhongjing stop demo --local --workdir r"),
        (
            "-n t",
            "`zhongjing submit --pipeline demo --stage rm -n other --release x`",
            "zhongjing submit -f my.yaml --set a=1 --stage rm -n t",
        ),
        ("-n t --context c", "`kubectl logs POD --previous`", "kubectl -n t --context c logs POD --previous"),
        ("-n t --context c", "`helm list`", "helm -n t --kube-context c list"),
        ("-n t", "`kubectl get tp --all-namespaces`", "kubectl get tp --all-namespaces"),
        ("--local", "`kubectl get pods`", "kubectl get pods"),
        ("--local --workdir r", "`zhongjing doctor --local`", "zhongjing doctor --local --workdir r"),
        ("-n t", "`zhongjing doctor --local`", "zhongjing doctor -n t"),
        ("-n t", "`zhongjing plan -f FILE`", "zhongjing plan -f my.yaml -n t"),
        (None, "`zhongjing pull NAME/ppo ./model --local`", "zhongjing pull demo/ppo ./model --local"),
        ("-n t", "`zhongjing config show tiny --brief`", "zhongjing config show tiny --brief"),
    ],
)
def test_a_command_is_made_for_the_place_at_hand(place: str | None, text: str, made: str) -> None:
    commands = Commands(place, ["-f", "my.yaml", "--set", "a=1"], name="zhongjing")
    assert commands.complete(f"see {text}; then", "demo") == f"see {made}; then"
    kept = commands.complete(text, "demo", keep=True)
    assert kept == f"`{made}`"
    assert commands.complete(kept) == made


def test_what_a_command_finds_out_itself_is_left_out() -> None:
    commands = Commands("--local", name="zhongjing")
    assert commands.complete("`zhongjing report NAME`") == "zhongjing report --local"
    assert commands.complete("`zhongjing logs NAME --stage STAGE`") == "zhongjing logs --local"
    assert (
        commands.complete("`zhongjing logs NAME --stage STAGE`", "a", "rm")
        == "zhongjing logs a --stage rm --local"
    )


@pytest.mark.parametrize(
    ("options", "made"),
    [
        (
            {
                "local": True,
                "workdir": Path("w"),
                "file": Path("a b.yaml"),
                "overrides": ["x=1"],
                "force": True,
            },
            "-f 'a b.yaml' --set x=1 --force --stage rm --local --workdir w",
        ),
        ({"local": True, "document": "m.yaml", "overrides": []}, "-f m.yaml --stage rm --local"),
        (
            {"local": True, "document": "zhongjing-13b", "overrides": []},
            "--recipe zhongjing-13b --stage rm --local",
        ),
        ({"local": True, "overrides": []}, "--recipe tiny --stage rm --local"),
        ({"local": True, "pipeline": "my", "overrides": None}, "--pipeline my --stage rm --local"),
        ({"local": True, "namespace": None, "force": True}, "--pipeline demo --stage rm --local"),
    ],
)
def test_a_remedy_names_the_document_that_the_command_was_given(options: dict[str, Any], made: str) -> None:
    told = target.commands_of(options).complete("`zhongjing submit --pipeline demo --stage rm`")
    assert told == f"zhongjing submit {made}"


def test_a_file_may_have_the_name_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny").touch()
    monkeypatch.chdir(tmp_path)
    commands = target.commands_of({"local": True, "document": "tiny", "overrides": []})
    told = commands.complete("`zhongjing submit --pipeline demo --stage rm`")
    assert told == "zhongjing submit -f tiny --stage rm --local"


# submit without a document


def test_a_stage_without_a_document_never_trains_the_recipe_under_another_runs_name(
    command: CommandLine, session: MemorySession, tmp_path: Path
) -> None:
    text = (Path(zhongjing.__file__).parents[1] / "jobs/recipes/tiny.yaml").read_text(encoding="utf-8")
    (tmp_path / "my.yaml").write_text(text.replace("epochs: ", "epochs: 1"), encoding="utf-8")
    assert recipe("tiny")["metadata"]["name"] == "tiny"
    applied = command("submit", "--local", "-f", "my.yaml", "--no-wait")
    assert applied.exit_code == 0, applied.stderr
    before = session.desired("tiny")
    (tmp_path / "zhongjing-runs/pipelines").mkdir(parents=True)
    (tmp_path / "zhongjing-runs/pipelines/tiny").touch()
    for words in (["--stage", "rm"], ["--stage", "all"], []):
        refused = command("submit", "--local", *words)
        assert refused.exit_code == 2
        assert (
            "the pipeline tiny was made from another document than the recipe tiny, from my.yaml"
            in refused.stderr
        )
        assert "--pipeline tiny" in refused.stderr
    assert session.desired("tiny") == before
    kept = command("submit", "--local", "--pipeline", "tiny", "--stage", "pretrain", "--no-wait")
    assert kept.exit_code == 0, kept.stderr
    now = session.desired("tiny")
    assert now is not None
    assert before is not None
    assert now.document.spec.stages == before.document.spec.stages
    meant = command("submit", "--local", "--recipe", "tiny", "--no-wait")
    assert meant.exit_code == 0, meant.stderr
    again = command("submit", "--local", "--set", "spec.stages.sft.learningRate=1e-4", "--no-wait")
    assert again.exit_code == 0, again.stderr
