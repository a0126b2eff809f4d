"""Helm commands that pages, notes and remedies name."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    file
    for folder in ("docs", "helm", "k8s", "zhongjing", "examples")
    for file in sorted((ROOT / folder).rglob("*"))
    if file.suffix in {".md", ".txt", ".yaml", ".tpl", ".py"}
] + [ROOT / "README.md"]


def test_every_helm_upgrade_that_is_named_takes_a_new_charts_defaults() -> None:
    """--reuse-values takes the last release's values, its chart's defaults among them."""
    commands = {
        command: file.name
        for file in PAGES
        for command in re.findall(r"helm upgrade (?=.*-)[^`\n]+", file.read_text(encoding="utf-8"))
    }
    assert len(commands) >= 3
    for command, name in commands.items():
        kept = "--reset-then-reuse-values" in command or re.search(r"\s(-f|--values)\s", command)
        assert kept, f"{name}: helm upgrade {command}"
        assert " --reuse-values" not in command, name
