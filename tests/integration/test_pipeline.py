"""The main job through the real command line: supervisor, S3, Ray Jobs, Ray Train, ZeRO-2, artifacts.

One small document is taken through all four stages once; the tests look at what it left and go on from there.
"""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.command_line import in_process, kept_environment
from tests.faults import document
from tests.faults.place import Place
from tests.integration.conftest import Finished, finished_run
from zhongjing.backends.local.session import LocalSession
from zhongjing.config.keys import digest
from zhongjing.config.stages import Stage

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


class Run:
    """The command line over one workdir and one document."""

    def __init__(self, place: Place) -> None:
        self.workdir = place.workdir.path
        self.document = place.document
        self.environment = place.environment

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        local = (*arguments, "--local", "--workdir", str(self.workdir))
        return in_process("zhongjing", *local, folder=self.document.parent, environment=self.environment)

    def submit(self, *arguments: str) -> dict[str, Any]:
        done = self.run("submit", "-f", str(self.document), "-o", "json", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        return result


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    place = Place(tmp_path_factory.mktemp("病历 finished ü'&%"), document.quick())
    with finished_run(place, document.QUICK) as found:
        yield found


@pytest.fixture(scope="module")
def run(pipeline: Finished) -> Run:
    return Run(pipeline.place)


@pytest.fixture(scope="module")
def finished(pipeline: Finished) -> Mapping[str, Any]:
    return pipeline.answer


def test_all_four_stages_leave_a_result(finished: Mapping[str, Any]) -> None:
    assert finished["condition"] == "Complete"
    assert {name: stage["state"] for name, stage in finished["stages"].items()} == dict.fromkeys(
        ("pretrain", "sft", "rm", "ppo"), "Succeeded"
    )
    pretrain = finished["stages"]["pretrain"]
    assert pretrain["metrics"]["loss"] < pretrain["metricsBefore"]["loss"]
    assert finished["stages"]["ppo"]["step"] == 8


def test_every_manifest_says_what_its_key_is_the_digest_of(pipeline: Finished) -> None:
    assert set(pipeline.results) == {Stage.PRETRAIN, Stage.SFT, Stage.RM, Stage.PPO}
    for stage, result in pipeline.results.items():
        assert digest(result.manifest.key_fields) == result.manifest.key
        assert result.manifest.key_fields["stage"] == stage
    measured = pipeline.results[Stage.PPO].manifest.metrics
    assert {"objective", "reward", "kl"} <= set(measured)


def test_modes_of_every_file_and_folder_of_a_run_keep_others_out(
    run: Run, finished: Mapping[str, Any]
) -> None:
    assert run.workdir.stat().st_mode & 0o777 == 0o700
    # As if the workdir were a folder that others can look into: a user may have made it so.
    entries, readable = list(run.workdir.iterdir()), []
    while entries:
        entry = entries.pop()
        mode = entry.lstat().st_mode
        if not stat.S_ISLNK(mode) and mode & 0o077:
            readable.append(f"{entry.relative_to(run.workdir)} {stat.filemode(mode)}")
            entries += entry.iterdir() if stat.S_ISDIR(mode) else ()
    assert readable == []


def test_what_is_done_is_skipped_at_once(run: Run, finished: Mapping[str, Any]) -> None:
    again = run.submit("--stage", "all")
    assert {stage["state"] for stage in again["stages"].values()} == {"Skipped"}
    for name, stage in again["stages"].items():
        assert stage["manifestUri"] == finished["stages"][name]["manifestUri"]


def test_a_changed_field_reruns_what_depends_on_it(run: Run, finished: Mapping[str, Any]) -> None:
    done = run.run(
        "submit", "-f", str(run.document), "--dry-run", "--set", "spec.stages.rm.learningRate=1.0e-4"
    )
    assert done.returncode == 0, done.stderr
    plan: dict[str, str] = {}
    for line in done.stdout.splitlines():
        mark, *words = line.split() or [""]
        if mark == "#" and words:
            plan.setdefault(words[0], line)
    assert " skip " in plan["pretrain"]
    assert " skip " in plan["sft"]
    assert "changed: spec.stages.rm.learningRate: 0.001 -> 0.0001" in plan["rm"]
    assert "rm changed" in plan["ppo"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda content: content[:200], "DamagedObject", ["not valid JSON", "--rerun pretrain"]),
        (
            lambda content: json.dumps({**json.loads(content), "version": 2, "colour": "blue"}).encode(),
            "NewerVersion",
            ["of version 2", "use that release"],
        ),
    ],
    ids=["cut", "of a newer version"],
)
def test_a_manifest_that_cannot_be_read_is_told_and_nothing_runs(
    run: Run, finished: Mapping[str, Any], change: Callable[[bytes], bytes], code: str, said: list[str]
) -> None:
    uri = finished["stages"]["pretrain"]["manifestUri"]
    with kept_environment():
        store = LocalSession.open(run.workdir, start=False).store
        content = store.get(uri)
        store.put(uri, change(content))
        try:
            done = run.run("submit", "-f", str(run.document), "--stage", "sft", "-o", "json")
        finally:
            store.put(uri, content)
    told = json.loads(done.stdout)
    assert (done.returncode, told["exitCode"], told["code"]) == (3, 3, code)
    for words in (uri, *said):
        assert words in f"{told['where']}: {told['message']}\n{told['remedy']}"
    assert run.submit("--stage", "sft")["stages"]["sft"]["state"] == "Skipped"


LOADS = """
import json, pathlib, sys
from peft import AutoPeftModelForCausalLM, PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

def reward(folder):
    base = json.loads(pathlib.Path(folder, "adapter_config.json").read_text())["base_model_name_or_path"]
    return PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base, num_labels=1), folder
    )

load = {"pretrain": AutoModelForCausalLM.from_pretrained, "ppo": AutoPeftModelForCausalLM.from_pretrained}
shapes = {}
for stage, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    model = load.get(stage, reward)(folder)
    batch = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        [{"role": "user", "content": "高血压吃什么药？"}], add_generation_prompt=True,
        return_tensors="pt", return_dict=True,
    )
    shapes[stage] = tuple(model(**batch).logits.shape)
assert not any(name.startswith("zhongjing") for name in sys.modules)
print(json.dumps(shapes))
"""


def test_pulled_models_load_without_our_code(run: Run, finished: Mapping[str, Any], tmp_path: Path) -> None:
    folders = {stage: str(tmp_path / stage) for stage in ("pretrain", "rm", "ppo")}
    for stage, folder in folders.items():
        done = run.run("pull", f"quick/{stage}", folder)
        assert done.returncode == 0, done.stderr
    loaded = subprocess.run(
        [sys.executable, "-c", LOADS, *(word for pair in folders.items() for word in pair)],
        cwd=tmp_path,
        env=run.environment | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr
    shapes = json.loads(loaded.stdout)
    assert shapes["rm"] == [1, 1]
    for stage in ("pretrain", "ppo"):
        assert (shapes[stage][0], shapes[stage][2]) == (1, 1024)
