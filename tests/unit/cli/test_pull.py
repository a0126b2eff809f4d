"""pull and curves over a store in memory: whole folders or none."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import CommandLine
from tests.unit.cli.fakes import MemorySession, desired_state, manifest
from zhongjing.cli.commands.pull import loading_lines, new_folder
from zhongjing.config.stages import Stage
from zhongjing.data.records import Turn
from zhongjing.errors import ConfigError

PULLED = ["README.md", "config.json", "manifest.json", "model.safetensors", "zhongjing.json"]
CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'


@pytest.fixture
def sft(session: MemorySession, workdir: Path) -> MemorySession:
    """A session with one full model, and its curves."""
    session.add(desired_state())
    result = manifest(Stage.SFT)
    session.manifests[Stage.SFT] = result
    layout = session.layout("demo").stage(Stage.SFT, result.key)
    session.store.objects = {
        f"{layout.model}/config.json": CONFIG,
        f"{layout.model}/model.safetensors": b"weights",
        f"{layout.curves}/curves.png": b"png",
    }
    return session


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_pull_fetches_the_model_and_says_how_to_load_it(
    command: CommandLine, sft: MemorySession, tmp_path: Path
) -> None:
    result = command("pull", "demo/sft", "model", "--local")
    assert result.exit_code == 0, result.output
    assert names(tmp_path / "model") == PULLED
    place = json.dumps(str(tmp_path / "model"))
    assert result.stdout.splitlines() == [
        "demo/sft is in model; load it with:",
        "  from transformers import AutoModelForCausalLM, AutoTokenizer",
        f"  model = AutoModelForCausalLM.from_pretrained({place})",
        f"  tokenizer = AutoTokenizer.from_pretrained({place})",
    ]


def test_a_pulled_model_knows_its_system_turn(
    command: CommandLine, sft: MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`chat` asks as the model was trained; --system overrides, also with nothing."""
    document = sft.manifests[Stage.SFT].document
    document["spec"]["stages"]["sft"]["systemPrompt"] = "你是医生。"
    assert command("pull", "demo/sft", "model", "--local").exit_code == 0
    told = json.loads((tmp_path / "model" / "zhongjing.json").read_text(encoding="utf-8"))
    assert told == {"pipeline": "demo", "stage": "sft", "key": "k" * 16, "systemPrompt": "你是医生。"}
    heard: list[list[tuple[str, str]]] = []

    def load(folder: Path, **_: object) -> Callable[[list[Turn]], Iterator[str]]:
        def reply(turns: list[Turn]) -> Iterator[str]:
            heard.append([(turn.role, turn.content) for turn in turns])
            yield "多休息"

        return reply

    monkeypatch.setattr("zhongjing.cli.commands.chat.load_reply", load)
    for words in ((), ("--system", "be brief"), ("--system", "")):
        assert command("chat", "model", "-q", "头痛", *words).exit_code == 0
    asked = ("user", "头痛")
    assert heard == [[("system", "你是医生。"), asked], [("system", "be brief"), asked], [asked]]
    (tmp_path / "model" / "zhongjing.json").write_text("[]")
    assert command("chat", "model", "-q", "头痛").exit_code != 0
    (tmp_path / "model" / "zhongjing.json").unlink()
    assert command("chat", "model", "-q", "头痛").exit_code == 0
    assert heard[-1] == [asked]


def test_pull_with_curves_as_json(command: CommandLine, sft: MemorySession, tmp_path: Path) -> None:
    result = command("pull", "demo/sft", "model", "--curves", "--local", "-o", "json")
    shown = json.loads(result.stdout)
    assert shown["folder"] == str(tmp_path / "model")
    assert shown["format"] == "full"
    assert shown["manifestUri"].endswith("/sft/kkkkkkkkkkkkkkkk/manifest.json")
    assert names(tmp_path / "model") == sorted([*PULLED, "curves/curves.png"])


def test_curves_alone(command: CommandLine, sft: MemorySession, tmp_path: Path) -> None:
    result = command("curves", "demo/sft", "pictures", "--local")
    assert result.exit_code == 0
    assert result.stdout == "pictures/curves.png\n"
    del sft.store.objects[next(key for key in sft.store.objects if "/curves/" in key)]
    result = command("curves", "demo/sft", "more", "--local")
    assert result.exit_code == 2
    assert "the stage has no curves" in result.stderr
    assert not (tmp_path / "more").exists()


def test_a_folder_that_is_not_empty_is_kept_unless_forced(
    command: CommandLine, sft: MemorySession, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    result = command("pull", "demo/sft", "model", "--local")
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert names(folder) == ["mine.txt"]
    assert command("pull", "demo/sft", "model", "--local", "--force").exit_code == 0
    assert names(folder) == PULLED


def test_damage_leaves_nothing_behind(command: CommandLine, sft: MemorySession, tmp_path: Path) -> None:
    sft.store.damaged = True
    before = sorted(tmp_path.iterdir())
    result = command("pull", "demo/sft", "model", "--local")
    assert result.exit_code == 3
    assert "not what its manifest says" in result.stderr
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("demo", "a result is named PIPELINE/STAGE"),
        ("demo/dpo", "there is no stage 'dpo'"),
        ("other/sft", "there is no pipeline 'other'"),
        ("demo/ppo", "the pipeline has no stage ppo"),
        ("demo/rm", "the stage has no result yet"),
        ("demo/rm", "there is: demo/sft"),
    ],
)
def test_targets_that_cannot_be_pulled(
    command: CommandLine, sft: MemorySession, target: str, words: str
) -> None:
    result = command("pull", target, "model", "--local")
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_missing_result_names_the_command(command: CommandLine, sft: MemorySession) -> None:
    assert (
        "zhongjing submit --pipeline demo --stage rm" in command("pull", "demo/rm", "model", "--local").stderr
    )


def test_an_interrupted_replacement_keeps_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "old").touch()

    def replace() -> None:
        with new_folder(folder, force=True) as partial:
            (partial / "new").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        replace()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert names(folder) == ["old"]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "model").touch()
    with pytest.raises(ConfigError, match="is a file"), new_folder(tmp_path / "model", force=True):
        pass


def test_lines_that_load_a_reward_model(tmp_path: Path) -> None:
    lines = loading_lines(tmp_path, "rm", adapter=True)
    assert lines[0] == (
        "from peft import AutoPeftModelForSequenceClassification; from transformers import AutoTokenizer"
    )
    assert lines[1].endswith(f'("{tmp_path}", num_labels=1)')
