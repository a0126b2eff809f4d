"""Bad input through the real command line: exit codes and messages, with no service started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
DOCUMENT = """\
apiVersion: training.zhongjing.dev/v1alpha1
kind: TrainingPipeline
metadata: {name: demo}
spec:
  base: {tiny: {maxPositions: 4096}}
  sources:
  - {name: talks, uri: talks.jsonl, kind: dialogue}
  - {name: ranked, uri: ranked.jsonl, kind: ranking}
  stages:
    sft:
      data: [{source: talks}]
    rm:
      data: [{source: ranked}]
    ppo:
      data: [{source: talks}]
"""

RECORDS = {
    "talks": '{"instruction": "感冒怎么办？", "output": "多喝水，注意休息。"}',
    "ranked": '{"prompt": "感冒怎么办？", "answers": ["多喝水。", "不用管。"]}',
}


class Shell:
    """Runs ``python -m <module>`` in a folder of its own, with no cluster and no home in sight."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        hidden = ("KUBECONFIG", "KUBERNETES_SERVICE_HOST", "AWS_ENDPOINT_URL", "XDG_STATE_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {"HOME": str(self.folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [sys.executable, "-m", module, *arguments],
            capture_output=True,
            text=True,
            cwd=self.folder,
            env=environment,
            timeout=120,
            check=False,
        )


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "my.yaml").write_text(DOCUMENT)
    for name, record in RECORDS.items():
        (tmp_path / f"{name}.jsonl").write_text(f"{record}\n")
    return Shell(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["-f", "my.yaml"], 3, "--local"),
        (["--local", "-f", "gone.yaml"], 2, "gone.yaml: there is no such file"),
        (["--local", "-f", "broken.yaml"], 2, "broken.yaml, line 2"),
        (["--local", "--recipe", "teeny"], 2, "there is no recipe 'teeny'"),
        (["--local", "-f", "my.yaml", "--stage", "dpo"], 2, "dpo"),
        (["--local", "-f", "my.yaml", "--stage", "pretrain"], 2, "the pipeline has no stage pretrain"),
        (["--local", "-f", "my.yaml", "--set", "spec.seed=x"], 2, "spec.seed"),
        (["--local", "-f", "my.yaml", "--set", "spec.sources.talks.uri=no.jsonl"], 2, "no.jsonl"),
        (["--local", "-f", "my.yaml", "--stage", "ppo", "--dry-run"], 2, "--stage sft"),
        (["--local", "-f", "my.yaml", "-n", "team"], 2, "--namespace"),
        (["--local", "--unknown"], 2, "--unknown"),
    ],
)
def test_bad_input(shell: Shell, arguments: list[str], code: int, words: str) -> None:
    (shell.folder / "broken.yaml").write_text("spec:\n\ta: 1\n")
    done = shell("zhongjing.submit", *arguments)
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert done.stderr.startswith("error[")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (shell.folder / "zhongjing-runs").exists()


def test_bad_input_as_json(shell: Shell) -> None:
    for module, arguments in (("zhongjing.submit", []), ("zhongjing", ["submit"])):
        done = shell(module, *arguments, "--local", "-f", "gone.yaml", "-o", "json")
        assert done.returncode == 2
        shown = json.loads(done.stdout)
        log = Path(shown.pop("log"))
        assert shown == {
            "error": "ConfigError",
            "code": "DocumentNotFound",
            "message": "there is no such file",
            "where": "gone.yaml",
            "remedy": "give the path of a TrainingPipeline document",
            "exitCode": 2,
        }
        assert log.is_relative_to(shell.folder)
        assert "Traceback (most recent call last)" in log.read_text()
        assert not (shell.folder / "zhongjing-runs").exists()


def test_a_kubeconfig_is_told_that_clusters_come_later(shell: Shell) -> None:
    folder = shell.folder / ".kube"
    folder.mkdir()
    (folder / "config").write_text(
        "clusters: [{name: c}]\ncontexts: [{name: prod, context: {cluster: c}}]\ncurrent-context: prod\n"
    )
    done = shell("zhongjing.submit", "-f", "my.yaml")
    assert done.returncode == 3
    assert "does not submit to clusters yet" in done.stderr
    assert "--local" in done.stderr


def test_dry_run_prints_a_document_that_can_be_run(shell: Shell) -> None:
    first = shell("zhongjing", "submit", "--local", "-f", "my.yaml", "--dry-run")
    assert first.returncode == 0, first.stderr
    assert "# sft    run   was never run" in first.stdout
    (shell.folder / "full.yaml").write_text(first.stdout)
    second = shell("zhongjing", "submit", "--local", "-f", "full.yaml", "--dry-run")
    assert second.stdout == first.stdout


@pytest.mark.parametrize("verb", [["status"], ["logs"], ["stop"], ["resume"], ["pull", "tiny/ppo", "model"]])
def test_where_nothing_was_run(shell: Shell, verb: list[str]) -> None:
    for more in ([], ["--local"]):
        done = shell("zhongjing", *verb, *more)
        assert done.returncode == 3
        assert "--local" in done.stderr
        assert not (shell.folder / "zhongjing-runs").exists()


def test_a_closed_pipe_is_no_error(shell: Shell) -> None:
    command = f"{sys.executable} -m zhongjing config schema | head -n 1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        cwd=shell.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "{"
