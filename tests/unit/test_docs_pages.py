"""The documentation builds without a warning: no page is forgotten, no link leads nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_build_with_warnings_as_errors(tmp_path: Path) -> None:
    """By mkdocs' own rule (``--strict``, https://www.mkdocs.org/user-guide/cli/#mkdocs-build)."""
    # The theme prints an announcement of its own with every build.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    assert (tmp_path / "tutorial.html").is_file()


def test_the_chinese_readme_has_the_commands_of_the_english_one() -> None:
    blocks = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    english, chinese = (
        {
            line.split("#")[0].strip()
            for block in blocks.findall((ROOT / name).read_text(encoding="utf-8"))
            for line in block.splitlines()
            if line.startswith(("make ", "helm ", "python ", "zhongjing "))
        }
        for name in ("README.md", "README.zh-CN.md")
    )
    assert chinese
    assert chinese <= english
