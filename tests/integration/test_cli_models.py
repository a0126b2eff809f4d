"""pull and chat with real models: what is pulled loads with transformers and PEFT alone, from anywhere."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training_support import TEMPLATE, tiny
from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession, desired_state, manifest
from zhongjing.config.stages import Lora, Stage
from zhongjing.model.adapters import add_lora, save_adapter
from zhongjing.model.base import load_base, make_tiny_base
from zhongjing.model.export import finish_adapter_folder
from zhongjing.model.reward import build_reward_model, save_reward_model
from zhongjing.storage.files import describe_folder
from zhongjing.storage.manifest import ModelArtifact

pytestmark = pytest.mark.integration

BASE = "s3://zhongjing/local/cache/bases/abc"
TEXTS = ["感冒的典型症状是发热、咳嗽、流鼻涕，多喝水，注意休息。", "胃炎患者常有上腹痛、反酸。"] * 20
LORA = Lora.model_validate({"rank": 4, "alpha": 8, "dropout": 0.0})
TINY = tiny(vocabulary_size=480, max_positions=256)
# What pull printed, run by a Python that has none of our code on its path; prints a number of each model's.
SCRIPT = """
import json, sys
sys.modules["zhongjing"] = None
import torch
found = {}
for name, lines in json.loads(sys.argv[1]).items():
    loaded = {}
    exec("\\n".join(lines), loaded)
    with torch.no_grad():
        output = loaded["model"].eval()(input_ids=torch.tensor([[5, 6, 7, 8]])).logits
    found[name] = [len(loaded["tokenizer"]), output.flatten()[-1].item(), output.shape[-1]]
print(json.dumps(found))
"""


FORMS: dict[str, tuple[str, ...]] = {
    "sft": (),
    "rm": (),
    "sft merged": ("--merged",),
    "rm merged": ("--merged",),
}


def put(session: MemorySession, uri: str, folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            session.store.objects[f"{uri}/{file.relative_to(folder)}"] = file.read_bytes()


def adapter_of(base: Path, folder: Path, kind: str) -> float:
    """Writes an adapter that changes something; returns the last number that it gives for SCRIPT's input."""
    if kind == "rm":
        model = build_reward_model(base, LORA, 1, torch.float32)
    else:
        model = add_lora(load_base(base, dtype=torch.float32), LORA, "default", 1)
    generator = torch.Generator().manual_seed(9)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    if kind == "rm":
        save_reward_model(model, folder, BASE)
    else:
        save_adapter(model, folder, BASE)
    finish_adapter_folder(folder, base)
    with torch.no_grad():
        return float(model.eval()(input_ids=torch.tensor([[5, 6, 7, 8]])).logits.flatten()[-1])


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[MemorySession, dict[str, float]]:
    """A session with results of sft and rm, and what their models compute."""
    root = tmp_path_factory.mktemp("results")
    session = MemorySession()
    session.add(desired_state())
    make_tiny_base(root / "base", TINY, TEXTS, 7, TEMPLATE)
    put(session, BASE, root / "base")
    session.store.records[f"{BASE}/made.json"] = [
        file.model_dump(mode="json") for file in describe_folder(root / "base")
    ]
    numbers = {}
    for kind in ("sft", "rm"):
        numbers[kind] = adapter_of(root / "base", root / kind, kind)
        stage = Stage(kind)
        uri = f"s3://zhongjing/local/demo/{kind}/{'k' * 16}/model"
        put(session, uri, root / kind)
        session.manifests[stage] = manifest(
            stage,
            model=ModelArtifact(uri=uri, format="adapter", base_uri=BASE, files=describe_folder(root / kind)),
        )
    return session, numbers


@pytest.fixture
def command(
    results: tuple[MemorySession, dict[str, float]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> CommandLine:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "zhongjing-runs").mkdir()
    return CommandLine(results[0])


@dataclass(frozen=True)
class Pulled:
    """What pull wrote and told, and what the model computes where none of our code is."""

    folder: Path
    told: dict[str, Any]
    tokens: int
    number: float
    width: int


@pytest.fixture(scope="module")
def pulled(
    results: tuple[MemorySession, dict[str, float]], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Pulled]:
    """Both models as adapters and merged; another process loads all of them, from another folder."""
    root = tmp_path_factory.mktemp("pulled")
    (root / "zhongjing-runs").mkdir()
    told: dict[str, dict[str, Any]] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        for name, options in FORMS.items():
            kind = name.partition(" ")[0]
            result = CommandLine(results[0])("pull", f"demo/{kind}", name, *options, "--local", "-o", "json")
            assert result.exit_code == 0, result.output
            told[name] = json.loads(result.stdout)
    lines = json.dumps({name: shown["load"] for name, shown in told.items()})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, lines],
        capture_output=True,
        text=True,
        cwd=tmp_path_factory.mktemp("elsewhere"),
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    computed = json.loads(done.stdout)
    return {name: Pulled(root / name, told[name], *computed[name]) for name in FORMS}


@pytest.mark.parametrize(("kind", "width"), [("sft", 480), ("rm", 1)])
def test_a_pulled_adapter_loads_from_anywhere(
    pulled: dict[str, Pulled], results: tuple[MemorySession, dict[str, float]], kind: str, width: int
) -> None:
    found = pulled[kind]
    assert found.told["base"] == str(found.folder / "base")
    config = json.loads((found.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(found.folder / "base")
    assert not list((found.folder / "base").glob("made.json"))
    assert found.number == pytest.approx(results[1][kind], rel=1e-5)
    assert found.width == width
    assert found.tokens > 256


@pytest.mark.parametrize("kind", ["sft", "rm"])
def test_a_merged_model_stands_alone(
    pulled: dict[str, Pulled], results: tuple[MemorySession, dict[str, float]], kind: str
) -> None:
    found = pulled[f"{kind} merged"]
    assert found.told["format"] == "full"
    assert not (found.folder / "base").exists()
    assert not (found.folder / "adapter_config.json").exists()
    assert found.number == pytest.approx(results[1][kind], rel=1e-4)


def test_chat_answers_from_a_pulled_folder(command: CommandLine, pulled: dict[str, Pulled]) -> None:
    model = str(pulled["sft"].folder)
    once = command("chat", model, "-q", "感冒怎么办？", "--max-new-tokens", "8")
    assert once.exit_code == 0, once.output
    assert once.stdout.endswith("\n")
    assert once.stderr == ""
    piped = command(
        "chat", model, "--max-new-tokens", "8", stdin="感冒怎么办？\n/reset\n感冒怎么办？\n/exit\n不问了\n"
    )
    assert piped.exit_code == 0, piped.output
    assert piped.stdout == once.stdout * 2
    sampled = [
        command("chat", model, "-q", "感冒？", "--max-new-tokens", "8", "--temperature", "5", "--seed", seed)
        for seed in ("1", "1", "2")
    ]
    assert sampled[0].stdout == sampled[1].stdout
    assert sampled[0].stdout != sampled[2].stdout


def test_chat_refuses_a_reward_model(command: CommandLine, pulled: dict[str, Pulled]) -> None:
    result = command("chat", str(pulled["rm"].folder), "-q", "感冒怎么办？")
    assert result.exit_code == 2
    assert "reward model" in result.stderr


def test_a_device_that_is_not_there_is_bad_input(command: CommandLine, pulled: dict[str, Pulled]) -> None:
    result = command("chat", str(pulled["sft"].folder), "-q", "感冒？", "--device", "cuda:77")
    assert result.exit_code == 2
    told = "cannot be loaded" if torch.cuda.is_available() else "error[NoGpu]: --device cuda:77"
    assert told in result.stderr
