"""The real command line where no service is started. What is wrong input stands in ``test_bad_input``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.bad_input_support import Shell

pytestmark = pytest.mark.integration

DOCUMENT = """\
metadata: {name: demo}
spec:
  base: {tiny: {}}
  sources:
  - {name: talks, uri: "example://dialogues", kind: dialogue}
  - {name: ranked, uri: ranked.jsonl, kind: ranking}
  stages:
    sft: {data: [{source: talks}], maxLength: 512}
    rm: {data: [{source: ranked}], maxLength: 512, workers: 512, globalBatchSize: 512}
"""
RANKED = '{"prompt": "感冒怎么办？", "answers": ["多喝水，注意休息。", "不用管。"]}\n'


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    shell = Shell(tmp_path)
    (shell.folder / "my.yaml").write_text(DOCUMENT)
    (shell.folder / "ranked.jsonl").write_text(RANKED)
    return shell


def test_dry_run_prints_a_document_that_can_be_run(shell: Shell) -> None:
    first = shell.in_process("zhongjing", "submit", "--local", "-f", "my.yaml", "--dry-run")
    # The document may be meant for a larger machine than the one that it is looked at on: it is printed,
    # and the exit code says that it would not run here.
    assert first.returncode == 1, first.stderr
    assert "# sft    run   was never run" in first.stdout
    assert "# note: would be refused here: the 512 workers of rm would take 512 cores" in first.stdout
    (shell.folder / "full.yaml").write_text(first.stdout)
    second = shell.in_process("zhongjing", "submit", "--local", "-f", "full.yaml", "--dry-run")
    assert second.stdout == first.stdout
    assert not (shell.folder / "zhongjing-runs").exists()


def test_a_closed_pipe_is_no_error(shell: Shell) -> None:
    command = f"{sys.executable} -m zhongjing config schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=shell.folder,
        env=shell.environment,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "{"
